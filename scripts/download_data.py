"""Fetch MovieLens-1M from GroupLens, resume if interrupted, check it, unpack it.

movies_metadata.csv needs a Kaggle account; the script says how to get it.
"""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

from scripts.support.command import guarded

URL = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
MD5 = "c4d9eecfca2ab87c1945afe126590906"
KAGGLE = """movies_metadata.csv: Kaggle asks for a (free) account, so fetch it by hand:
  1. open https://www.kaggle.com/datasets/rounakbanik/the-movies-dataset
  2. download movies_metadata.csv and put it at {path}"""
MEMBERS = ("ratings.dat", "movies.dat", "users.dat", "README")


def download(url: str, part: Path) -> None:
    """Append what is missing of `url` to `part`; a progress bar on a terminal."""
    import urllib.request

    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + have * resumed
        with open(part, "ab" if resumed else "wb") as file, \
                tqdm(total=total, initial=have * resumed, unit="B", unit_scale=True,
                     desc=part.stem, disable=None) as bar:
            while chunk := answer.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))


def unpack(archive: Path, folder: Path) -> None:
    """The known members of the zip, by name alone: no path of the zip is followed."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as content:
        for name in MEMBERS:
            (folder / name).write_bytes(content.read(f"ml-1m/{name}"))


def main(out: Path = Path("data"), url: str = URL, md5: str = MD5) -> None:
    """Download, check, unpack.

    Args:
        out: folder that gets ml-1m/.
        url: where the zip is.
        md5: what the zip must hash to.
    """
    out.mkdir(parents=True, exist_ok=True)
    part = out / "ml-1m.zip.part"
    if all((out / "ml-1m" / name).exists() for name in MEMBERS):
        print(f"{out / 'ml-1m'} is already there")
    else:
        try:
            download(url, part)
        except OSError as error:
            sys.exit(f"error: cannot reach {url} ({error}); what came so far is kept, run this "
                     "again when online, or put the three .dat files into data/ml-1m yourself")
        found = hashlib.md5(part.read_bytes()).hexdigest()
        if found != md5:
            part.unlink()
            sys.exit(f"error: {url} has md5 {found}, expected {md5}; the file was deleted, run "
                     "this again")
        unpack(part, out / "ml-1m")
        os.replace(part, out / "ml-1m.zip")
        print(f"MovieLens-1M is in {out / 'ml-1m'}; its licence forbids redistribution")
    print(KAGGLE.format(path=out / "movies_metadata.csv"))


if __name__ == "__main__":
    guarded(lambda: tyro.cli(main, description=__doc__))
