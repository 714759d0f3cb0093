"""Runs a script as a user does, in a process forked from a server that has the imports done."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = ["--no-text", "--width", "16", "--heads", "2", "--history-len", "20", "--threads", "1",
        "--batch-size", "512", "--steps", "1", "--save-every", "10"]  # a train.py of seconds
IMPORTS = ["bst.run", "torch._inductor.config"]  # torch loads the last one late


def start(script: str, args, out: Path, errors: Path, fault=None, about: tuple = ()):
    """The process of `python scripts/SCRIPT ARGS`, with `fault(*about)` called first."""
    os.environ["PYTHONPATH"] = str(ROOT)  # of the server
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTS, __name__])
    for path in (out, errors):
        path.write_text("")
    process = context.Process(target=_run, args=(
        script, [str(arg) for arg in args], out, errors, fault, about))
    process.start()
    return process


def call(script: str, *args, code: int = 0, fault=None) -> subprocess.CompletedProcess:
    """What `python scripts/SCRIPT ARGS` printed; it has to exit with `code`."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        process = start(script, args, out, errors, fault)
        process.join()
        done = subprocess.CompletedProcess(
            args, process.exitcode, out.read_text(), errors.read_text())
    assert done.returncode == code, done.stdout + done.stderr
    return done


def until(condition, *, seconds: float = 30) -> None:
    """Return once the condition holds, which must be within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _run(script: str, args: list[str], out: Path, errors: Path, fault, about: tuple) -> None:
    for number, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    sys.argv = [f"scripts/{script}", *args]
    if fault is not None:
        fault(*about)
    runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
