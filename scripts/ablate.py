"""One study: the variants of a run, each trained with every seed, compared with the first one.

layer: both kinds of heads, one of them, none. dense: dense features concatenated (a), bucketized
and embedded (b), none. readout: of the target alone, or of all positions as in the paper, at equal
history. text: what the overview buys for items that nobody has rated, against controls that say
nothing. history: how far the softmax heads see. heads: the three regression heads against one; and
no word of who rated an item.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from bst.config import RunConfig
from scripts.studies.runs import AblationArgs, Variants, run_ablation
from scripts.support.command import command


def one_head(width: int) -> dict:
    """The fields of a single regression head."""
    return {"widths": (width,), "drift": (0.001,), "forgets": (0.001,), "key_var": (0.004,)}


STUDIES: dict[str, dict[str, dict]] = {  # what each variant changes in the model or the data
    "layer": {kind: {"attention": kind} for kind in ("both", "regression", "softmax", "none")},
    "dense": {"concat (a)": {"dense": "concat"}, "bucket (b)": {"dense": "bucket"},
              "no dense features": {"dense": "none"}},
    "readout": {f"{readout}, {length}": {"readout": readout, "history_len": length}
                for readout, length in (("target", 32), ("target", 16), ("flatten", 16))},
    "text": {"overview": {}, "no text": {"text": False},
             "shuffled overviews": {"text_source": "shuffled"},
             "random vectors": {"text_source": "random"}, "title": {"text_source": "title"}},
    "history": {f"softmax history of {n}": {"history_len": n} for n in (32, 4, 128)},
    "heads": {"three heads": {}, "one head of 16": one_head(16), "one head of 40": one_head(40),
              "no audience": {"audience": 0}},
}


@dataclass(frozen=True, kw_only=True)
class Args(AblationArgs):
    """Train every variant with every seed, then print, save and draw the comparison."""

    study: tyro.conf.Positional[Literal[*STUDIES]]
    """which study"""


def variants(study: str, base: RunConfig) -> Variants:
    """The variants of a study by name; that of the text is of items that nobody has rated."""
    if study == "text" and base.data.protocol == "temporal":
        base = replace(base, data=replace(base.data, protocol="cold-items"))
    found = {}
    for name, changes in STUDIES[study].items():
        model = {field: value for field, value in changes.items() if hasattr(base.model, field)}
        data = {field: value for field, value in changes.items() if field not in model}
        found[name] = replace(base, model=replace(base.model, **model),
                              data=replace(base.data, **data))
    return found


if __name__ == "__main__":
    command(lambda args: run_ablation(args, lambda base: variants(args.study, base)), Args, __doc__)
