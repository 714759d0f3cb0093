"""The main table: BST over seeds beside every baseline, on the same rows in the same run."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bst.config import (
    Baseline,
    DataConfig,
    ModelConfig,
    Options,
    RunConfig,
    TrainConfig,
    option,
)
from scripts.support.command import command
from scripts.support.flags import BASELINES_HELP, JOBS, SEEDS


@dataclass(frozen=True)
class Compared(Options):
    """Train what is missing, then print and save."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    seeds: int = SEEDS
    jobs: int = JOBS
    runs: Path = Path("runs")
    """folder of the runs"""
    json: Path | None = None
    """also write the rows to this file"""


@dataclass(frozen=True)
class Args(Compared):
    """Train what is missing, then print and save; draw_results.py draws what is saved."""

    baselines: tuple[Baseline, ...] = option((), BASELINES_HELP)


def table(
    prepared, done: list[dict], rivals: dict[str, np.ndarray], failed: dict[str, str]
) -> list[dict]:
    """Rows of each seed, of the seeds' mean prediction, and of the rivals; paired with bst.

    Args:
        prepared: the data of the runs.
        done: what `runs.run_one` gives of each seed.
        rivals: stars at every position of the store by name, each (n,).
        failed: by name, why another rival has none.
    """
    from bst.evaluation.report import evaluate, on_scale, paired_difference

    store, split, config = prepared.store, prepared.split, prepared.config

    def row(score, name, seed=0):
        return evaluate(score, store, split, "test", scorer=name, seed=seed,
                        config_hash=config.hash)

    def spread_out(values):
        full = np.full(len(store), np.nan, dtype=np.float32)
        full[split.test] = values
        return full

    ours = [spread_out(d["score"]) for d in done]
    rows = [row(score, "bst", k) for k, score in enumerate(ours)]
    if len(done) > 1:
        rows.append(row(np.mean(ours, axis=0), f"bst, {len(done)} seeds averaged"))
    same = [store.rating[split.test]] * len(done), [store.user_row[split.test]] * len(done)
    clipped = [on_scale(score, store, split, "test") for score in ours]
    for name, score in rivals.items():
        theirs = [on_scale(score, store, split, "test")] * len(done)
        rows.append(row(score, name) | {"bst_minus_this": paired_difference(
            clipped, theirs, *same)})
    return [*rows, *({"scorer": name, "failed": why} for name, why in failed.items())]


def with_spread(values: list[float], mark: str = "") -> str:
    """Mean of some runs between marks, and their standard deviation if they are several."""
    from bst.evaluation.metrics import spread

    deviation = spread(values)
    return f"{mark}{np.mean(values):.4f}{mark}" + (f" +- {deviation:.4f}" if deviation else "")


def format_report(rows: list[dict]) -> str:
    """The rows in Markdown; the seeds of bst as mean and standard deviation."""
    from bst.evaluation.report import METRICS, interval, scored

    ours = [r for r in rows if r["scorer"] == "bst"]
    head = rows[0]
    cells = (with_spread([r[key] for r in ours], "**") for key in METRICS)
    lines = [
        f"protocol {head['protocol']}, ties {head['ties']}, part test, n = {head['n']:,}, "
        f"{len(ours)} seed{'s' * (len(ours) > 1)}",
        "",
        f"| scorer | {' | '.join(METRICS.values())} | bst minus it: MAE [95 %] | MSE [95 %] |",
        f"|---{'|---' * len(METRICS)}|---|---|",
        f"| **bst** | {' | '.join(cells)} | | |",
    ]
    for r in scored(rows)[len(ours):]:
        p = r.get("bst_minus_this")
        paired = " | ".join(interval(p, k) if p else "" for k in ("mae", "mse"))
        values = " | ".join(f"{r[key]:.4f}" for key in METRICS)
        lines.append(f"| {r['scorer']} | {values} | {paired} |")
    lines += [f"| {r['scorer']} | {r['failed']} | | | | | |" for r in rows if "failed" in r]
    return "\n".join(lines)


def learning_curve(run: Path) -> list[float]:
    """Valid MAE before training and after each epoch of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["valid_mae"] for line in lines]


def main(args: Args) -> None:
    """Train, compare, print."""
    from bst.evaluation.report import write_results
    from bst.run import predict_baselines, prepare, use_device
    from scripts.studies.runs import train_all, with_seed
    from scripts.support.synthetic import with_builtin

    config = RunConfig(data=with_builtin(args.data), model=args.model, train=args.train,
                       baselines=args.baselines)
    use_device(config.train)
    done = train_all({"bst": config}, range(args.seeds), args.runs, jobs=args.jobs)["bst"]
    prepared = prepare(config)
    rows = table(prepared, done, *predict_baselines(prepared))
    for seed in range(args.seeds):
        run = with_seed(config, seed)
        rows[seed]["valid_mae_by_epoch"] = learning_curve(args.runs / run.name)
        rows[seed]["config_hash"] = run.hash
    print(format_report(rows))
    if args.json is not None:
        write_results(rows, args.json)


if __name__ == "__main__":
    command(main, Args, __doc__)
