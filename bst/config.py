"""What a run may vary: three frozen dataclasses whose fields are the flags of the scripts."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin

Protocol = Literal["temporal", "leave-last-one", "random", "keras-windows", "cold-items"]
Ties = Literal["strict", "stable"]
Format = Literal["auto", "ml-1m", "ml-100k", "ml-csv"]
OnBad = Literal["stop", "quarantine"]
Pooling = Literal["mean-last-two", "last", "second-to-last"]
Precision = Literal["fp32", "bf16"]


def option(default, text: str):
    """A dataclass field with its default and its help text (which names the unit)."""
    return field(default=default, metadata={"help": text})


def check_option(name: str, value: object, options: type) -> None:
    """Refuse a value that a Literal type does not list.

    Raises:
        ValueError: names the field, the value and the options.
    """
    if value not in get_args(options):
        known = ", ".join(map(repr, get_args(options)))
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


class _Options:
    """A dataclass whose Literal fields are checked, in Python as on the command line."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if get_origin(f.type) is Literal:
                check_option(f.name, getattr(self, f.name), f.type)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be in {low}..{high}, got {value}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Options):
    """Which ratings, which split, which text encoder."""

    data: Path | None = option(
        None, "folder or zip of a data set, a CSV file of ratings, or a store that "
        "make_sequences.py wrote; none: the built-in synthetic data"
    )
    format: Format = option(
        "auto", "how the raw files are written (data/README.md); auto: told by their names"
    )
    metadata: Path | None = option(None, "Kaggle's movies_metadata.csv, for the overviews")
    on_bad: OnBad = option("stop", "what to do about a bad row")
    protocol: Protocol = option("temporal", "how ratings are split into train, valid and test")
    ties: Ties = option(
        "strict", "strict: a history has earlier timestamps only; stable: file order breaks ties"
    )
    split_seed: int = option(0, "seed of the protocols that draw at random")
    bert: str | None = option(
        None, "BERT folder or hub name for the overviews; none: the packaged MiniLM"
    )
    pooling: Pooling = option(
        "mean-last-two", "which hidden layers make the overview vector (BERT, Table 7)"
    )
    precision: Precision = option(
        "fp32", "of BERT's matrix products; bf16: about twice as fast where the CPU has it, cosine "
        "0.9999 with fp32"
    )
    text_source: Literal["overview", "title", "shuffled", "random"] = option(
        "overview", "what BERT reads; shuffled: another film's overview, random: vectors of noise "
        "(controls)"
    )
    cache: Path = option(Path("data/cache"), "folder of cached overview vectors")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Options):
    """Sizes and parts of the network."""

    attention: Literal["both", "regression", "softmax", "none"] = option(
        "both", "heads of the one layer: those that solve a regression over the history, those "
        "that average it, both, or none (no history but for the dense features)"
    )
    widths: tuple[int, ...] = option(
        (16, 8, 16), "width of each regression head; their sum is the width of a copy's key"
    )
    ensemble: int = option(
        2, "independent copies of the regression heads, each with its own keys, whose means are "
        "averaged"
    )
    drift: tuple[float, ...] = option(
        (0.001, 0.05, 0.003), "how far the taste of each regression head drifts from one rating to "
        "the next, at first: their correlation is exp of minus that"
    )
    forgets: tuple[float, ...] = option(
        (0.001, 0.05, 0.003), "the same per log hour between them, at first"
    )
    key_var: tuple[float, ...] = option(
        (0.004, 0.002, 0.001), "prior variance of what is learned per item, in each regression "
        "head: what few ratings say falls back to genres, year and overview"
    )
    width: int = option(32, "width of the softmax heads' tokens")
    heads: int = option(2, "softmax heads; divides width")
    history_len: int = option(
        32, "events of the history that a target's softmax heads see, at most; the regression "
        "heads see all"
    )
    readout: Literal["target", "flatten"] = option(
        "target", "what the dense layers read of the softmax heads: the target's output, or every "
        "position's, as in the paper"
    )
    genres: bool = option(True, "genres in the item embedding")
    year: bool = option(True, "release year in the item embedding")
    audience: int = option(
        32, "principal components of who rated an item, in the item embedding, at most; 0: none"
    )
    text: bool = option(True, "BERT vector of the overview in the item embedding and dense layers")
    user_id: bool = option(False, "embed the user's id (most test users are new under 'temporal')")
    user_features: bool = option(True, "embed sex, age group, occupation and zip region")
    feature_dim: int = option(8, "width of the embedding of a user feature or a bucket")
    dense: Literal["concat", "bucket", "none"] = option(
        "concat", "dense features: scaled and concatenated, or bucketized and embedded"
    )
    buckets: int = option(16, "quantile buckets of a dense feature, with bucket")
    loss: Literal["mse", "huber", "ordinal"] = option(
        "mse", "mse and huber fit the stars; ordinal the likelihood of each star, through a "
        "cumulative link with a learned spread per target"
    )
    interest: float = option(
        0.0, "weight of a second loss, in nats: which film comes next, whatever its stars; 0: "
        "no such head"
    )
    hidden: tuple[int, int, int] = option((128, 64, 32), "widths of the three dense layers")
    dropout: float = option(0.1, "probability of zeroing, in [0, 1)")
    item_dropout: float = option(
        0.02, "probability that a train target is shown as if nobody had rated its item, in [0, 1)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got width {self.width} and heads {self.heads}"
            )
        lengths = {name: len(getattr(self, name))
                   for name in ("widths", "drift", "forgets", "key_var")}
        if not self.widths or len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {size}" for name, size in lengths.items())
            raise ValueError(f"the regression heads need as many values in each field, got {found}")
        if min(self.widths) < 1 or min(*self.drift, *self.forgets, *self.key_var) <= 0:
            raise ValueError("widths, drift, forgets and key-var must be above 0, got "
                             f"{self.widths}, {self.drift}, {self.forgets} and {self.key_var}")
        _check_range("history-len", self.history_len, 1, 4096)
        _check_range("buckets", self.buckets, 2, 256)
        _check_range("audience", self.audience, 0, 512)
        _check_range("ensemble", self.ensemble, 1, 64)
        for name in ("dropout", "item_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0.0 <= self.interest <= 100.0:
            raise ValueError(f"interest must be in [0, 100], got {self.interest}")
        if self.interest and (self.attention not in ("both", "softmax")
                              or self.readout != "target"):
            raise ValueError("interest needs softmax heads with the readout target, got attention "
                             f"{self.attention} and readout {self.readout}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Options):
    """How the weights are fitted."""

    epochs: int = option(5, "passes over the train targets, at most; see steps")
    steps: int = option(
        600, "optimizer steps, at least: a small data set gets as many more epochs as these take"
    )
    batch_size: int = option(
        2048, "events of an optimizer step, padded ones included, at most"
    )
    lr: float = option(6e-3, "peak learning rate of Adam for the heads and the item tables")
    lr_dense: float = option(1e-3, "the same for the softmax heads and the dense layers")
    weight_decay: float = option(0.01, "decoupled weight decay of the latter")
    average: float = option(
        0.1, "share of all steps that the running mean of the weights reaches back, which is the "
        "model; 0: none"
    )
    warmup: float = option(0.03, "fraction of all steps with rising learning rate; cosine after")
    clip: float = option(1.0, "largest norm of the gradient")
    patience: float = option(
        0.3, "share of all epochs without a better validation MAE before stopping"
    )
    save_every: int = option(100, "optimizer steps between resume points")
    seed: int = option(0, "seed of weights, order and dropout")
    deterministic: bool = option(True, "refuse operations that are not reproducible bit by bit")
    device: str = option("cpu", "cpu, cuda or mps")
    threads: int = option(0, "torch threads; 0: one per core")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range("epochs", self.epochs, 1, 1000)
        _check_range("batch-size", self.batch_size, 1, 10**7)
        _check_range("steps", self.steps, 1, 10**9)
        _check_range("save-every", self.save_every, 1, 10**9)
        for name in ("lr", "lr_dense"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        for name in ("warmup", "average"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0.0 < self.patience <= 1.0:
            raise ValueError(f"patience must be in (0, 1], got {self.patience}")


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Options):
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

    Window 4 (3 interactions and the target), flattened outputs of a softmax layer, user id, sex,
    age group and occupation, genres; no regression heads, audience, text or dense features.
    """
    model = replace(
        config.model, attention="softmax", width=64, heads=4, history_len=3, readout="flatten",
        year=False, audience=0, text=False, user_id=True, dense="none",
    )
    return replace(config, data=replace(config.data, ties="stable"), model=model)
