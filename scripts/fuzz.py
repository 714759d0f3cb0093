"""Fuzz every reader with atheris: whatever the bytes, only a DataError may escape.

An input that breaks this is kept in the folder of its target. Needs atheris, which is no part of
requirements.txt: pip install atheris==3.0.0.
"""

import importlib.util
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.fuzzing.targets import Target, reader
from scripts.support.command import guarded


@dataclass(frozen=True)
class Args:
    """Fuzz readers."""

    targets: tuple[Target, ...] = get_args(Target)
    """what is read"""
    minutes: float = 10.0
    """of all targets together"""
    out: Path = Path("runs/fuzz")
    """folder of inputs, one folder per target; what an earlier run found is used again"""


def fuzz(target: Target, seconds: int, out: Path) -> None:
    """Does not return: the process ends when the time is over or an input breaks the promise."""
    import atheris
    import polars  # noqa: F401 -- what is imported before is not instrumented
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with atheris.instrument_imports(include=["bst"]):
        import bst.data.formats  # noqa: F401
        import bst.training.checkpoint  # noqa: F401
    from bst.utils.errors import DataError
    from bst.utils.files import write_sealed
    good, read = reader(target, folder)
    for k, content in enumerate(good.values()):  # the first byte says which file the others are
        (out / f"seed-{k}").write_bytes(bytes([k]) + content)

    def one(data: bytes) -> None:
        name = list(good)[(data[0] if data else 0) % len(good)]
        for other, content in good.items():
            write_sealed(folder / other, data[1:] if other == name else content)
        try:
            read()
        except DataError as error:
            assert "\n" not in str(error), "an error of more than one line"

    flags = [f"-max_total_time={seconds}", f"-artifact_prefix={out}/", "-max_len=8192",
             "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=4096", str(out)]
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


def main(args: Args) -> int:
    """One process per target; the number of targets that broke the promise."""
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: no module atheris; run: pip install atheris==3.0.0")
    broken, seconds = 0, round(60 * args.minutes / len(args.targets))
    for target in args.targets:
        out = args.out / target
        child = os.fork()  # this process has no threads yet: torch is imported by the children
        if not child:
            fuzz(target, seconds, out)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log = (out / "log.txt").read_text(errors="replace")
        count = re.findall(r"number_of_executed_units: *(\d+)", log)
        found = sorted(p.name for p in out.glob("*-*") if not p.name.startswith("seed"))
        broken += status != 0
        print(f"{target:<10}{seconds:>6} s{int(count[-1]) if count else 0:>12,} inputs  "
              f"exit {status}  {'kept: ' + ', '.join(found) if found else ''}", flush=True)
    return broken


if __name__ == "__main__":
    guarded(lambda: main(tyro.cli(Args, description=__doc__)))
