"""What the network adds to each base score that it may correct."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.ablation import AblationArgs, Variants, run_ablation
from bst.config import RunConfig
from bst.schema import DataError


def variants(base: RunConfig) -> Variants:
    """Each base with the transformer, and without it."""
    arms = {}
    for kind in ("neighbours", "factors", "bias", "mean"):
        arms[f"{kind}, transformer"] = replace(base, model=replace(base.model, base=kind))
        arms[f"{kind}, no sequence"] = replace(base, model=replace(base.model, base=kind, layers=0))
    return arms


if __name__ == "__main__":
    try:
        args = tyro.cli(AblationArgs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        run_ablation(args, variants)
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")
