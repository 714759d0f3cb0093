"""What the overview buys for films that nobody has rated, in protocol cold-items."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.ablation import Variants, main
from bst.config import RunConfig


def variants(base: RunConfig) -> Variants:
    """The real overviews, then controls that say nothing, and the title alone."""
    if base.data.protocol == "temporal":
        base = replace(base, data=replace(base.data, protocol="cold-items"))
    arms = {"overview": base, "no text": replace(base, model=replace(base.model, text=False))}
    for name, source in [("shuffled overviews", "shuffled"), ("random vectors", "random"),
                         ("title", "title")]:
        arms[name] = replace(base, data=replace(base.data, text_source=source))
    return arms


if __name__ == "__main__":
    main(__doc__, variants)
