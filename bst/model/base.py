"""What the network corrects: a score that is known before each rating, and how it came about."""

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from bst.data.sequences import SequenceStore
from bst.data.splits import Split
from bst.data.text import TextVectors
from bst.model import factors, features, kalman, neighbours
from bst.model.factors import FOLDS, Factors, user_values
from bst.model.features import Base, History, item_bias, streaming_bias
from bst.model.kalman import Reading, read_histories, streaming_reading
from bst.model.neighbours import Neighbours, add_neighbours, fit_neighbours
from bst.utils.files import write_atomic
from bst.utils.packing import pack, unpack

BLAS_THREADS = 2  # of numpy, on any machine: their number decides the last bits, cores do not
CODE = [Path(__file__), *(Path(m.__file__) for m in (factors, features, kalman, neighbours))]


@dataclass(frozen=True)
class BaseFit:
    """What a base has fitted on train: enough to score any history. See `bst/model/people.py`."""

    kind: str  # `ModelConfig.base`
    mean: float  # train stars
    factors: Factors | None
    folds: tuple[Factors, ...]  # fitted without each group of users, for the ratings of train
    neighbours: Neighbours | None
    user_values: tuple[tuple[str, str], ...]  # columns of `factors.user_features`


@dataclass(frozen=True)
class _Parts:
    """What takes a minute on MovieLens-1M, and is kept in the cache."""

    reading: Reading
    sums: np.ndarray  # (n,) float32, see `Neighbours`
    factors: Factors
    folds: tuple[Factors, ...]
    neighbours: Neighbours


def base_scores(
    store: SequenceStore, split: Split, kind: str, text: TextVectors | None = None, *,
    cache_dir: Path | None = None,
) -> Base:
    """The base at every position of the store; see `fit_base`."""
    return fit_base(store, split, kind, text, cache_dir=cache_dir)[1]


def fit_base(
    store: SequenceStore, split: Split, kind: str, text: TextVectors | None = None, *,
    cache_dir: Path | None = None,
) -> tuple[BaseFit, Base]:
    """Fit on train, and score every position of the store.

    Args:
        store: sequences.
        split: which ratings are train, and what each target may see.
        kind: `ModelConfig.base`: `neighbours` adds item neighbours to the streaming factors.
        text: overview vectors, for the prior of the factors.
        cache_dir: factors and neighbours take a minute on MovieLens-1M, so they are kept here.
    """
    empty = np.zeros(len(store), dtype=np.float32)
    mean = item_bias(store, split)[0]
    if kind in ("mean", "bias"):
        score = np.full_like(empty, mean) if kind == "mean" else streaming_bias(store, split)
        return BaseFit(kind, mean, None, (), None, ()), Base(score, empty, empty, empty)
    parts = _cached_parts(store, split, text, cache_dir)
    score, doubt = parts.reading.score, parts.reading.doubt
    fit = BaseFit(kind, mean, parts.factors, parts.folds, parts.neighbours,
                  tuple(user_values(store.users)))
    if kind == "factors":
        return replace(fit, neighbours=None), Base(score, score, empty, doubt)
    with_neighbours = add_neighbours(parts.neighbours.slope, score, parts.sums)
    return fit, Base(with_neighbours, score, parts.sums, doubt)


def cold_base(
    store: SequenceStore, split: Split, fit: BaseFit, base: Base, text: TextVectors | None
) -> Base:
    """The base of each train target if nobody had rated its film, and 0 elsewhere.

    The histories are read as they are. Where the film would be follows from genres, year and
    overview, by slopes that its ratings had a small part in.

    Args:
        store: sequences.
        split: which ratings are train, and what each target may see.
        fit: of the base.
        base: of the real targets.
        text: overview vectors that the base was fitted with.
    """
    score, doubt, empty = np.zeros((3, len(store)), dtype=np.float32)
    if not fit.folds:
        score[split.train] = base.score[split.train]
        if fit.kind == "bias":
            item = store.item_idx[split.train]
            score[split.train] -= item_bias(store, split)[1][item].astype(np.float32)
        return Base(score, empty, empty, empty)
    history, fold = History.of(store, split), store.user_row[split.train] % FOLDS
    for k, fitted in enumerate(fit.folds):
        rows = split.train[fold == k]
        reading = read_histories(fitted, store, history, rows,
                                 as_targets=fitted.unrated(store, text))
        score[rows], doubt[rows] = reading.score, reading.doubt
    return Base(score, score, empty, doubt)


def _cached_parts(
    store: SequenceStore, split: Split, text: TextVectors | None, cache_dir: Path | None
) -> _Parts:
    """The parts, read from a file whose name has its sha256, or computed."""
    if cache_dir is None:
        return _parts(store, split, text)
    key = _key(store, split, text)
    for path in cache_dir.glob(f"base-{key}-*.safetensors"):
        content = path.read_bytes()
        if path.stem.endswith(hashlib.sha256(content).hexdigest()[:16]):
            return unpack(_Parts, content)
        print(f"{path}: damaged, the base is computed again", file=sys.stderr)
        path.unlink()
    parts = _parts(store, split, text)
    content = pack(parts)
    digest = hashlib.sha256(content).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(cache_dir / f"base-{key}-{digest}.safetensors", content)
    return parts


def _parts(store: SequenceStore, split: Split, text: TextVectors | None) -> _Parts:
    print("computing base scores: factors, then neighbours", file=sys.stderr)
    with threadpool_limits(BLAS_THREADS, user_api="blas"):
        reading, factors, folds = streaming_reading(store, split, text)
        neighbours, sums = fit_neighbours(store, split, reading.score, folds=FOLDS)
    return _Parts(reading, sums, factors, folds, neighbours)


def _key(store: SequenceStore, split: Split, text: TextVectors | None) -> str:
    """Sixteen hex digits of all that decides the parts, the code and its threads included."""
    digest = hashlib.sha256(store.digest.encode())
    for values in (split.train, split.history_stop, split.is_history):
        digest.update(np.ascontiguousarray(values))
    if text is not None:
        digest.update(np.ascontiguousarray(text.vectors))
        digest.update(np.ascontiguousarray(text.has_text))
    for path in CODE:  # a change makes caches stale
        digest.update(path.read_bytes())
    digest.update(f"{torch.get_num_threads()} threads".encode())  # they decide the last bits
    return digest.hexdigest()[:16]
