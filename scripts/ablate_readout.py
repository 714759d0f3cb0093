"""The paper's readout of all positions against the target's alone, at equal history."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.ablation import AblationArgs, Variants, run_ablation
from bst.config import RunConfig
from bst.schema import DataError


def variants(base: RunConfig) -> Variants:
    """Target readout with its long history, then both readouts with the same short one."""
    short = replace(base.model, history_len=16)
    return {
        "target, 200": base,
        "target, 16": replace(base, model=short),
        "flatten, 16": replace(base, model=replace(short, readout="flatten")),
    }


if __name__ == "__main__":
    try:
        args = tyro.cli(AblationArgs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        run_ablation(args, variants)
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")
