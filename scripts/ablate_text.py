"""What the overview buys for films that nobody has rated, in protocol cold-items."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.ablation import AblationArgs, Variants, run_ablation
from bst.config import RunConfig
from bst.schema import DataError


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
    try:
        args = tyro.cli(AblationArgs, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        run_ablation(args, variants)
    except (DataError, ValueError) as error:
        sys.exit(f"error: {error}")
