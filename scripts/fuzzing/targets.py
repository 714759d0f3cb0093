"""Good files of every reader, for atheris to take apart.

Modules of bst are imported by the functions: what is imported earlier is not instrumented.
"""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Target = Literal["ml-1m", "ml-100k", "table", "zip", "metadata", "model", "fitted", "resume"]
GENRE_FLAGS = "0|1" + "|0" * 17
IDENTITY = {"hash": "0", "data": "1"}
ROWS = {  # of each file of a data set
    "ml-1m": {"users.dat": "1::F::1::10::48067\n2::M::56::16::V0\n",
              "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n3::Up & Away::Drama\n",
              "ratings.dat": "1::1::5::978300760\n2::1::3::978302109\n1::3::1::978300760\n"},
    "ml-100k": {"u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
                "u.item": f"1|Toy Story (1995)|01-Jan-1995||http://x/|{GENRE_FLAGS}\n"
                          f"2|unknown||||{GENRE_FLAGS}\n",
                "u.data": "1\t1\t5\t978300760\n2\t1\t3\t978302109\n1\t2\t1\t978300760\n"},
    "table": {"ratings.csv": "userId,movieId,rating,timestamp\n"
                              "1,1,4.5,978300760\n2,1,.5,978300761\n",
               "movies.csv": 'movieId,title,genres\n1,"Toy, The (1995)",Drama|War\n2,Up,\n',
               "links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n2,0113497,\n"},
    "metadata": {"metadata.csv": "id,title,original_title,overview,release_date\n"
                                 '862,Toy Story,Toy,"A toy,\nand ""Buzz"".",1995-10-30\n'},
}


def small_run(folder: Path) -> Path:
    """`folder` with a model of a few weights in it, what was fitted beside it, a resume state."""
    from bst.config import ModelConfig
    from bst.data.schema import USER_FEATURES
    from bst.model.batches import UserVocabulary
    from bst.model.network import Network, Sizes
    from bst.training.checkpoint import (
        FITTED_VERSION,
        Fitted,
        save_fitted,
        save_model,
        save_resume,
    )

    config = ModelConfig(widths=(2,), drift=(0.1,), forgets=(0.1,), key_var=(0.1,), width=2,
                         heads=1, history_len=2, hidden=(2, 2, 2), text=False, buckets=2)
    model = Network(config, Sizes(items=2, known_items=1, content=4, text=0, overview=0, audience=1,
                              users=(3, 3, 3, 3, 3), levels=2))
    vocabulary = UserVocabulary([1], {name: ["a"] for name in USER_FEATURES})
    save_model(folder, model, vocabulary, {"identity": IDENTITY})
    save_fitted(folder, Fitted(
        FITTED_VERSION, IDENTITY, {"protocol": "temporal", "ties": "strict", "seed": 0},
        {"bert": None, "pooling": "last", "text_source": "overview"},
        ["Drama"], {"item_id": [1, 3], "title": ["a", "b"], "year": [1995, None],
                    "genres": [["Drama"], []], "ratings": [2, 0]},
        {"values": {"genres": ["Drama"]}, "scales": {"year": [1995.0, 1.0, False]}}))
    save_resume(folder, {"step": 3, "model": dict(model.head.state_dict()), "best": [0.5, None]})
    return folder


def reader(target: Target, folder: Path) -> tuple[dict[str, bytes], Callable[[], object]]:
    """Good files of a target, and what reads them in `folder`."""
    from bst.data.formats import read_tables
    from bst.data.overviews import read_metadata
    from bst.training.checkpoint import load_fitted, load_model, load_resume

    of_run = {"model": (load_model, "model.json", "model.safetensors"),
              "fitted": (lambda folder: load_fitted(folder, IDENTITY), "fitted.json"),
              "resume": (load_resume, "resume.pt")}
    if target in of_run:
        small_run(folder)
        read, *names = of_run[target]
        return {name: (folder / name).read_bytes() for name in names}, lambda: read(folder)
    if target == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in ROWS["table"].items():
                archive.writestr(f"ml/{name}", text)
        return {"all.zip": buffer.getvalue()}, lambda: read_tables(folder / "all.zip")
    files = {name: text.encode() for name, text in ROWS[target].items()}
    if target == "metadata":
        return files, lambda: read_metadata(folder / "metadata.csv")
    return files, lambda: read_tables(folder, format=target, on_bad="quarantine", report_dir=folder)
