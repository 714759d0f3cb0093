"""Draw the figures of the results page from the rows that report.py and ablate.py wrote.

A title says what is found; every number in it is taken from the rows.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.support.command import guarded

INK, BLUE, GREY, ORANGE = "#22303c", "#2e6da4", "#95a5a6", "#d68910"
RANGE = 0.15  # stars, that the axis of the learning curves has at least
LENGTHS = ("0", "1-5", "6-20", "21-100", "101-300", "301+")


def calibration(axes, rows: list[dict]) -> None:
    """Mean stars given against mean prediction, one dot per group and seed."""
    dots = [dot for row in rows if row["scorer"] == "bst" for dot in row["calibration"]]
    axes.plot(*zip(*dots, strict=True), "o", color=BLUE, markersize=3)
    axes.plot([1, 5], [1, 5], color=INK, linewidth=1)
    most = max(abs(given - predicted) for predicted, given in dots)
    axes.set(xlabel="predicted stars, 20 equal groups", ylabel="mean of the stars given",
             title=f"The mean of a group is at most {most:.2f} stars off")


def history(axes, rows: list[dict]) -> None:
    """MAE by length of the history; bst with seed 0."""
    from bst.evaluation.report import scored

    lines = {"streaming bias": (GREY, "s--"), "item kNN": (ORANGE, "^-."), "bst": (BLUE, "o-")}
    for name, (color, style) in lines.items():
        slices = next((row["slices"] for row in scored(rows) if row["scorer"] == name), {})
        found = {length: slices[f"history {length}"]["mae"] for length in LENGTHS
                 if f"history {length}" in slices}
        axes.plot(list(found), list(found.values()), style, color=color, label=name)
    axes.legend(frameon=False)
    least, *_, most = found.values()
    axes.set(xlabel="ratings in the history", ylabel="test MAE, stars",
             title=f"A long history is worth {least - most:.2f} stars")


def learning(axes, rows: list[dict]) -> None:
    """Valid MAE before training and after each epoch, one line per seed."""
    curves = [row["valid_mae_by_epoch"] for row in rows if row.get("valid_mae_by_epoch")]
    for curve in curves:
        axes.plot(range(len(curve)), curve, "o-", color=BLUE, alpha=0.6)
    low, high = min(map(min, curves)), max(map(max, curves))
    axes.set_ylim(low - 0.01, max(high + 0.01, low + RANGE))  # what is small looks small
    share = sum((c[0] - c[1]) / (c[0] - min(c)) for c in curves) / len(curves)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch, a line a seed", ylabel="valid MAE, stars",
             title=f"The first epoch brings {share:.0%} of the gain")


def main(folder: Path = Path("pics")) -> None:
    """Draw results.png and a figure for each study, beside their rows.

    Args:
        folder: where the JSON files are and the PNG files go.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from scripts.studies.runs import draw_study

    for path in sorted(folder.glob("ablate_*.json")):
        rows = json.loads(path.read_text())
        draw_study(rows, rows[0]["variant"], path.with_suffix(".png"))
    rows = json.loads((folder / "results.json").read_text())
    figure, panels = plt.subplots(1, 3, figsize=(15, 4.2))
    for axes, draw in zip(panels, (calibration, history, learning), strict=True):
        draw(axes, rows)
        axes.title.set(fontweight="bold", fontsize=11)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / "results.png", dpi=110, bbox_inches="tight",
                   metadata={"Software": None})


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
