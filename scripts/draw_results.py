"""Draw the figures of the results page from the rows that report.py wrote."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.utils.guard import guarded

INK, BLUE, GREY, ORANGE = "#22303c", "#2e6da4", "#95a5a6", "#d68910"
LENGTHS = ("0", "1-5", "6-20", "21-100", "101-300", "301+")


def calibration(axes, rows: list[dict]) -> None:
    """Mean stars given against mean prediction, a dot a group and seed."""
    for row in rows:
        if row["scorer"] == "bst":
            axes.plot(*zip(*row["calibration"], strict=True), "o", color=BLUE, markersize=3)
    axes.plot([1, 5], [1, 5], color=INK, linewidth=1)
    axes.set(xlabel="predicted stars", ylabel="mean of the stars given",
             title="Calibration, 20 equal groups")


def history(axes, rows: list[dict]) -> None:
    """MAE by length of the history; bst with seed 0."""
    colors = {"streaming bias": GREY, "item kNN": ORANGE, "bst": BLUE}
    for name, color in colors.items():
        slices = next(row["slices"] for row in rows if row["scorer"] == name)
        found = {length: slices[f"history {length}"]["mae"] for length in LENGTHS
                 if f"history {length}" in slices}
        axes.plot(list(found), list(found.values()), "o-", color=color, label=name)
    axes.legend(frameon=False)
    axes.set(xlabel="ratings in the history", ylabel="test MAE, stars",
             title="Error by history length")


def learning(axes, rows: list[dict]) -> None:
    """Valid MAE before training and after each epoch, a line a seed."""
    for row in rows:
        curve = row.get("valid_mae_by_epoch", [])
        axes.plot(range(len(curve)), curve, "o-", color=BLUE, alpha=0.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="valid MAE, stars", title="Learning curves, a line a seed")


def main(results: Path = Path("pics/results.json"), out: Path = Path("pics/results.png")) -> None:
    """Draw the three figures side by side.

    Args:
        results: rows of report.py.
        out: where the PNG goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = json.loads(results.read_text())
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2))
    for axes, draw in zip(panels, (calibration, history, learning), strict=True):
        draw(axes, rows)
        axes.grid(alpha=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
