"""Squared error against Huber and the ordinal likelihood."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.ablation import AblationArgs, Variants, run_ablation
from bst.config import RunConfig
from bst.schema import DataError


def variants(base: RunConfig) -> Variants:
    """The losses; the ordinal one names the median as its whole star."""
    return {loss: replace(base, model=replace(base.model, loss=loss))
            for loss in ("mse", "huber", "ordinal")}


if __name__ == "__main__":
    try:
        args = tyro.cli(AblationArgs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        run_ablation(args, variants)
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")
