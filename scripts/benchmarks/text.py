"""Overviews per second, sorted by length, against batches in file order with the same encoder."""

from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, alternate

NOTE = "lowest cosine with the reference {:.6f}"


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Overviews per second, sorted by length, against batches in file order in fp32."""

    metadata: Path | None = None
    """Kaggle's movies_metadata.csv; none: overviews of the built-in synthetic data"""
    texts: int = 512
    """overviews, the first of the file"""


def run(args: Args) -> list[Row]:
    """Time the three ways and compare their vectors."""
    import torch

    from bst.data.text import encoder_folder, load_encoder

    torch.set_num_threads(args.threads)
    texts, encoder = overviews(args), load_encoder(encoder_folder(None))
    vectors = {}
    by_length = sorted(range(len(texts)), key=lambda k: -len(texts[k]))
    orders = {"reference": range(len(texts)), "sorted": by_length, "bf16": by_length}

    def embed(name: str) -> None:
        precision = "bf16" if name == "bf16" else "fp32"
        vectors[name] = in_order(texts, orders[name], encoder, precision)

    seconds = alternate({name: lambda name=name: embed(name) for name in orders}, args.runs)
    rate = {name: len(texts) / taken.of(args.threads) for name, taken in seconds.items()}
    jobs = (("overviews, sorted by length, fp32 (default)", "sorted", 3.0),
            ("overviews, sorted by length, --precision bf16", "bf16", 3.0))
    unit = "texts / CPU s" if args.threads == 1 else "texts / s"
    return [Row(work, rate[name], unit, "fp32 in file order", rate["reference"],
                rate[name] / rate["reference"], goal, rate[name] >= goal * rate["reference"],
                NOTE.format(lowest_cosine(vectors["reference"], vectors[name])))
            for work, name, goal in jobs]


def overviews(args: Args) -> list[str]:
    """The first texts of the metadata, or synthetic ones."""
    import tempfile

    from bst.data.overviews import read_metadata
    from bst.data.synthetic import write_synthetic

    with tempfile.TemporaryDirectory() as scratch:
        path = args.metadata or write_synthetic(Path(scratch)) / "movies_metadata.csv"
        films, _ = read_metadata(path)
    return [film["overview"] for film in films[:args.texts]]


def in_order(texts: list[str], order: list[int], encoder: tuple, precision: str):
    """Vector of each text, (n, t) float32, embedded in batches along `order`."""
    import numpy as np

    from bst.data.text import BATCH, embed_batch

    order = np.array(order)
    found = [embed_batch([texts[k] for k in order[low:low + BATCH]], *encoder, "mean-last-two",
                         precision) for low in range(0, len(order), BATCH)]
    vectors = np.empty((len(texts), found[0].shape[1]), dtype=np.float32)
    vectors[order] = np.concatenate(found)
    return vectors


def lowest_cosine(a, b) -> float:
    """Smallest cosine between rows of the same number."""
    import numpy as np

    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).min())
