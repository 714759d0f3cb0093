"""The main table: BST over seeds beside every baseline, on the same rows in the same run."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.utils.guard import command


@dataclass(frozen=True)
class Args:
    """Train what is missing, then print and save."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    seeds: int = 5
    """runs, seeds 0, 1, ..."""
    jobs: int = 1
    """runs at a time"""
    runs: Path = Path("runs")
    """folder of the runs"""
    json: Path | None = None
    """also write the rows to this file, which draw_results.py draws"""


def table(prepared, done: list[dict], rivals: dict[str, np.ndarray]) -> list[dict]:
    """Rows of each seed, of the seeds' mean prediction, and of the rivals; paired with bst.

    Args:
        prepared: the data of the runs.
        done: what `ablation.run_one` gives of each seed.
        rivals: stars at every position of the store by name, each (n,).
    """
    from bst.evaluation.report import evaluate, paired_difference

    store, split, config = prepared.store, prepared.split, prepared.config

    def row(score, name, seed=0, stars=None):
        return evaluate(score, store, split, "test", scorer=name, seed=seed,
                        config_hash=config.hash, stars=stars)

    def spread(values):
        full = np.full(len(store), np.nan, dtype=np.float32)
        full[split.test] = values
        return full

    rows = [row(spread(d["score"]), "bst", k, spread(d["star"])) for k, d in enumerate(done)]
    ensemble = spread(np.mean([d["score"] for d in done], axis=0))
    rows.append(row(ensemble, f"bst, {len(done)} seeds averaged"))
    for name, score in rivals.items():
        differences = [paired_difference(spread(d["score"]), score, store, split, "test", seed=0)
                       for d in done]
        mean = {key: float(np.mean([d[key] for d in differences])) for key in differences[0]}
        rows.append(row(score, name) | {"bst_minus_this": mean})
    return rows


def format_report(rows: list[dict]) -> str:
    """The rows in Markdown; the seeds of bst as mean and standard deviation."""
    ours = [r for r in rows if r["scorer"] == "bst"]
    keys, head = ("mae", "rmse", "user_macro_mae", "mae_star"), rows[0]
    cells = [np.array([r[key] for r in ours]) for key in keys]
    lines = [
        f"protocol {head['protocol']}, ties {head['ties']}, part test, n = {head['n']:,}, "
        f"{len(ours)} seeds",
        "",
        "| scorer | MAE | RMSE | user MAE | MAE* | bst minus it: MAE [95 %] | MSE [95 %] |",
        "|---|---|---|---|---|---|---|",
        f"| **bst** | {' | '.join(f'**{c.mean():.4f}** +- {c.std():.4f}' for c in cells)} | | |",
    ]
    for r in rows[len(ours):]:
        p = r.get("bst_minus_this")
        paired = " | ".join(f"{p[k]:+.4f} [{p[f'{k}_low']:+.4f}, {p[f'{k}_high']:+.4f}]"
                            if p else "" for k in ("mae", "mse"))
        values = " | ".join(f"{r[key]:.4f}" for key in keys)
        lines.append(f"| {r['scorer']} | {values} | {paired} |")
    return "\n".join(lines)


def learning_curve(run: Path) -> list[float]:
    """Valid MAE before training and after each epoch of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["valid_mae"] for line in lines]


def main(args: Args) -> None:
    """Train, compare, print."""
    from bst.evaluation.report import write_results
    from bst.run import predict_baselines, prepare, use_device
    from scripts.studies.runs import train_all

    config = RunConfig(data=args.data, model=args.model, train=args.train)
    use_device(config)
    done = train_all({"bst": config}, range(args.seeds), args.runs, jobs=args.jobs)["bst"]
    prepared = prepare(config)
    rows = table(prepared, done, predict_baselines(prepared))
    for seed in range(args.seeds):
        run = config.with_seed(seed)
        rows[seed]["valid_mae_by_epoch"] = learning_curve(args.runs / run.name)
        rows[seed]["config_hash"] = run.hash
    print(format_report(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Args, __doc__)
