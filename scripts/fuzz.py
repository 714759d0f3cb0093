"""Fuzz every reader with atheris: whatever the bytes, only a DataError may escape.

An input that breaks this is kept in the folder of its target. Needs atheris, which is no part of
requirements.txt: pip install atheris==3.0.0.
"""

import io
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

Target = Literal["ml-1m", "ml-100k", "ml-csv", "zip", "metadata", "model", "resume"]
FLAGS = "0|1" + "|0" * 17
FILES = {  # good rows, which atheris takes apart
    "ml-1m": {"users.dat": "1::F::1::10::48067\n2::M::56::16::V0\n",
              "movies.dat": "1::Toy Story (1995)::Animation|Comedy\n3::Up & Away::Drama\n",
              "ratings.dat": "1::1::5::978300760\n2::1::3::978302109\n1::3::1::978300760\n"},
    "ml-100k": {"u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n",
                "u.item": f"1|Toy Story (1995)|01-Jan-1995||http://x/|{FLAGS}\n"
                          f"2|unknown||||{FLAGS}\n",
                "u.data": "1\t1\t5\t978300760\n2\t1\t3\t978302109\n1\t2\t1\t978300760\n"},
    "ml-csv": {"ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.5,978300760\n2,1,.5,978300\n",
               "movies.csv": 'movieId,title,genres\n1,"Toy, The (1995)",Drama|War\n2,Up,\n',
               "links.csv": "movieId,imdbId,tmdbId\n1,0114709,862\n2,0113497,\n"},
    "metadata": {"metadata.csv": "id,title,original_title,overview,release_date\n"
                                 '862,Toy Story,Toy,"A toy,\nand ""Buzz"".",1995-10-30\n'},
}


@dataclass(frozen=True)
class Args:
    """Fuzz readers."""

    targets: tuple[Target, ...] = get_args(Target)
    """what is read"""
    minutes: float = 10.0
    """of all targets together"""
    out: Path = Path("runs/fuzz")
    """folder of inputs, one folder a target; what an earlier run found is used again"""


def small_run(folder: Path) -> None:
    """A run folder with a model of a few weights, and a resume state."""
    from bst.batches import UserVocabulary
    from bst.checkpoint import save_model, save_resume
    from bst.config import ModelConfig
    from bst.model import BST, Sizes

    config = ModelConfig(width=2, heads=1, history_len=2, hidden=(2, 2, 2), text=False, buckets=2)
    model = BST(config, Sizes(items=2, known_items=1, genres=1, text=0, users=(3, 3, 3, 3, 3),
                              dense=28, levels=2))
    features = {name: ["a"] for name in ("sex", "age", "occupation", "zip_region")}
    save_model(folder, model, UserVocabulary([1], features), {"identity": {"hash": "0"}})
    save_resume(folder, {"step": 3, "model": dict(model.head.state_dict()), "best": [0.5, None]})


def reader(target: Target, folder: Path) -> tuple[dict[str, bytes], Callable[[], object]]:
    """Good files of a target, and what reads them in `folder`."""
    from bst.checkpoint import load_model, load_resume
    from bst.formats import read_tables
    from bst.overviews import read_metadata

    if target in ("model", "resume"):
        small_run(folder)
        names = ("resume.pt",) if target == "resume" else ("model.json", "model.safetensors")
        read = load_resume if target == "resume" else load_model
        return {name: (folder / name).read_bytes() for name in names}, lambda: read(folder)
    if target == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in FILES["ml-csv"].items():
                archive.writestr(f"ml/{name}", text)
        return {"all.zip": buffer.getvalue()}, lambda: read_tables(folder / "all.zip")
    files = {name: text.encode() for name, text in FILES[target].items()}
    if target == "metadata":
        return files, lambda: read_metadata(folder / "metadata.csv")
    return files, lambda: read_tables(folder, format=target, on_bad="quarantine", report_dir=folder)


def fuzz(target: Target, seconds: int, out: Path) -> None:
    """Does not return: the process ends when the time is over or an input breaks the promise."""
    import atheris
    import polars  # noqa: F401 -- what is imported before is not instrumented
    import safetensors.torch  # noqa: F401
    import torch

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    log = os.open(out / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with atheris.instrument_imports(include=["bst"]):
        import bst.checkpoint  # noqa: F401
        import bst.formats  # noqa: F401
    from bst.files import write_sealed
    from bst.schema import DataError
    good, read = reader(target, folder)
    for k, content in enumerate(good.values()):  # the first byte says which file the others are
        (out / f"seed-{k}").write_bytes(bytes([k]) + content)

    def one(data: bytes) -> None:
        name = list(good)[(data[0] if data else 0) % len(good)]
        for other, content in good.items():
            write_sealed(folder / other, data[1:] if other == name else content)
        try:
            read()
        except DataError as error:
            assert "\n" not in str(error), "an error of more than one line"

    flags = [f"-max_total_time={seconds}", f"-artifact_prefix={out}/", "-max_len=8192",
             "-print_final_stats=1", "-timeout=20", "-rss_limit_mb=4096", str(out)]
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


def main(args: Args) -> int:
    """One process a target; the number of targets that broke the promise."""
    broken, seconds = 0, round(60 * args.minutes / len(args.targets))
    for target in args.targets:
        out = args.out / target
        child = os.fork()  # this process has no threads yet: torch is imported by the children
        if not child:
            fuzz(target, seconds, out)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log = (out / "log.txt").read_text(errors="replace")
        count = re.findall(r"number_of_executed_units: *(\d+)", log)
        found = sorted(p.name for p in out.glob("*-*") if not p.name.startswith("seed"))
        broken += status != 0
        print(f"{target:<10}{seconds:>6} s{int(count[-1]) if count else 0:>12,} inputs  "
              f"exit {status}  {'kept: ' + ', '.join(found) if found else ''}", flush=True)
    return broken


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
