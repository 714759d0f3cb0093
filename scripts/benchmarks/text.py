"""Overviews per second, one at a time, against padded batches with the same encoder."""

from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.common import Common, Row, alternate

BATCH = 32  # of the reference
NOTE = "lowest cosine with the reference {:.6f}"


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Overviews per second, one at a time, against padded batches in file order."""

    metadata: Path | None = None
    """Kaggle's movies_metadata.csv; none: overviews of the built-in synthetic data"""
    texts: int = 512
    """overviews, the first of the file"""


def run(args: Args) -> list[Row]:
    """Time the two ways and compare their vectors."""
    import torch

    from bst.data.text import encoder_folder, load_encoder

    torch.set_num_threads(args.threads)
    texts, encoder = overviews(args), load_encoder(encoder_folder(None))
    vectors, ways = {}, {"reference": in_batches, "alone": one_by_one}

    def embed(name: str) -> None:
        vectors[name] = ways[name](texts, *encoder)

    seconds = alternate({name: lambda name=name: embed(name) for name in ways}, args.runs)
    rate = {name: len(texts) / taken.of(args.threads) for name, taken in seconds.items()}
    goal = 3.0
    unit = "texts / CPU s" if args.threads == 1 else "texts / s"
    return [Row("overviews, one at a time", rate["alone"], unit, "in file order", rate["reference"],
                rate["alone"] / rate["reference"], goal, rate["alone"] >= goal * rate["reference"],
                NOTE.format(lowest_cosine(vectors["reference"], vectors["alone"])))]


def overviews(args: Args) -> list[str]:
    """The first texts of the metadata, or synthetic ones."""
    import tempfile

    from bst.data.overviews import read_metadata
    from scripts.support.synthetic import write_synthetic

    with tempfile.TemporaryDirectory() as scratch:
        path = args.metadata or write_synthetic(Path(scratch)) / "movies_metadata.csv"
        films, _ = read_metadata(path)
    return [film["overview"] for film in films[:args.texts]]


def one_by_one(texts: list[str], tokenizer, model):
    """Vector of each text as `embed_texts` makes it, (n, t) float32."""
    import numpy as np

    from bst.data.text import embed_text

    return np.stack([embed_text(text, tokenizer, model, "mean-last-two") for text in texts])


def in_batches(texts: list[str], tokenizer, model):
    """The same from batches in file order, padded to their longest text."""
    import numpy as np
    import torch

    from bst.data.text import MAX_TOKENS, pool

    found = []
    for low in range(0, len(texts), BATCH):
        tokens = tokenizer(texts[low:low + BATCH], padding=True, truncation=True,
                           max_length=MAX_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens, output_hidden_states=True).hidden_states
        found.append(pool(states, tokens["attention_mask"], "mean-last-two").numpy())
    return np.concatenate(found)


def lowest_cosine(a, b) -> float:
    """Smallest cosine between rows of the same number."""
    import numpy as np

    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).min())
