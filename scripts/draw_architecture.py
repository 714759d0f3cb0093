"""Draw pics/architecture.png: how a prediction is made."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.support.command import guarded

STAR, INK = "\u2605", "#22303c"
GREY, BLUE, YELLOW, ORANGE, WHITE = "#f1f3f5", "#d6e5f5", "#fdf0bf", "#fbdfc3", "#ffffff"
LINE = {"edgecolor": INK, "linewidth": 1.1}

# All places are tenths of an inch. A line of text that begins with * is bold.
BOXES = [  # left, low, width, height, colour, text
    (2, 57, 22, 7, GREY, "*raw ratings\nany CSV, MovieLens, ..."),
    (31, 57, 30, 7, GREY, "*sequences\neach user's ratings, by time"),
    (68, 57, 32, 7, GREY, "*Batch\nhistories in chunks, and targets"),
    (2, 46.4, 67, 7.6, WHITE, ""), (4, 47.6, 13, 5.2, GREY, f"film 1\n{4 * STAR}"),
    (19, 47.6, 13, 5.2, GREY, f"film 2\n{2 * STAR}"),
    (38, 47.6, 13, 5.2, GREY, f"film j\n{5 * STAR}"),
    (54, 47.6, 13, 5.2, YELLOW, "target\n?"),
    (2, 38.2, 67, 5.2, BLUE,
     "*item embedding: ~id + audience + genres + year + BERT of the overview"),
    (2, 18.4, 67, 16.8, WHITE, ""),
    (4, 19.6, 31, 11.4, ORANGE, "*regression heads\nattention that solves: a taste that\n"
     "drifts, read off the whole\nhistory, with its variance"),
    (37, 19.6, 30, 11.4, ORANGE, "*softmax heads\nattention that averages the\n"
     "last events by likeness,\ntime gap and rank"),
    (75, 18.4, 25, 35.6, WHITE, ""),
    (77, 39.4, 21, 7.6, BLUE, "BERT vector of the\ntarget's overview"),
    (77, 29.5, 21, 7.6, BLUE, "user: sex, age,\noccupation, region"),
    (77, 19.6, 21, 7.6, BLUE, "dense features:\nconcat or bucket"),
    (2, 10.8, 98, 4.2, GREY, "concatenate"),
    (2, 2, 67, 5.4, ORANGE, "*three dense layers with ReLU: ~128, 64, 32"),
    (75, 2, 25, 5.4, YELLOW, "*predicted stars"),
]
ARROWS = [
    [(24, 60.5), (31, 60.5)], [(61, 60.5), (68, 60.5)], [(71.5, 57), (71.5, 50.2), (69, 50.2)],
    [(87.5, 57), (87.5, 54)], *([(x, 47.6), (x, 43.4)] for x in (10.5, 25.5, 44.5, 60.5)),
    *([(x, 38.2), (x, 35.2)] for x in (10.5, 25.5, 44.5, 60.5)),
    [(35.5, 18.4), (35.5, 15)], [(87.5, 18.4), (87.5, 15)], [(35.5, 10.8), (35.5, 7.4)],
    [(69, 4.7), (75, 4.7)],
]
NOTES = [  # x, y, text
    (35, 50.2, "..."), (87.5, 50.2, "*beside the layer"),
    (35.5, 32.9, "*one transformer layer: ~the target reads the history"),
]


def write(axes, x: float, y: float, text: str, *, size: float = 11) -> None:
    """Lines of text, centred around a point; what follows a ~ in a bold line is not bold."""
    from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea

    lines, leading = text.split("\n"), 0.185 * size
    for k, words in enumerate(lines):
        bold, _, plain = words.removeprefix("*").partition("~")
        weight = "bold" if words.startswith("*") else "normal"
        parts = [TextArea(part, textprops={"size": size, "color": INK, "weight": w})
                 for part, w in ((bold, weight), (plain, "normal")) if part]
        place = x, y + leading * ((len(lines) - 1) / 2 - k)
        axes.add_artist(AnnotationBbox(HPacker(children=parts, pad=0, sep=0), place,
                                       frameon=False))


def box(axes, x: float, y: float, width: float, height: float, color: str, text: str) -> None:
    """A rounded box with text in it."""
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((x, y), width, height, facecolor=color, **LINE,
                                  boxstyle="round,pad=0,rounding_size=1"))
    if text:
        write(axes, x + width / 2, y + height / 2, text)


def arrow(axes, points: list[tuple[float, float]]) -> None:
    """An arrow along the points."""
    from matplotlib import patches, path

    axes.add_patch(patches.FancyArrowPatch(
        path=path.Path(points), arrowstyle="-|>,head_length=.45,head_width=.22", facecolor=INK,
        mutation_scale=11, joinstyle="miter", **LINE))


def main(out: Path = Path("pics/architecture.png")) -> None:
    """Draw the figure, from the raw ratings at the top to the stars at the bottom.

    Args:
        out: where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(10.2, 6.6))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 102), ylim=(0, 66))
    axes.axis("off")
    for values in BOXES:
        box(axes, *values)
    for points in ARROWS:
        arrow(axes, points)
    for values in NOTES:
        write(axes, *values)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
