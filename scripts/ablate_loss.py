"""Squared error against Huber and the ordinal likelihood."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """The losses; the ordinal one names the median as its whole star."""
    return {loss: replace(base, model=replace(base.model, loss=loss))
            for loss in ("mse", "huber", "ordinal")}


if __name__ == "__main__":
    main(__doc__, variants)
