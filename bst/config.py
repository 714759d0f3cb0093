"""What a run may vary: three frozen dataclasses whose fields are the flags of the scripts."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, get_args, get_origin

from bst.utils.errors import OptionError

Part = Literal["train", "valid", "test"]
Protocol = Literal["temporal", "leave-last-one", "random", "keras-windows", "cold-items"]
Ties = Literal["strict", "stable"]
OnBad = Literal["stop", "quarantine"]
Pooling = Literal["mean-last-two", "last", "second-to-last"]
RankBy = Literal["stars", "interest", "both"]
Baseline = Literal["none", "global mean", "item mean", "user mean", "user + item bias",
                   "streaming bias", "matrix factorisation", "item kNN"]
PLACES = ("data", "metadata", "cache")  # fields of `DataConfig` that are paths
OF_RAW = ("metadata", "format", "columns", "item_features", "repeats")  # those of raw files alone


def option(default, text: str, within: str | None = None):
    """A dataclass field and its help; `within` ("[0, 1)") bounds a number, or each of a tuple."""
    text += f"; in {within}" if within else ""
    return field(default=default, metadata={"help": text, "within": within})


def check_option(name: str, value: object, options: type) -> None:
    """Refuse a value that a Literal type does not list: an OptionError names it and those."""
    if value not in get_args(options):
        listed = ", ".join(map(repr, get_args(options)))
        raise OptionError(f"{name} must be one of {listed}, got {value!r}")


class Options:
    """A dataclass whose fields are checked, from Python and from the command line."""

    def __post_init__(self) -> None:
        for f in fields(self):
            name, value = f.name.replace("_", "-"), getattr(self, f.name)
            if f.type is bool or get_origin(f.type) is Literal:
                check_option(name, value, Literal[True, False] if f.type is bool else f.type)
            elif f.metadata.get("within"):
                _check_numbers(name, value, f.type, f.metadata["within"])


def _check_numbers(name: str, value: object, kind: type, within: str) -> None:
    """Refuse what is not a number of this type in the interval, or not a tuple of them."""
    low, high = map(float, within[1:-1].split(","))
    parts = get_args(kind)  # of a tuple
    wanted = Integral if int in (kind, *parts) else Real
    numbers = value if parts else (value,)
    is_right = isinstance(numbers, tuple) and (
        not parts or parts[-1] is Ellipsis or len(numbers) == len(parts))
    if not is_right or not all(
            isinstance(x, wanted) and low <= x <= high
            and (x > low or within[0] == "[") and (x < high or within[-1] == "]")
            for x in numbers):
        what = f"{len(parts)} numbers" if parts and parts[-1] is not Ellipsis else "numbers"
        raise OptionError(f"{name} must be {what if parts else 'a number'} in {within}"
                          f"{', whole' if wanted is Integral else ''}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """Which ratings, which split, which text encoder."""

    data: Path | None = option(
        None, "folder, zip, file of ratings, or store; none: the built-in data")
    format: Literal["auto", "ml-1m", "ml-10m", "ml-100k", "table"] = option(
        "auto", "how the raw files are written (data/README.md); auto: told by their names")
    metadata: Path | None = option(None, "Kaggle's movies_metadata.csv, for the overviews")
    on_bad: OnBad = option("stop", "what to do about a bad row")
    columns: str | None = option(
        None, "names of columns, if they are not the usual ones: user=...,item=...,rating=...,"
        "time=..., or places 1,2,3,4 of a file without a header; rating=none: it has none; "
        "of an item table title=...,genres=...,text=...,year=...")
    item_features: str | None = option(
        None, "further columns of the item table to use as features, such as author,pages")
    repeats: Literal["last", "first", "stop"] = option(
        "last", "which rating of an item counts that a user rates again; stop: an error")
    protocol: Protocol = option("temporal", "how ratings are split into train, valid and test")
    ties: Ties = option(
        "strict", "strict: a history has earlier timestamps only; stable: file order breaks ties")
    tie_order: Literal["file", "shuffled"] = option(
        "file", "order of a user's ratings of one time: as in the file, or drawn with split-seed")
    split_seed: int = option(0, "seed of the protocols that draw at random", "[0, 2147483647]")
    bert: str | None = option(
        None, "BERT folder or hub name for the overviews; none: the packaged MiniLM")
    pooling: Pooling = option(
        "mean-last-two", "which hidden layers make the overview vector (BERT, Table 7)")
    text_source: Literal["overview", "title", "shuffled", "random"] = option(
        "overview", "what BERT reads; shuffled and random are controls")
    cache: Path = option(Path("data/cache"), "folder of cached overview vectors")

    @property
    def is_store(self) -> bool:
        """Whether `data` is the folder of a store, else raw files."""
        return self.data is not None and (self.data / "manifest.json").exists()

    def of_store(self, folder: Path) -> "DataConfig":
        """For a store made with this: no flags of raw files but `on_bad`, which is in the hash."""
        return replace(self, data=folder, **{name: getattr(DataConfig, name) for name in OF_RAW})


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Options):
    """Sizes and parts of the network."""

    attention: Literal["both", "regression", "softmax", "none"] = option(
        "both", "heads of the one layer; none: the history is in the dense features only")
    widths: tuple[int, ...] = option((16, 8, 16), "width of each regression head", "[1, 4096]")
    ensemble: int = option(
        2, "copies of the regression heads; their predictions are averaged", "[1, 64]")
    drift: tuple[float, ...] = option(
        (0.001, 0.05, 0.003), "initial clock step of each regression head per rating; the "
        "correlation after one step is exp(-drift)", "(0, 1000]")
    forgets: tuple[float, ...] = option(
        (0.001, 0.05, 0.003), "initial clock step of each per log hour", "(0, 1000]")
    key_var: tuple[float, ...] = option(
        (0.004, 0.002, 0.001), "prior variance of the item embeddings of each", "(0, 1000]")
    width: int = option(32, "width of the softmax heads' tokens", "[1, 4096]")
    heads: int = option(2, "softmax heads; divides width", "[1, 4096]")
    history_len: int = option(
        32, "events that softmax heads see, at most; regression heads see all", "[1, 4096]")
    readout: Literal["target", "flatten"] = option(
        "target", "outputs of the softmax heads that are read: at the target, or, as in the paper, "
        "at every position")
    genres: bool = option(True, "genres in the item embedding")
    year: bool = option(True, "release year in the item embedding")
    audience: int = option(
        32, "principal components of who rated an item, at most; 0: none", "[0, 512]")
    text: bool = option(True, "BERT vector of the overview in the item embedding and in the MLP")
    user_id: bool = option(False, "embed the user's id (most test users are new under 'temporal')")
    user_features: bool = option(True, "embed sex, age group, occupation and zip region")
    feature_dim: int = option(8, "width of a user feature's or a bucket's embedding", "[1, 4096]")
    dense: Literal["concat", "bucket", "none"] = option(
        "concat", "dense features: scaled and concatenated, or bucketized and embedded, or none")
    buckets: int = option(16, "quantile buckets of a dense feature, with bucket", "[2, 256]")
    interest: int = option(
        0, "epochs of the next-item head, which learns which item is rated next; 0: no such head",
        "[0, 1000]")
    hidden: tuple[int, int, int] = option((128, 64, 32), "widths of the MLP", "[1, 65536]")
    dropout: float = option(0.1, "probability of zeroing", "[0, 1)")
    item_dropout: float = option(
        0.02, "probability that the item of a train target is shown as unrated", "[0, 1)")
    doubt: float = option(
        1.0, "scale of the noise on item ids in training; 1: their posterior std", "[0, 10]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise OptionError(f"width must be a multiple of heads, got width {self.width} and "
                              f"heads {self.heads}")
        found = [f"{name} {len(getattr(self, name))}"
                 for name in ("widths", "drift", "forgets", "key_var")]
        if not self.widths or len({word.split()[1] for word in found}) > 1:
            raise OptionError("the regression heads need as many values in each field, got "
                              + ", ".join(found))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """How the weights are fitted."""

    epochs: int = option(
        5, "passes over the train targets, or more until `steps` updates are made", "[1, 1000]")
    steps: int = option(
        600, "optimizer steps of each task, at least, unless patience ends it", "[1, 1000000000]")
    batch_size: int = option(
        2048, "work of an optimizer step, at most: events, padded ones included, or targets that "
        "cost as much; a longer history is a step of its own", "[1, 10000000]")
    lr: float = option(
        6e-3, "peak learning rate for the regression heads, item content and users", "(0, 1)")
    lr_items: float = option(
        0.05, "peak rate for item ids, in standard deviations of their prior", "(0, 1)")
    lr_dense: float = option(
        1e-3, "peak rate for softmax heads and the MLP; the next-item head has twice it", "(0, 1)")
    weight_decay: float = option(0.01, "of what learns at lr_dense, decoupled", "[0, 1]")
    average: float = option(
        0.1, "length of the running mean of the weights as a share of all steps; 0: none", "[0, 1)")
    warmup: float = option(0.03, "share of the steps with rising rate; cosine after", "[0, 1)")
    clip: float = option(1.0, "largest norm of the gradient", "(0, 1000000]")
    patience: float = option(
        0.3, "share of all epochs without a better validation metric before stopping", "(0, 1]")
    save_every: int = option(100, "optimizer steps between resume points", "[1, 1000000000]")
    seed: int = option(0, "seed of weights, order and dropout", "[0, 2147483647]")
    deterministic: bool = option(True, "refuse operations whose bits are not reproducible")
    device: str = option("cpu", "cpu, cuda or mps")
    threads: int = option(0, "torch threads; 0: one per core", "[0, 4096]")


@dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """Everything that decides the numbers of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    baselines: tuple[Baseline, ...] = ()  # to compare with; (): all that are fast enough

    def __post_init__(self) -> None:
        for name in self.baselines:
            check_option("baselines", name, Baseline)

    def to_dict(self) -> dict:
        """JSON-ready nested dict; paths become strings, tuples lists."""
        return json.loads(json.dumps(asdict(self), default=str))

    def essentials(self) -> dict:
        """The fields that can change a result: `to_dict` without places and intervals."""
        fixed = self.to_dict()
        del fixed["baselines"]
        for name in {*PLACES, *OF_RAW}:
            fixed["data"].pop(name)  # they decide the store, whose digest identifies it
        for name in ("save_every", "threads"):
            fixed["train"].pop(name)
        return fixed

    def differences(self, other: dict) -> list[str]:
        """Flags in which the essentials of this config differ from those of a `to_dict`."""
        return [f"--{name.replace('_', '-')} was {other[group].get(name)}, is {value}"
                for group, values in self.essentials().items() for name, value in values.items()
                if other[group].get(name) != value]

    @property
    def hash(self) -> str:
        """Eight hex digits that change with any field that can change a result on a store."""
        text = json.dumps(self.essentials(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Default name of the run's folder."""
        data = [self.data.data.name.partition(".")[0]] if self.data.data else []
        return "-".join([*data, self.data.protocol, self.hash])


def from_dict(cls, values: dict):
    """The config of class `cls` that `to_dict` wrote; an OptionError on a name of no field."""
    types = {f.name: f.type for f in fields(cls)}
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise OptionError(f"{cls.__name__} has no field {unknown}; it has {sorted(types)}")

    def typed(name: str, value: object) -> object:
        if is_dataclass(types[name]):
            return from_dict(types[name], value)
        if name in PLACES and value is not None:
            return Path(value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: typed(name, value) for name, value in values.items()})


def keras_example(config: RunConfig) -> RunConfig:
    """The setting of keras.io's "movielens_recommendations_transformers" inside this model.

    Window 4 (3 interactions and the target), flattened outputs of a softmax layer, user id, sex,
    age group and occupation, genres; no regression heads, audience, text or dense features.
    """
    model = replace(
        config.model, attention="softmax", width=64, heads=4, history_len=3, readout="flatten",
        year=False, audience=0, text=False, user_id=True, dense="none")
    return replace(config, data=replace(config.data, ties="stable"), model=model)
