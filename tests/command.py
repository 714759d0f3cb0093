"""Runs a script as a user does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(script: str, *args, code: int = 0) -> subprocess.CompletedProcess:
    """What `python scripts/SCRIPT ARGS` printed; it has to exit with `code`."""
    done = subprocess.run([sys.executable, f"scripts/{script}", *map(str, args)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done
