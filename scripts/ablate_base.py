"""What the network adds to each base score that it may correct."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """Each base with the transformer, and without it."""
    arms = {}
    for kind in ("neighbours", "factors", "bias", "mean"):
        arms[f"{kind}, transformer"] = replace(base, model=replace(base.model, base=kind))
        arms[f"{kind}, no sequence"] = replace(base, model=replace(base.model, base=kind, layers=0))
    return arms


if __name__ == "__main__":
    main(__doc__, variants)
