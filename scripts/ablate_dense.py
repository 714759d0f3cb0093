"""Dense features: concatenated (a), bucketized and embedded (b), piecewise linear, or left out."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.ablation import AblationArgs, Variants, run_ablation
from bst.config import RunConfig
from bst.schema import DataError


def variants(base: RunConfig) -> Variants:
    """The arms by name, the reference first."""
    return {
        name: replace(base, model=replace(base.model, dense=dense))
        for name, dense in [("concat (a)", "concat"), ("bucket (b)", "bucket"),
                            ("piecewise linear", "piecewise"), ("no dense features", "none")]
    }


if __name__ == "__main__":
    try:
        args = tyro.cli(AblationArgs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        run_ablation(args, variants)
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")
