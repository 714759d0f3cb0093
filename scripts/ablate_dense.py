"""Dense features: concatenated (a), bucketized and embedded (b), piecewise linear, or left out."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """The arms by name, the reference first."""
    return {
        name: replace(base, model=replace(base.model, dense=dense))
        for name, dense in [("concat (a)", "concat"), ("bucket (b)", "bucket"),
                            ("piecewise linear", "piecewise"), ("no dense features", "none")]
    }


if __name__ == "__main__":
    main(__doc__, variants)
