"""A finished run as a folder for the Hugging Face Hub: the model, a card, no rating of the data.

FOLDER/model.safetensors model.json    as in the run folder, without the ids of the users
FOLDER/fitted.json                     as there, without places of a machine
FOLDER/config.json results.json        as there, without places of a machine
FOLDER/sums.json                       sha256 of each of these files
FOLDER/README.md                       the card
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bst.config import DataConfig
from bst.evaluation.report import METRICS, best_baseline, read_results, scored, write_results
from bst.model.network import Network
from bst.training import checkpoint
from bst.utils.errors import DataError
from bst.utils.files import write_atomic, write_sealed
from scripts.support.synthetic import BUILTIN

LOCAL_FIELDS = ("data", "metadata", "bert")  # of `DataConfig`: may hold paths of a machine
CARD = Path(__file__).with_name("card.md")  # a Jinja template


def publish(run: Path, out: Path) -> list[str]:
    """Write the folder `out`, whole or not at all; the model in the card has its name.

    Returns:
        What `out` holds of the data, see `holdings`.

    Raises:
        DataError: `run` is no finished run, or `out` is there.
        OSError: `out` cannot be written.
    """
    if out.exists():
        raise DataError(f"{out} is there already, expected a new folder; delete it or choose "
                        "another")
    model, vocabulary, info = checkpoint.load_model(run)
    fitted = checkpoint.load_fitted(run, info["identity"])
    encoder = {**fitted.encoder, "bert": _name(fitted.encoder["bert"])}
    movies = {name: values for name, values in fitted.movies.items() if name != "overview"}
    fitted = replace(fitted, encoder=encoder, movies=movies)
    rows = scored(read_results(run / "results.json"))
    if "paired" not in rows[0]:
        raise DataError(f"{run}: its results have no baseline, expected one for the card; train "
                        "with the default --baselines")
    config = checkpoint.config_of(run)
    config["data"] |= {field: _name(config["data"][field]) for field in LOCAL_FIELDS}
    config["data"]["cache"] = str(DataConfig().cache)
    about = {name: info[name] for name in ("identity", "step")}
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        checkpoint.save_model(temporary, model, replace(vocabulary, user_id=[]), about)
        checkpoint.save_fitted(temporary, fitted)
        write_sealed(temporary / "config.json", json.dumps(config, indent=2).encode())
        write_results(rows, temporary / "results.json", write=write_sealed)
        held = holdings(model, fitted)
        card = model_card(out.name, config, fitted, rows, held)
        write_atomic(temporary / "README.md", str(card).encode())  # yours to edit: not sealed
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return held


def _name(place: str | None) -> str | None:
    """The last part of a path; hub names and None stay as they are."""
    if place is None or (place.count("/") == 1 and not Path(place).exists()
                         and not place.startswith(("/", ".", "~"))):
        return place
    return Path(place).name


def holdings(model: Network, fitted: checkpoint.Fitted) -> list[str]:
    """What a folder with this model holds of its training data, one line each."""
    lines = [f"ids, titles, years, genres and features of {len(fitted.movies['title']):,} items",
             "of each item, how many train ratings it has, and a vector learned from them"]
    if model.config.text:
        lines.append("vectors that BERT made of the items' texts, not the texts")
    if model.config.user_id:
        lines.append("a learned vector of each user of the training, without the id")
    return lines


def model_card(
    name: str, config: dict, fitted: checkpoint.Fitted, rows: list[dict], held: list[str]
) -> ModelCard:
    """The card, as the Hub reads it; `rows` are those of the results, the first one is bst's."""
    ours, data = rows[0], config["data"]["data"]
    data = None if data == BUILTIN.name else data
    shown = data or "bst synthetic"
    slug = shown.lower().replace(" ", "-")
    about = ModelCardData(
        language="en", library_name="bst", pipeline_tag="tabular-regression", model_name=name,
        license="other" if data else "mit",
        license_name="terms-of-the-training-data" if data else None,
        tags=["recommender-system", "sequential-recommendation", "behavior-sequence-transformer"],
        datasets=[slug], metrics=["mae", "rmse"],
        eval_results=[EvalResult(
            task_type="tabular-regression", task_name="rating prediction", dataset_type=slug,
            dataset_name=shown, dataset_split=ours["part"],
            dataset_config=f"{ours['protocol']}, ties {ours['ties']}", metric_type=metric,
            metric_name=text, metric_value=round(ours[metric], 4),
            metric_args={"interval_95": [round(ours[f"{metric}_{side}"], 4)
                                         for side in ("low", "high")]},
        ) for metric, text in METRICS.items()],
    )
    return ModelCard.from_template(
        about, CARD, name=name, data=data, identity=fitted.identity, held=held, rows=rows,
        ours=ours, rival=best_baseline(rows), measured=METRICS)
