"""The paper's readout of all positions against the target's alone, at equal history."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """Target readout with its long history, then both readouts with the same short one."""
    short = replace(base.model, history_len=16)
    return {
        "target, 200": base,
        "target, 16": replace(base, model=short),
        "flatten, 16": replace(base, model=replace(short, readout="flatten")),
    }


if __name__ == "__main__":
    main(__doc__, variants)
