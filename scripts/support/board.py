"""The log of a run as TensorBoard reads it, where tensorboard is installed (pip install it)."""

import importlib.util
import json
import shutil
from pathlib import Path


def write_board(run: Path) -> None:
    """Write RUN/tensorboard from RUN/metrics.jsonl: the numbers of each validation, by step."""
    if importlib.util.find_spec("tensorboard") is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    folder = run / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)  # of the same run, when it was shorter
    with SummaryWriter(folder) as writer:
        for line in (run / "metrics.jsonl").read_text().splitlines():
            row = json.loads(line)
            for name in row.keys() - {"step", "epoch", "processes"}:
                writer.add_scalar(name, row[name], row["step"])
    print(f"TensorBoard: {folder}")
