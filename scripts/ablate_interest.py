"""What the second head, which film comes next, costs the stars."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """Stars alone, and both heads at three weights."""
    weights = {f"with interest, weight {w:g}": w for w in (0.03, 0.1, 0.3)}
    return {name: replace(base, model=replace(base.model, interest=weight))
            for name, weight in {"stars alone": 0.0, **weights}.items()}


if __name__ == "__main__":
    main(__doc__, variants)
