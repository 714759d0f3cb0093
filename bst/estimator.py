"""The model on data frames: fit, predict, recommend, as in other libraries.

    model = bst.BST(seed=1).fit(ratings)
    model.recommend(["u1", "u2"], k=10)

Frames are of polars or pandas; results are of the kind that `fit` was given. Everything is done by
the functions behind the scripts: frames go to the readers of `--data` as parquet, a fitted model is
a run folder.
"""

import io
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from bst.config import Baseline, DataConfig, ModelConfig, RankBy, RunConfig, TrainConfig
from bst.data.preparation import make_store, open_store
from bst.data.schema import FIRST_IDX, OOV, rows_of
from bst.data.sequences import load_store, save_store
from bst.recommend.person import seconds
from bst.recommend.recommender import HistoryLike, Recommender
from bst.recommend.users import Users, table_of
from bst.run import compare, config_in, only_run_in, prepare, store_of, train_run, use_device
from bst.utils.errors import DataError, OptionError

Frame = Any  # a DataFrame of polars or pandas
GROUPS = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}


class BST:
    """A Behavior Sequence Transformer that predicts stars.

    Args:
        options: fields of `DataConfig`, `ModelConfig` and `TrainConfig`, such as seed=1,
            text=False or protocol="leave-last-one"; the flags of scripts/train.py. Training runs
            for `epochs`, or longer until it has made `steps` updates.

    Raises:
        OptionError: no such option, or not a value of it.
    """

    def __init__(self, **options: object) -> None:
        group_of = {f.name: group for group, cls in GROUPS.items() for f in fields(cls)}
        if unknown := sorted(set(options) - set(group_of)):
            raise OptionError(f"no option {unknown[0]}; there are {', '.join(sorted(group_of))}")
        for name, value in options.items():  # as a caller in Python writes what flags take
            if name == "item_features" and isinstance(value, (list, tuple)):
                options[name] = ",".join(value)
            elif name == "columns" and isinstance(value, dict):
                options[name] = ",".join(f"{key}={column}" for key, column in value.items())
            elif isinstance(value, list):
                options[name] = tuple(value)
        groups = {group: cls(**{name: value for name, value in options.items()
                                if group_of[name] == group}) for group, cls in GROUPS.items()}
        self.config, self._like = RunConfig(**groups), pl.DataFrame()
        self.folder: Path | None = None  # of the run

    def fit(self, ratings: Frame, items: Frame = None, users: Frame = None, *,
            folder: str | Path | None = None, verbose: bool = True) -> "BST":
        """Train. The last ratings are held out for early stopping and for `evaluate`, by protocol.

        Args:
            ratings: columns user_id, item_id, rating and, if known, datetime (or timestamp, in
                seconds); other usual names are known too, see data/README.md.
            items: one row per item: item_id and, if known, title, genres, year, text, and what the
                option item_features names.
            users: one row per user: user_id and any of sex, age, occupation, zip.
            folder: run folder, where training resumes if it was interrupted; None: one that is
                deleted with the model.
            verbose: print what is found and how training goes.

        Raises:
            DataError: a frame lacks a column or has a bad row; named as in a file, rows from 1.
        """
        if folder is None:
            folder = tempfile.mkdtemp(prefix="bst-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder = Path(folder)
        tables = {"ratings": as_polars(ratings), **{
            name: as_polars(frame) for name, frame in (("items", items), ("users", users))
            if frame is not None}}
        with redirect_stdout(sys.stdout if verbose else io.StringIO()):
            make_store_of(tables, self.config.data, folder / "store")
            config = replace(self.config, data=self.config.data.of_store(folder / "store"))
            use_device(config.train)
            with only_run_in(folder):
                train_run(prepare(config, report_dir=folder), folder)
        self._like = type(ratings)()
        self._open(folder, config)
        self._ids = self._ids.cast(tables["ratings"].schema.get("item_id", self._ids.dtype))
        return self

    @classmethod
    def load(cls, folder: str | Path) -> "BST":
        """The model of a run folder: of `save`, or of scripts/train.py with its data in place."""
        return cls()._open(Path(folder), config_in(Path(folder)))

    def save(self, folder: str | Path) -> None:
        """Copy the run, with the ratings that it was fitted on, to a new folder."""
        if Path(folder).exists():
            raise DataError(f"{folder} is there already, expected a new folder")
        has_store = (self._fitted().folder / "store").exists()
        store = None if has_store else open_store(self.config.data)  # of a run of scripts/train.py
        shutil.copytree(self.folder, folder)
        if store is not None:
            save_store(store, Path(folder) / "store")

    def evaluate(self, baselines: Sequence[Baseline] = ()) -> Frame:
        """Errors on the held-out test part, and those of the baselines; none named: all."""
        config = replace(self._fitted().config, baselines=tuple(baselines))
        rows = compare(prepare(config), self.folder)
        names = "scorer", "n", "mae", "mae_low", "mae_high", "rmse", "user_macro_mae", "mae_star"
        return self._given_back(pl.DataFrame(
            {name: [row.get(name) for row in rows] for name in names}))

    def predict(self, pairs: Frame) -> Frame:
        """The pairs with one more column, `prediction`: expected stars on the scale.

        An unknown user or item gets the prediction for an average one, with a warning. A pair that
        is rated has the stars it was given.

        Args:
            pairs: columns user_id and item_id and, if wanted, datetime (or timestamp, in seconds):
                only ratings before it count; without it all do.
        """
        table, users = as_polars(pairs), self._fitted().users
        for name in ("user_id", "item_id"):
            if name not in table.columns:
                raise DataError(f"no column {name} in {', '.join(table.columns)}; expected user_id "
                                "and item_id")
        at = next((seconds_of(table[name]) for name in ("datetime", "timestamp")
                   if name in table.columns), None)
        stars = users.predict(self._rows(table["user_id"]), self._items(table["item_id"]), at)
        give_back = pairs.assign if hasattr(pairs, "assign") else pairs.with_columns  # of pandas
        return give_back(prediction=stars)

    def recommend(self, users: Sequence, k: int = 10, *, exclude_seen: bool = True,
                  items: Sequence | None = None, at: datetime | int | None = None,
                  by: RankBy = "stars", exact: bool = False) -> Frame:
        """The k best items of each user: user_id, item_id, rank (from 1), score.

        The score is the expected stars, or see `by`. An unknown user gets the list for an average
        one, with a warning.

        Args:
            users: ids.
            k: items per user.
            exclude_seen: leave out what the user has rated before `at`.
            items: ids to choose from; None: all.
            at: a date, or seconds since 1970 UTC; None: a second after each user's last rating.
            by: stars, interest or both; see `Recommender.recommend`.
            exact: score the whole catalogue; else a shortlist, see `best_items`.
        """
        if isinstance(users, str) or hasattr(users, "columns"):
            raise DataError(f"users is one {type(users).__name__}, expected a list of ids")
        recommend, ids = self._fitted().users.recommend, column(users)
        at = None if at is None else int(seconds_of(column([at]))[0])
        if isinstance(items, str):
            raise DataError(f"items is the text {items!r}, expected a list of ids")
        among = None if items is None else self.recommender.catalogue.items(list(items))
        found, score = recommend(self._rows(ids), k, at=at, exclude_seen=exclude_seen,
                                 among=among, by=by, exact=exact)
        score = score if by != "stars" else np.clip(score, *self.recommender.scale)
        return self._given_back(table_of(ids, self._ids, found, score))

    def recommend_for(self, history: HistoryLike, k: int = 10, **options: object) -> Frame:
        """The k best items for anybody: item_id, title, rank, score (stars).

        Ranked `by` interest or both, also chance; see `Recommender.recommend`.

        Args:
            history: (item id, stars) or (item id, stars, seconds since 1970 UTC) of each rating.
            k: items.
            options: of `Recommender.recommend`.
        """
        found = self._fitted().recommender.recommend(history, k, **options)
        return self._given_back(pl.DataFrame({
            "item_id": [f.movie_id for f in found], "title": [f.title for f in found],
            "rank": range(1, len(found) + 1), "score": [f.stars for f in found],
            **({} if options.get("by", "stars") == "stars" else
               {"chance": [f.chance for f in found]})}))

    def similar(self, item: int | str, k: int = 10) -> Frame:
        """The k items that people like and dislike together with one: item_id, title, cosine."""
        rows = self._fitted().recommender.similar(item, k)
        return self._given_back(pl.DataFrame(rows, ["item_id", "title", "cosine"], orient="row"))

    def explain(self, user: int | str | HistoryLike, item: int | str) -> Frame:
        """What each rating of a user, or of a history, does to a prediction.

        Columns item_id, title, rating, difference (stars); see `Recommender.explain`.
        """
        is_id = isinstance(user, (int, str, np.integer))
        person = self._fitted().users.person(user) if is_id else user
        return self._given_back(pl.DataFrame(
            [(r.movie_id, r.title, r.rating, r.difference)
             for r in self.recommender.explain(person, item).reasons],
            ["item_id", "title", "rating", "difference"], orient="row"))

    def _open(self, folder: Path, config: RunConfig) -> "BST":
        self.config, self.folder = config, folder
        self.recommender = Recommender.from_pretrained(folder)
        self.users = Users(self.recommender, store_of(folder))
        self._ids = pl.Series(self.recommender.catalogue.ids)
        return self

    def _fitted(self) -> "BST":
        if self.folder is None:
            raise DataError("this model is not fitted yet; call fit, or BST.load")
        return self

    def _rows(self, ids: pl.Series) -> np.ndarray:
        """Rows of users, (n,); see `Users.rows`."""
        rows = self.users.rows(ids.cast(pl.String).str.strip_chars())
        _warn_of(ids, rows == len(self.users.ids), "users")
        return rows

    def _items(self, ids: pl.Series) -> np.ndarray:
        """Item indices, (n,); `OOV` for an item that is not in the catalogue."""
        rows = rows_of(ids.cast(pl.String).str.strip_chars(), self._ids).to_numpy()
        _warn_of(ids, rows < 0, "items")
        return np.where(rows < 0, OOV, rows.astype(np.int64) + FIRST_IDX)

    def _given_back(self, table: pl.DataFrame) -> Frame:
        """The table as a frame of the kind that the model was fitted on."""
        if isinstance(self._like, pl.DataFrame):
            return table
        return type(self._like)({name: table[name].to_numpy() for name in table.columns})


def make_store_of(tables: dict[str, pl.DataFrame], config: DataConfig, folder: Path) -> None:
    """Write the store of some frames, named like files, by the readers and rules of `config`."""
    with tempfile.TemporaryDirectory() as written:
        for name, table in tables.items():
            table.write_parquet(Path(written) / f"{name}.parquet")
        try:
            made = make_store(replace(config, data=Path(written)), Path(written) / "store")
        except DataError as error:
            raise type(error)(str(error).replace(f"{written}: ", "")) from error
        if folder.exists() and load_store(folder).digest != made.digest:
            raise DataError(f"{folder.parent} holds a run on other data; give another folder")
        save_store(made, folder)


def _warn_of(ids: pl.Series, is_unknown: np.ndarray, what: str) -> None:
    if is_unknown.any():
        warnings.warn(f"{is_unknown.sum()} of {len(ids)} {what} are not known, such as "
                      f"{ids.filter(is_unknown)[0]!r}", stacklevel=4)


def seconds_of(times: pl.Series) -> np.ndarray:
    """Seconds since 1970 UTC of dates, or of numbers by the rule of `person.seconds`, (n,)."""
    if times.dtype in (pl.Date, pl.Datetime):
        times = times.dt.epoch("s")
    return np.array([seconds(time, f"row {row}") for row, time in enumerate(times, start=1)],
                    dtype=np.int64)


def as_polars(frame: Frame) -> pl.DataFrame:
    """A frame of pandas or polars as one of polars; a DataError if it is none.

    By column, as `polars.from_pandas` needs pyarrow.
    """
    if isinstance(frame, (pl.DataFrame, pl.LazyFrame)):
        return frame.lazy().collect()
    if not hasattr(frame, "columns") or not hasattr(frame, "to_numpy"):
        raise DataError(f"expected a DataFrame of polars or pandas, got {type(frame).__name__}")
    if len(names := set(frame.columns)) < len(frame.columns):
        raise DataError(f"{len(frame.columns)} columns of {len(names)} names, expected each once: "
                        f"{', '.join(map(str, frame.columns))}")
    return pl.DataFrame({str(name): column(frame[name]) for name in frame.columns})


def column(values: Sequence) -> pl.Series:
    """Values of numpy, pandas, polars or a list; what is missing is null, odd types are text."""
    if isinstance(values, pl.Series):
        return values
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "iufbM":
        found = pl.Series(np.asarray(values), nan_to_null=True)
        is_whole = dtype.kind == "f" and (found.drop_nulls() % 1 == 0).all()
        return found.cast(pl.Int64, strict=False) if is_whole else found  # ids beside missing ones
    values = [None if not isinstance(value, str) and str(value) in ("nan", "NaT", "<NA>") else value
              for value in values]  # as numpy and pandas write what is missing
    with suppress(TypeError, pl.exceptions.PolarsError):
        found = pl.Series(values)
        if found.dtype != pl.Object:
            return found
    return pl.Series([None if value is None else str(value) for value in values], dtype=pl.String)
