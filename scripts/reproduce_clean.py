"""Clone, make a fresh environment, run the README's first commands, compare what they print."""

import os
import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bst.utils.errors import DataError
from scripts.support.command import command

SECTION = "Five-minute start"
NUMBER = re.compile(r"(?:(?<!\w)[+-])?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Args:
    """Run the commands of the README that begin with `pip install`, word for word."""

    tests: bool = True
    """run the tests too, not the default command alone"""
    tolerance: float = 0.002
    """stars by which a number may differ: another CPU or number of threads changes the last bits"""


def commands(readme: str) -> list[tuple[str, str | None]]:
    """The bash blocks of the section, each with the text block after it: what it prints last."""
    section = re.search(rf"^## {SECTION}\n(.*?)^## ", readme + "\n## ", re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```(bash|text)\n(.*?)^```", section[1] if section else "",
                        re.DOTALL | re.MULTILINE)
    return [(content.strip(), blocks[k + 1][1] if blocks[k + 1:k + 2] and
             blocks[k + 1][0] == "text" else None)
            for k, (kind, content) in enumerate(blocks) if kind == "bash"]


def differences(expected: str, printed: str, tolerance: float) -> list[str]:
    """What differs between the lines of `expected` and the last ones of `printed`."""
    wanted = [line.split() for line in expected.splitlines() if line.strip()]
    found = [line.split() for line in printed.splitlines() if line.strip()][-len(wanted):]
    if len(found) < len(wanted):
        return [f"{len(found)} lines, expected {len(wanted)}"]
    return [f"{' '.join(a)!r} in the README, {' '.join(b)!r} printed"
            for a, b in zip(wanted, found, strict=True)
            if not _close(" ".join(a), " ".join(b), tolerance)]


def _close(expected: str, found: str, tolerance: float) -> bool:
    if NUMBER.sub("#", expected) != NUMBER.sub("#", found):
        return False
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True)
    return all(abs(float(a) - float(b)) <= tolerance for a, b in pairs)


def main(args: Args) -> None:
    """Clone what is committed, install, run, compare.

    Raises:
        DataError: a command fails, or prints something else than the README.
    """
    with tempfile.TemporaryDirectory() as scratch:
        clone, environment = Path(scratch) / "bst", Path(scratch) / "venv"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        venv.create(environment, with_pip=True)
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        compared = 0
        for command, expected in commands((clone / "README.md").read_text()):
            if not command.startswith("pip install") or ("pytest" in command and not args.tests):
                continue
            print(f"$ {command}", flush=True)
            done = subprocess.run(["bash", "-c", command], cwd=clone, env={**os.environ,
                                  "PATH": path}, stdout=subprocess.PIPE, text=True)
            print("\n".join(done.stdout.splitlines()[-15:]), flush=True)
            if done.returncode:
                raise DataError(f"this command ended with {done.returncode}: {command}")
            if expected is not None:
                found = differences(expected, done.stdout, args.tolerance)
                if found:
                    raise DataError(f"{command}: {len(found)} lines differ, first {found[0]}")
                compared += 1
        if not compared:
            raise DataError(f"README.md: no ```text block after a command of '{SECTION}', expected "
                            "what the default command prints")
    print(f"as the README says, to {args.tolerance} stars")


if __name__ == "__main__":
    command(main, Args, __doc__)
