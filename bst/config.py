"""What a run may vary: three frozen dataclasses whose fields are the flags of the scripts."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

Protocol = Literal["temporal", "leave-last-one", "random", "keras-windows", "cold-items"]
Ties = Literal["strict", "stable"]
Format = Literal["auto", "ml-1m", "ml-100k", "ml-csv"]


# Fields that came after results were published, each with the value at which it changes nothing:
# there it is left out of the hash, so that results keep their names.
LATER = {("model", "interest"): 0.0, ("model", "cold"): 0.0, ("data", "precision"): "fp32"}


def option(default, text: str):
    """A dataclass field with its default and its help text (which names the unit)."""
    return field(default=default, metadata={"help": text})


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which ratings, which split, which text encoder."""

    data: Path | None = option(
        None, "folder or zip of a data set, a CSV file of ratings, or a store that "
        "make_sequences.py wrote; none: the built-in synthetic data"
    )
    format: Format = option(
        "auto", "how the raw files are written (data/README.md); auto: told by their names"
    )
    metadata: Path | None = option(None, "Kaggle's movies_metadata.csv, for the overviews")
    on_bad: Literal["stop", "quarantine"] = option("stop", "what to do about a bad row")
    protocol: Protocol = option("temporal", "how ratings are split into train, valid and test")
    ties: Ties = option(
        "strict", "strict: a history has earlier timestamps only; stable: file order breaks ties"
    )
    split_seed: int = option(0, "seed of the protocols that draw at random")
    bert: str | None = option(
        None, "BERT folder or hub name for the overviews; none: the packaged MiniLM"
    )
    pooling: Literal["mean-last-two", "last", "second-to-last"] = option(
        "mean-last-two", "which hidden layers make the overview vector (BERT, Table 7)"
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32", "of BERT's matrix products; bf16: about twice as fast where the CPU has it, cosine "
        "0.9999 with fp32"
    )
    text_source: Literal["overview", "title", "shuffled", "random"] = option(
        "overview", "what BERT reads; shuffled: another film's overview, random: vectors of noise "
        "(controls)"
    )
    cache: Path = option(Path("data/cache"), "folder of cached overview vectors and base scores")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and parts of the network."""

    width: int = option(64, "width d of every token")
    heads: int = option(4, "attention heads; divides width")
    layers: int = option(1, "transformer layers, 0 to 4")
    history_len: int = option(200, "interactions of the history that a target sees, at most")
    readout: Literal["target", "flatten", "mean"] = option(
        "target", "what the MLP reads: the target's output, every position's (the paper), or the "
        "mean of the history's tokens beside the target's, without attention (needs layers 0)"
    )
    rating_input: Literal["both", "embedding", "residual", "multiply"] = option(
        "embedding", "how stars enter a history token: embedded, as the residual of the base "
        "score, both, or multiplied into it (the Keras example)"
    )
    position: Literal["both", "gap", "rank", "none"] = option(
        "both", "attention bias: time gap to the target, rank counted back from it"
    )
    genres: bool = option(True, "genres in the movie embedding")
    year: bool = option(True, "release year in the movie embedding")
    text: bool = option(True, "BERT vector of the overview in the movie embedding and the MLP")
    text_dim: int = option(32, "width of the overview vector that the MLP reads")
    user_id: bool = option(False, "embed the user's id (most test users are new under 'temporal')")
    user_features: bool = option(True, "embed sex, age group, occupation and zip region")
    feature_dim: int = option(8, "width of each user feature's embedding")
    dense: Literal["concat", "bucket", "piecewise", "none"] = option(
        "concat", "dense features: scaled into the MLP, bucketized and embedded, or scaled with a "
        "piecewise linear encoding"
    )
    buckets: int = option(16, "quantile buckets of a dense feature, with bucket and piecewise")
    base: Literal["neighbours", "factors", "bias", "mean"] = option(
        "neighbours", "what the network corrects: streaming factors with item neighbours, the "
        "factors alone, the streaming bias, or the train mean"
    )
    loss: Literal["mse", "huber", "ordinal"] = option(
        "mse", "mse and huber fit the stars; ordinal the likelihood of each star, through a "
        "cumulative link with a learned spread per target"
    )
    interest: float = option(
        0.0, "weight of a second loss, in nats: which film comes next, whatever its stars; 0: "
        "no such head"
    )
    hidden: tuple[int, int, int] = option((256, 128, 64), "widths of the three dense layers")
    dropout: float = option(0.2, "probability of zeroing, in [0, 1)")
    item_dropout: float = option(0.2, "probability that an item's id is replaced by OOV")
    cold: float = option(
        0.0, "share of train targets that are shown as if nobody had rated their film, in [0, 1); "
        "above 0, overviews of films without an id reach the base score alone"
    )

    def __post_init__(self) -> None:
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got width {self.width} and heads {self.heads}"
            )
        _check_range("layers", self.layers, 0, 4)
        _check_range("history-len", self.history_len, 0, 4096)
        _check_range("buckets", self.buckets, 2, 256)
        for name in ("dropout", "item_dropout", "cold"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0.0 <= self.interest <= 100.0:
            raise ValueError(f"interest must be in [0, 100], got {self.interest}")
        if self.layers == 0 and self.readout == "flatten":
            raise ValueError("readout 'flatten' needs a transformer layer, got layers 0")
        if self.layers > 0 and self.readout == "mean":
            raise ValueError(f"readout 'mean' has no attention, got layers {self.layers}, expected "
                             "layers 0")

    @property
    def shares_history(self) -> bool:
        """True when one pass over a user's history serves all of the user's targets.

        With one layer and target readout, no history token depends on the target.
        """
        return self.readout != "flatten" and self.layers <= 1


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are fitted."""

    epochs: int = option(2, "passes over the train targets, at most")
    batch_targets: int = option(1024, "targets per optimizer step, at most")
    lr: float = option(1e-3, "peak learning rate of AdamW")
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay")
    warmup: float = option(0.05, "fraction of all steps with rising learning rate; cosine after")
    clip: float = option(1.0, "largest norm of the gradient")
    patience: int = option(2, "epochs without a better validation MAE before stopping")
    save_every: int = option(100, "optimizer steps between resume points")
    seed: int = option(0, "seed of weights, order and dropout")
    deterministic: bool = option(True, "refuse operations that are not reproducible bit by bit")
    device: str = option("cpu", "cpu, cuda or mps")
    threads: int = option(0, "torch threads; 0: one per core")

    def __post_init__(self) -> None:
        _check_range("epochs", self.epochs, 1, 1000)
        _check_range("batch-targets", self.batch_targets, 1, 10**6)
        _check_range("patience", self.patience, 1, 1000)
        _check_range("save-every", self.save_every, 1, 10**9)
        if not 0.0 < self.lr < 1.0:
            raise ValueError(f"lr must be in (0, 1), got {self.lr}")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the numbers of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    def to_dict(self) -> dict:
        """JSON-ready nested dict; paths become strings, tuples lists."""
        return json.loads(json.dumps(asdict(self), default=str))

    def essentials(self) -> dict:
        """The fields that can change a result: `to_dict` without places and intervals."""
        fixed = self.to_dict()
        for name in ("cache", "data", "format", "metadata"):
            fixed["data"].pop(name)  # where and how, not what: the store has its hash
        for name in ("save_every", "threads"):
            fixed["train"].pop(name)
        for (part, name), neutral in LATER.items():
            if fixed[part][name] == neutral:
                fixed[part].pop(name)
        return fixed

    @property
    def hash(self) -> str:
        """Eight hex digits that change with any field that can change a result."""
        fixed = self.essentials()
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Name of the run's folder, unless told otherwise."""
        return f"{self.data.protocol}-{self.hash}"

    def with_seed(self, seed: int) -> "RunConfig":
        """The same run with another seed of training."""
        return replace(self, train=replace(self.train, seed=seed))


def from_dict(cls, values: dict):
    """The config of class `cls` that `to_dict` wrote.

    Raises:
        ValueError: on a name that is not a field of `cls`.
    """
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown}; it has {sorted(known)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def keras_example(config: RunConfig) -> RunConfig:
    """The setting of keras.io's "movielens_recommendations_transformers" inside this model.

    Window 4 (3 interactions and the target), flattened outputs, stars multiplied into the tokens,
    user id, sex, age group and occupation, genres; no text, no dense features.
    """
    model = replace(
        config.model, history_len=3, readout="flatten", rating_input="multiply", position="rank",
        year=False, text=False, user_id=True, dense="none", base="mean", heads=4,
    )
    return replace(config, data=replace(config.data, ties="stable"), model=model)
