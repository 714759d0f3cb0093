"""What the network corrects: a score that is known before each rating, and how it came about."""

import hashlib
import io
import sys
from pathlib import Path

import numpy as np
import torch

from bst import factors, features, neighbours
from bst.factors import FOLDS, streaming_reading
from bst.features import Base, item_bias, streaming_bias
from bst.files import write_atomic
from bst.neighbours import add_neighbours, neighbour_sum
from bst.sequences import SequenceStore, Split
from bst.text import TextVectors

CODE = [Path(m.__file__) for m in (factors, features, neighbours)]  # a change makes caches stale


def base_scores(
    store: SequenceStore, split: Split, kind: str, text: TextVectors | None = None, *,
    cache_dir: Path | None = None,
) -> Base:
    """The base at every position of the store.

    Args:
        store: sequences.
        split: which ratings are train, and what each target may see.
        kind: `ModelConfig.base`: `neighbours` adds item neighbours to the streaming factors.
        text: overview vectors, for the prior of the factors.
        cache_dir: factors and neighbours take a minute on MovieLens-1M, so they are kept here.
    """
    empty = np.zeros(len(store), dtype=np.float32)
    if kind == "mean":
        return Base(np.full_like(empty, item_bias(store, split)[0]), empty, empty, empty)
    if kind == "bias":
        return Base(streaming_bias(store, split), empty, empty, empty)
    parts = _cached_parts(store, split, text, cache_dir)
    if kind == "factors":
        return Base(parts[0], parts[0], empty, parts[1])
    return Base(add_neighbours(store, split, parts[0], parts[2]), parts[0], parts[2], parts[1])


def _cached_parts(
    store: SequenceStore, split: Split, text: TextVectors | None, cache_dir: Path | None
) -> np.ndarray:
    """Factor scores, doubts and neighbour sums: (3, n) float32. The file's name has its sha256."""
    if cache_dir is None:
        return _parts(store, split, text)
    key = _key(store, split, text)
    for path in cache_dir.glob(f"base-{key}-*.npy"):
        if path.stem.endswith(hashlib.sha256(path.read_bytes()).hexdigest()[:16]):
            return np.load(path, allow_pickle=False)
        print(f"{path}: damaged, the base is computed again", file=sys.stderr)
        path.unlink()
    content = io.BytesIO()
    np.save(content, _parts(store, split, text))
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(cache_dir / f"base-{key}-{digest}.npy", content.getvalue())
    return np.load(io.BytesIO(content.getvalue()), allow_pickle=False)


def _parts(store: SequenceStore, split: Split, text: TextVectors | None) -> np.ndarray:
    print("computing base scores: factors, then neighbours", file=sys.stderr)
    reading = streaming_reading(store, split, text)
    sums = neighbour_sum(store, split, reading.score, folds=FOLDS)
    return np.stack([reading.score, reading.doubt, sums])


def _key(store: SequenceStore, split: Split, text: TextVectors | None) -> str:
    """Sixteen hex digits of all that decides the parts, the code and its threads included."""
    digest = hashlib.sha256(store.digest.encode())
    for values in (split.train, split.history_stop, split.is_history):
        digest.update(np.ascontiguousarray(values))
    if text is not None:
        digest.update(np.ascontiguousarray(text.vectors))
        digest.update(np.ascontiguousarray(text.has_text))
    for path in CODE:
        digest.update(path.read_bytes())
    digest.update(f"{torch.get_num_threads()} threads".encode())  # they decide the last bits
    return digest.hexdigest()[:16]
