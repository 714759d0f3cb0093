"""Write pics/README.md, the page of all result tables, from the JSON files beside it."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.support.command import guarded

NOTE = """\
Every table names its protocol and its seeds; ties are strict and the part is test unless it says
otherwise. Settings were chosen on valid; test was looked at to write these tables. Brackets are
95 % intervals by a bootstrap over users, whose draws cycle through the seeds: an interval is for
one run, not for their mean. `+-` is the standard deviation between seeds (n - 1). MAE and RMSE are
those of the expected stars; MAE* is the MAE after rounding to the nearest rating of the scale; user
MAE is the mean over users.

In the copy of MovieLens-1M used here about 9.8 % of the timestamps (users from 3000 on, 1 to 3
stars, first 80 % of time) are reconstructed to within about a minute; the valid and test periods of
`temporal` are verbatim. Hardware: one thread of an AMD EPYC, no GPU. Another kind of CPU or another
number of threads changes the last bits. This page is written by `scripts/write_results.py`;
`scripts/reproduce.py` makes everything in it again, with five seeds where a table has fewer."""
DID_NOT_HELP = """\
## What did not help

Tried on the valid part of MovieLens-1M with one seed each and left out, because the gain was as
small as the spread of the seeds, or negative: wider or more regression heads in one solve (two
copies with keys of their own, averaged, help where twice the width does not); learned prior
variances; smaller prior variances; items shown as unrated for
a whole batch; dropping events of the history; keys that the squared error does not reach;
twice or half the batch; a likelihood of a third of the weight; dense layers twice as wide, and
other dropout; a noise level of its own for each person (likelihood better, MAE the same); weights
that grow with time; the heads' innovations as features or tokens; a second, linear attention over
the residuals with tables of its own; 64 components of the audience instead of 32; starting the
softmax tokens from a product with the target; eight epochs instead of five or six.

## What helps on small data

Found on the valid part of generated sets, a random one among them; on MovieLens-1M it changes
little. An audience only for items whose raters rated much else: of the others it identifies the
raters instead of describing the item. Noise on what is learned per item, as wide as its ratings
leave it open: without it items with few ratings look the most certain in training. Tables in units
of their prior. A start that trusts a person's own level little: with random stars a small set ends
too early to unlearn more. A higher rate for all heads helps where nothing is to be learned, and
costs MovieLens-1M more than the spread of the seeds."""
SECTIONS = [  # heading, what to know before the table, file
    ("MovieLens-1M", "Version 1 (a Kalman-filtered factor model with item neighbours outside the "
     "network, corrected by a transformer; its code is gone) had MAE 0.6402 +- 0.0003, RMSE 0.8185 "
     "+- 0.0004, user MAE 0.6784, MAE* 0.5961 on the same rows, five seeds.", "results"),
    ("What the layer buys", "The heads of the one layer, taken away in turn.", "ablate_layer"),
    ("Trees on features made by hand", "LightGBM on the dense features, user features, genres, "
     "year, and item statistics taken out of fold; leaves and rounds chosen on valid "
     "(`scripts/compare_lightgbm.py`). It has no history but what the dense features sum up, and "
     "no item id, audience or overview, so the difference is not that of the method alone.",
     "lightgbm"),
    ("Dense features: concatenated (a) or bucketized (b)?", "", "ablate_dense"),
    ("Regression heads", "", "ablate_heads"),
    ("Length of the softmax heads' history", "The regression heads see all of it.",
     "ablate_history"),
    ("Which readout of the softmax heads?", "", "ablate_readout"),
    ("What does text buy for films that nobody has rated?", "Protocol `cold-items`: the held-out "
     "films have no rating in train or in any history.", "ablate_text"),
    ("Other shapes of data", "The default settings on generated data that go through the CSV "
     "reader; five seeds are five data sets (`scripts/shapes.py`).", "shapes"),
    ("leave-last-one", "The last rating of a user with three or more is test, the "
     "one before is valid.", "leave-last-one"),
    ("random", "85 / 5 / 10 % of the ratings; histories hold earlier train ratings.", "random"),
    ("keras-windows (LEAKY)", "The Keras example's window, features and split inside this model; "
     "for comparison only.", "keras-windows"),
    ("Ranking by what comes next", """\
Candidates are all items but those that the request sees; none is sampled. Equal scores: more train
ratings first. All are fitted on train; their settings were chosen on valid.

- `leave-last-one, stable`: each user's last rating, in file order, after all before it.
- `leave-last-one, strict`: after those of an earlier second only (43 % of the last ratings share
  theirs with the one before).
- `temporal, all later`: asked once, at the first rating after the 0.9 quantile of time, for all
  that follow.
- `temporal, successive`: before each of these, with all history before it.

Who is compared:

- **bst** is `--interest 6`, trained with the ties of the question (`all later`: with stable ones).
  It reads when it is asked, which is the time of the target, as HSTU does and SASRec does not.
- **SASRec** is that of RecTools 0.19.0 with its defaults, the cross-entropy of all items, width 64
  and length 200, in file order, on an H100, at its best epoch on valid, 54 and 60
  (`scripts/benchmarks/sasrec.py`). It is one run; the difference pairs each run of bst with it.
- What is *published* is of other code and one seed.
- **CPU seconds** are those of training, for bst of the stars and of the next-item head, on a core
  of an Intel Xeon that shares its arithmetic with a busy one.

Settings of the next-item head were compared on valid of `leave-last-one, stable` (NDCG@10, seed 0):

- ten epochs of width 64, rate 0.001 and dropout 0.2: 0.209;
- six epochs on an H100: width 128 0.210, with dropout 0.1 as well 0.218, or with twice the rate
  0.220; width 64 with both 0.213;
- in batches of four times as many events, half-way through eight epochs: 0.155, width 128 0.173,
  dropout 0.3 0.145, label smoothing of 0.1 0.154, a reach of 200 events instead of 64 0.154, a
  second layer of events 0.111.

Chosen: width 128 in two heads (four on the H100), rate 0.002, dropout 0.1.""",
     "ranking"),
]


def table(name: str, rows: list[dict]) -> str:
    """The Markdown table of a file."""
    from bst.evaluation.report import format_table
    from scripts.report import format_report
    from scripts.shapes import format_shapes
    from scripts.studies.runs import format_study
    from scripts.support.ranking import format_ranking

    if name.startswith("ablate_"):
        return format_study(rows, rows[0]["variant"])
    if name == "keras-windows":
        return f"```text\n{format_table(rows)}\n```"
    return {"ranking": format_ranking, "shapes": format_shapes}.get(name, format_report)(rows)


def page(folder: Path) -> str:
    """The whole page, of the files that are there."""
    parts = ["# Results", NOTE]
    for heading, text, name in SECTIONS:
        path = folder / f"{name}.json"
        if path.exists():
            parts += [f"## {heading}", *([text] if text else []),
                      table(name, json.loads(path.read_text()))]
            if (folder / f"{name}.png").exists():
                parts.append(f"![{heading}]({name}.png)")
    parts.append(DID_NOT_HELP)
    return "\n\n".join(parts) + "\n"


def main(folder: Path = Path("pics")) -> None:
    """Write FOLDER/README.md.

    Args:
        folder: where the JSON files are.
    """
    (folder / "README.md").write_text(page(folder))


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
