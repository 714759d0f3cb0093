"""Draw pics/architecture.png: how a prediction is made."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.utils.guard import guarded

STAR, INK, FAINT = "\u2605", "#22303c", "#5f6f7c"
GREY, BLUE, YELLOW, ORANGE = "#f1f3f5", "#d6e5f5", "#fdf0bf", "#fbdfc3"
GREEN, PURPLE, WHITE = "#d9eed8", "#e7def2", "#ffffff"  # what is white is an option
LINE, DASHES = {"edgecolor": INK, "linewidth": 1.1}, (0, (4, 3))

# All places are tenths of an inch. A line of text that begins with * is bold.
FILMS = {13: ("film 1", 4), 28: ("film 2", 2), 47: ("film j", 5), 62: ("target", 0)}  # left, stars
BOXES = [  # left, low, width, height, colour, text
    (13, 34, 62, 8, ORANGE, "*one transformer layer: the target attends to the history\n"
     "attention bias: time gap and rank counted back from the target"),
    (77, 34, 12, 8, BLUE, "overview\nof the target\n(BERT)"),
    (91, 34, 12, 8, GREEN, "sex, age,\noccupation,\nzip region"),
    (105, 34, 12, 8, GREEN, "dense:\nconcat or\nbucket"), (55, 46, 62, 4.2, GREY, "concatenate"),
    (61, 54.2, 50, 4.2, ORANGE, "*three dense layers with ReLU: 256, 128, 64"),
    (86, 2, 31, 16, PURPLE, "*base score, without gradients\nstreaming factors: a Kalman filter\n"
     "reads the taste off the history;\nitem neighbours add what\nsimilar films of it left over"),
    (84, 63, 4, 4, GREY, "*+"), (55, 62.2, 20, 5.6, YELLOW, "*predicted stars"),
    (2, 46, 44, 12.4, WHITE, "*optional second head: --interest\nown attention to the history\n"
     "+ the user and the time of asking;\nscores every film of the catalogue"),
    (9, 62.2, 30, 5.6, WHITE, "*which film is rated next"),
]
ARROWS = [
    *([(x, 42), (x, 46)] for x in (68.5, 83, 97, 111)),
    [(86, 50.2), (86, 54.2)], [(86, 58.4), (86, 63)], [(84, 65), (75, 65)], [(75, 5.5), (86, 5.5)],
    [(111, 18), (111, 34)], [(117, 10), (120.5, 10), (120.5, 65), (88, 65)],
]
DASHED = [[(53.5, 31.2), (6, 31.2), (6, 46)], [(24, 58.4), (24, 62.2)]]
NOTES = [  # x, y, side of x, text
    (11.8, 5.5, "right", "history,\noldest first"), (11.8, 16.5, "right", "movie\nembedding"),
    (11.8, 26.3, "right", "stars"), (80.5, 8, "center", "history\nand target"),
    (110, 26, "right", "score, its parts\nand its doubt"), (87, 60.6, "left", "correction"),
    (119.5, 66.3, "right", "base score"),
]


def write(axes, x: float, y: float, text: str, *, size: float = 11, **options) -> None:
    """Lines of text, centred around a point."""
    lines, leading = text.split("\n"), 0.185 * size
    for k, words in enumerate(lines):
        low = y + leading * ((len(lines) - 1) / 2 - k) - 0.05 * size
        weight = "bold" if words.startswith("*") else "normal"
        axes.text(x, low, words.removeprefix("*"), fontsize=size, weight=weight,
                  **{"ha": "center", "color": INK, **options})


def box(axes, x: float, y: float, width: float, height: float, color: str, text: str) -> None:
    """A rounded box with text in it; one as wide as high is a circle."""
    from matplotlib.patches import FancyBboxPatch

    style = "circle,pad=0" if width == height else "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=color, **LINE,
                                  linestyle=DASHES if color == WHITE else "solid"))
    write(axes, x + width / 2, y + height / 2, text)


def arrow(axes, points: list[tuple[float, float]], linestyle="solid") -> None:
    """An arrow along the points."""
    from matplotlib import patches, path

    axes.add_patch(patches.FancyArrowPatch(
        path=path.Path(points), arrowstyle="-|>,head_length=.45,head_width=.22", facecolor=INK,
        mutation_scale=11, joinstyle="miter", linestyle=linestyle, **LINE))


def draw(axes) -> None:
    """The whole figure, from the films at the bottom to the stars at the top."""
    for left, (name, stars) in FILMS.items():
        middle = left + 6.5
        box(axes, left, 2, 13, 7, GREY, f"{name}\n{stars * STAR or '?'}")
        box(axes, left, 12, 13, 9, BLUE, "id + genres\n+ year\n+ overview")
        box(axes, left, 24.2, 13, 4.2, YELLOW, f"{stars} stars" if stars else "not rated yet")
        write(axes, middle, 22.7, "+")
        arrow(axes, [(middle, 9), (middle, 12)])
        arrow(axes, [(middle, 28.4), (middle, 34)])
        if stars:
            axes.plot(middle, 31.2, "o", color=INK, markersize=4)
    for y in (5.5, 16.5, 26.3):
        write(axes, 44, y, "...", size=14)
    for values in BOXES:
        box(axes, *values)
    for points in ARROWS:
        arrow(axes, points)
    for points in DASHED:
        arrow(axes, points, DASHES)
    for x, y, side, text in NOTES:
        write(axes, x, y, text, size=10, ha=side, color=FAINT)


def main(out: Path = Path("pics/architecture.png")) -> None:
    """Draw the figure.

    Args:
        out: where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(12.25, 7))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 122.5), ylim=(0, 70))
    axes.axis("off")
    draw(axes)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
