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
    (2, 63, 22, 7, GREY, "*raw ratings\nany CSV, MovieLens, ..."),
    (31, 63, 30, 7, GREY, "*sequences\neach user's ratings, by time"),
    (68, 63, 32, 7, GREY, "*Batch\nhistories in chunks, and targets"),
    (2, 52.4, 67, 7.6, WHITE, ""), (4, 53.6, 13, 5.2, GREY, f"item 1\n{4 * STAR}"),
    (19, 53.6, 13, 5.2, GREY, f"item 2\n{2 * STAR}"),
    (38, 53.6, 13, 5.2, GREY, f"item j\n{5 * STAR}"),
    (54, 53.6, 13, 5.2, YELLOW, "target\n?"),
    (2, 43.8, 67, 5.6, BLUE, "*item embedding: ~id + audience + content\n"
     "(genres, year, item features, BERT of the overview)"),
    (2, 24.4, 67, 16.4, WHITE, ""),
    (4, 25.6, 31, 11.2, ORANGE, "*regression heads\nattention that solves: a taste that\n"
     "drifts, read off the whole\nhistory, with its variance"),
    (37, 25.6, 30, 11.2, ORANGE, "*softmax heads\nattention that averages the\n"
     "last events by likeness,\ntime gap and rank"),
    (75, 24.4, 25, 35.6, WHITE, ""),
    (77, 45.4, 21, 7.6, BLUE, "BERT vector of the\ntarget's overview"),
    (77, 35.5, 21, 7.6, BLUE, "user: sex, age,\noccupation, region"),
    (77, 25.6, 21, 7.6, BLUE, "dense features:\nconcat or bucket"),
    (14, 17.3, 86, 4.2, GREY, "concatenate"),
    (14, 9.2, 86, 5.2, ORANGE, "*MLP: ~three dense layers with ReLU, 128, 64, 32"),
    (55.4, 2.1, 3.2, 3.2, WHITE, "*+"),
    (75, 1, 25, 5.4, YELLOW, "*predicted stars"),
]
ARROWS = [
    [(24, 66.5), (31, 66.5)], [(61, 66.5), (68, 66.5)], [(71.5, 63), (71.5, 56.2), (69, 56.2)],
    [(87.5, 63), (87.5, 60)], *([(x, 53.6), (x, 49.4)] for x in (10.5, 25.5, 44.5, 60.5)),
    *([(x, 43.8), (x, 40.8)] for x in (10.5, 25.5, 44.5, 60.5)),
    [(35.5, 24.4), (35.5, 21.5)], [(87.5, 24.4), (87.5, 21.5)], [(57, 17.3), (57, 14.4)],
    [(9, 25.6), (9, 3.7), (55.4, 3.7)], [(57, 9.2), (57, 5.3)], [(58.6, 3.7), (75, 3.7)],
]
NOTES = [  # x, y, text
    (35, 56.2, "..."), (87.5, 56.2, "*beside the layer"),
    (35.5, 38.7, "*one transformer layer: ~the target reads the history"),
    (31, 5.6, "*mean: ~baseline + taste times key"), (63.6, 7.2, "correction"),
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

    figure = plt.figure(figsize=(10.2, 7.3))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 102), ylim=(-1, 72))
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
