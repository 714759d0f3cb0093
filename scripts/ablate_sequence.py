"""What reading the history in order buys: attention, position, length, how stars enter."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """One change at a time."""
    changes = {
        "transformer": {},
        "no sequence (base and features only)": {"layers": 0},
        "mean pooling": {"layers": 0, "readout": "mean"},
        "no position (order shuffled)": {"position": "none"},
        "position: gap only": {"position": "gap"},
        "position: rank only": {"position": "rank"},
        "history of 4": {"history_len": 4},
        "history of 20": {"history_len": 20},
        "history of 512": {"history_len": 512},
        "stars multiplied into the token": {"rating_input": "multiply"},
        "stars as residual": {"rating_input": "residual"},
        "stars and residual": {"rating_input": "both"},
        "two layers, target readout": {"layers": 2, "history_len": 20},
    }
    return {n: replace(base, model=replace(base.model, **c)) for n, c in changes.items()}


if __name__ == "__main__":
    main(__doc__, variants)
