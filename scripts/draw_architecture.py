"""Draw pics/architecture.png: how a prediction is made."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

INK, BLUE, GREEN, ORANGE = "#22303c", "#cfe0f3", "#d5ecd4", "#fbe3c4"
GREY, PURPLE = "#eceff1", "#e6dcf0"


def box(axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A rounded box with centred text."""
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=.1",
                                  facecolor=color, edgecolor=INK, linewidth=1.2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow from `start` to `end`."""
    axes.annotate("", xy=end, xytext=start,
                  arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.2})


def main(out: Path = Path("pics/architecture.png")) -> None:
    """Draw the figure.

    Args:
        out: where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(13, 7))
    axes.set(xlim=(0, 13.6), ylim=(0, 7))
    axes.axis("off")
    for k, (title, stars) in enumerate([("film 1", "4 stars"), ("film 2", "2 stars"),
                                        ("film l", "5 stars"), ("target", "?")]):
        x = 0.2 + 1.65 * k + (0.15 if k > 1 else 0)
        box(axes, x, 0.3, 1.4, 0.75, f"{title}\n{stars}", GREY)
        box(axes, x, 1.5, 1.4, 1.1, "id + genres\n+ year\n+ overview", BLUE)
        arrow(axes, (x + 0.7, 1.07), (x + 0.7, 1.47))
        arrow(axes, (x + 0.7, 2.62), (x + 0.7, 2.97))
    axes.text(3.44, 0.68, "...", ha="center", fontsize=14)
    box(axes, 0.2, 3.0, 6.5, 1.0, "one transformer layer: the target attends to the rated history\n"
        "attention bias: time gap and rank counted back from the target", ORANGE)
    box(axes, 7.0, 3.0, 1.15, 1.0, "BERT vector\nof the\ntarget", BLUE)
    box(axes, 8.35, 3.0, 1.15, 1.0, "sex, age,\noccupation,\nzip region", GREEN)
    box(axes, 9.7, 3.0, 1.15, 1.0, "dense:\nconcat or\nbucket", GREEN)
    box(axes, 11.3, 1.5, 2.1, 2.5, "base score\n\nfactors: a Kalman\nfilter reads the\n"
        "user's taste off\nthe history\n+ item neighbours", PURPLE)
    arrow(axes, (11.27, 3.5), (10.88, 3.5))
    box(axes, 0.2, 4.6, 10.65, 0.5, "concatenate", GREY)
    for x in (3.45, 7.57, 8.92, 10.27):
        arrow(axes, (x, 4.02), (x, 4.57))
    box(axes, 2.2, 5.45, 6.6, 0.5, "three dense layers with ReLU: 256, 128, 64", ORANGE)
    arrow(axes, (5.5, 5.12), (5.5, 5.42))
    arrow(axes, (5.5, 5.97), (5.5, 6.3))
    axes.plot([12.35, 12.35], [4.02, 6.55], color=INK, linewidth=1.2)
    arrow(axes, (12.35, 6.55), (8.2, 6.55))
    axes.text(5.5, 6.55, "predicted stars = correction + base score", ha="center", va="center",
              fontsize=12, color=INK, weight="bold")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
