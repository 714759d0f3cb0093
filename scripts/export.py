"""Write a run as a program that needs torch alone, or as a folder for the Hugging Face Hub."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.utils.errors import DataError
from scripts.support.command import guarded
from scripts.support.flags import RunFolder


@dataclass(frozen=True)
class Args:
    """Export a run that train.py left; nothing is sent anywhere."""

    run: RunFolder
    """run folder"""
    program: Path | None = None
    """file to write, for torch.export.load: ratings in, stars out, without bst"""
    hub: Path | None = None
    """folder to make, for hf upload: the model and its card, without the ratings of the data"""


def main(args: Args) -> None:
    """Load, write, say what was written."""
    from bst.recommend.recommender import Recommender
    from scripts.support.hub import publish
    from scripts.support.program import INPUTS, OUTPUT, export_program

    if args.program is None and args.hub is None:
        raise DataError("expected --program FILE or --hub FOLDER")
    if args.program is not None:
        if args.program.exists():
            raise DataError(f"--program {args.program} is there already, expected a new file; "
                            "delete it or choose another")
        if not args.program.parent.is_dir():
            raise DataError(f"--program {args.program}: no folder {args.program.parent}, expected "
                            "one to write to; make it first")
        export_program(Recommender.from_pretrained(args.run), args.program)
        print(f"{args.program}: {args.program.stat().st_size / 1e6:.1f} MB, a function of")
        print("\n".join(f"  {name:<7} {text}" for name, text in INPUTS.items()))
        print(f"  -> {OUTPUT}")
    if args.hub is not None:
        held = publish(args.run, args.hub)
        print(f"{args.hub}: read its README.md. Of the data it holds")
        print("\n".join(f"  {line}" for line in held))
        print(f"If its licence allows that: hf upload USER/NAME {args.hub}")


if __name__ == "__main__":
    guarded(lambda: main(tyro.cli(Args, description=__doc__)))
