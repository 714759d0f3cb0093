"""A run as one program that needs torch alone: anybody's ratings in, stars of items out.

    program = torch.export.load("run.pt2").module()
    stars = program(movie, rating, time, user, at, target)

It is the network itself, called as `Recommender.score` calls it. This module adds the lookup of
ids and of rated items, and the layout of one person's ratings in chunks.

j ratings, i items asked about.
"""

import copy
import io
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from bst.data.schema import FIRST_IDX, OOV
from bst.model.batches import CHUNK, Batch
from bst.model.layers import Chunks, RegressionHeads
from bst.recommend.recommender import Recommender
from bst.utils.files import write_atomic

ABOUT = "about.json"  # a file inside the program: all that its user must know
INPUTS = {  # of a program, in order
    "movie": "(j,) int64, ids of the rated items, or, where ids are text, their places in `movies` "
             "from 0; each once, in any order; j may be 0",
    "rating": "(j,) float32, stars, each of `levels`",
    "time": "(j,) int64, seconds since 1970 UTC; equal times count in the order given",
    "user": "(4,) int64, a code of each feature of `users`: place of the value in its list plus 2; "
            "1 where it is not known",
    "at": "() int64, seconds since 1970 UTC of the question, after all times",
    "target": "(i,) int64, the items asked about, as in `movie`; i is 1 or more",
}
OUTPUT = (
    "(i,) float32, expected stars, by which items are ranked; clamp them to `levels` to show them. "
    "A rated item has the stars it was given. NaN: the item is unknown, or (all of them) a rated "
    "item is, a rating is none of `levels`, or a time is not before `at`"
)


class LoopedHeads(RegressionHeads):
    """Regression heads with a loop that `torch.export` keeps; it would unroll one of Python."""

    def scan(self, state: Tensor, chunks: Chunks) -> tuple[list, Tensor]:
        """The state after the last chunk alone, which is all that a request needs."""
        size = torch.ones_like(chunks.late[0, :, 0, 0]).sum().long()  # chunks

        def goes_on(k: Tensor, _: Tensor) -> Tensor:
            return k < size

        def body(k: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            one = Chunks(*(x.index_select(1, k[None])[:, 0] for x in chunks))
            return k + 1, self.chunk(state, one)[1]

        return [], torch.while_loop(goes_on, body, (torch.tensor(0), state))[1]


class Program(nn.Module):
    """Scores anybody on any item of the catalogue of a recommender, which is left as it is."""

    def __init__(self, recommender: Recommender) -> None:
        super().__init__()
        ids = numbers(recommender)
        self.model = copy.deepcopy(recommender.model)
        self.model.interest = None
        if self.model.regression is not None:
            self.model.regression.__class__ = LoopedHeads
        self.is_strict = recommender.fitted.protocol["ties"] == "strict"
        order = ids.argsort()
        self.register_buffer("ids", ids[order])
        self.register_buffer("index", order + FIRST_IDX)
        self.eval().requires_grad_(False)

    def forward(self, movie: Tensor, rating: Tensor, time: Tensor, user: Tensor, at: Tensor,
                target: Tensor) -> Tensor:
        """See `INPUTS` and `OUTPUT`."""
        time, order = time.sort(stable=True)
        rated, rating, asked = self._items(movie[order]), rating[order], self._items(target)
        # One chunk more, so that no row is empty. `item()` makes the count a symbol of its own:
        # torch.export fails on shapes that are formulas of the number of ratings.
        chunks = (torch.ones_like(time).sum() // CHUNK + 1).item()
        torch._check(chunks >= 1)
        slot = torch.arange(chunks)[:, None] * CHUNK + torch.arange(CHUNK)
        source = slot + 1 + time.shape[0] - chunks * CHUNK  # 0: none

        def events(values: Tensor) -> Tensor:
            return F.pad(values, (1, 0))[source.clamp(min=0)][None]

        start = torch.cat([time, at[None]])[:1]
        zero = torch.zeros_like(at)[None, None, None]
        stars = self.model(Batch(
            event_item=events(rated), event_rating=events(rating),
            event_time=events(time - start), target_item=asked[None, None],
            target_time=(at - start)[None, None], stop=zero + CHUNK,
            user=F.pad(user, (1, 0), value=OOV)[None], label=zero.float(), position=zero,
            is_request=True))
        is_early = (time < at) if self.is_strict else (time <= at)
        given = torch.full((len(self.index) + FIRST_IDX,), torch.nan).scatter(0, rated, rating)
        stars = torch.where(given[asked].isnan(), stars[0, 0], given[asked])
        fits = is_early & (rated != OOV) & (rating[:, None] == self.model.levels).any(dim=1)
        return torch.where(fits.all() & (asked != OOV), stars, torch.nan)

    def _items(self, movie: Tensor) -> Tensor:
        """Item index of each item, OOV of an unknown one."""
        row = torch.searchsorted(self.ids, movie).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[row] == movie, self.index[row], OOV)


def numbers(recommender: Recommender) -> Tensor:
    """What the program calls each item of the catalogue, (items,) int64; see `INPUTS`."""
    ids = recommender.catalogue.ids
    return torch.tensor(range(len(ids)) if isinstance(ids[0], str) else ids)


def export_program(recommender: Recommender, path: Path) -> None:
    """Write a program of `torch.export` to a `.pt2` file; `ABOUT` inside says how to use it.

    Raises:
        OSError: it cannot be written.
    """
    ids = numbers(recommender)
    history, items = torch.arange(5), torch.arange(3)  # any sizes: both are free in the program
    example = (ids[history % len(ids)], history.float(), history, torch.full((4,), OOV),
               torch.tensor(len(history)), ids[items % len(ids)])
    of_history = {0: Dim("ratings", min=0)}
    shapes = (of_history, of_history, of_history, None, None, {0: Dim("items", min=1)})
    exported = torch.export.export(Program(recommender), example, dynamic_shapes=shapes)
    about = {"inputs": INPUTS, "output": OUTPUT, "levels": recommender.model.levels.tolist(),
             "users": recommender.vocabulary.features, "movies": recommender.catalogue.ids,
             "protocol": recommender.fitted.protocol, "run": recommender.fitted.identity,
             "torch": torch.__version__}
    content = io.BytesIO()
    torch.export.save(exported, content, extra_files={ABOUT: json.dumps(about)})
    write_atomic(path, content.getvalue())
