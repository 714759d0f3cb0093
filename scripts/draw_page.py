"""Draw pics/page.png: the page on a desktop and on a phone, with invented films.

Serves a run on the built-in data, whose films get names and overviews that are made up here, gives
stars to a few of them in a headless Chromium, and takes both pictures. Needs a run of
`python scripts/train.py --out RUN`, fastapi, uvicorn and Chromium.
"""

import base64
import re
import shutil
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.utils.errors import DataError
from bst.utils.guard import command

NAMES = ("{0} and {1}, The", "Last {0}, The", "Beyond the {0}", "{0}'s {1}, The", "{0} at Dawn",
         "A {0} Without a {1}", "Return of the {0}", "Midnight {0}", "My Friend the {0}",
         "{0} of Ghent, The", "Two {0}s", "Once a {0}", "Letters to a {0}", "Summer of the {0}",
         "Nobody's {0}", "Red {0}, The", "Quiet {0}, A", "{0}, {1}", "Where the {0} Ends",
         "{0} Street", "Goodbye, {0}", "Hundred {0}s, A")


@dataclass(frozen=True)
class Args:
    """Draw the page."""

    model: Path
    """run folder, of the built-in data"""
    out: Path = Path("pics/page.png")
    """where the PNG goes"""


def invented(movies: dict[str, list]) -> dict[str, list]:
    """The films with names and overviews in the words of their synthetic overviews."""
    from bst.data.synthetic import THEMES

    known = {word for words in THEMES.values() for word in words.split()}
    titles, overviews, taken = [], [], set()
    for k, (overview, year) in enumerate(zip(movies["overview"], movies["year"], strict=True)):
        words = [w for w in re.findall(r"\w+", overview or "") if w in known]
        words = (list(dict.fromkeys(words)) + THEMES["stage"].split())[:5]
        names = (NAMES[(k + turn) % len(NAMES)].format(*(w.title() for w in words[turn % 3:]))
                 for turn in range(len(NAMES)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        first, second, third, fourth, fifth = (f"{'an' if w[0] in 'aeiou' else 'a'} {w}"
                                               for w in words)
        titles.append(f"{name} ({year})")
        overviews.append(f"{first.capitalize()}, {second} and {third}: what begins as {fourth} ends "
                         f"as {fifth}, and nobody in town will ever speak of it again.")
    return movies | {"title": titles, "overview": overviews}


@contextmanager
def serving(model: Path):
    """The address of a service of the run with invented films, in a thread."""
    import uvicorn

    from bst.serving.app import create_app
    from bst.serving.worker import Models
    from bst.training.checkpoint import load_fitted, load_model, save_fitted
    from scripts.serve import listen

    with tempfile.TemporaryDirectory() as place, listen("127.0.0.1", 0) as listening:
        folder = Path(shutil.copytree(model, Path(place) / "run"))
        fitted = load_fitted(folder, load_model(folder)[2]["identity"])
        save_fitted(folder, replace(fitted, movies=invented(fitted.movies)))
        server = uvicorn.Server(uvicorn.Config(create_app(Models(folder)), log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def main(args: Args) -> None:
    """Serve, look, write."""
    from scripts.support.browser import CHROMIUM, Browser

    if CHROMIUM is None:
        raise DataError("no Chromium on the PATH; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile, serving(args.model) as address:
        browser = Browser(Path(profile))
        try:
            args.out.write_bytes(pictures(browser, address))
        finally:
            browser.close()


if __name__ == "__main__":
    command(main, Args, __doc__)
