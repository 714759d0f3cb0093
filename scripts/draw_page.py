"""Draw pics/page.png: the page on a desktop and on a phone, with invented films.

Serves a run on the built-in data, whose films get names and overviews that are made up here, gives
stars to a few of them in a headless Chromium, and takes both pictures. Needs a run of
`python scripts/train.py --run RUN`, fastapi, uvicorn and Chromium.
"""

import base64
import json
import re
import shutil
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.utils.errors import DataError
from scripts.support.browser import CHROMIUM, Browser
from scripts.support.command import command
from scripts.support.flags import RunFolder

NAMES = ("Last {}, The", "{} at Dawn", "Beyond the {}", "Return of the {}", "Midnight {}",
         "My Friend the {}", "{} of Ghent, The", "Letters to the {}", "Summer of the {}",
         "Nobody's {}", "Red {}, The", "Quiet {}, A", "Goodbye, {}", "{} Next Door, The",
         "Song of the {}", "One More {}", "Longest {}, The", "{} Street")
ENDINGS = ("one summer changes all of them.", "a promise made in childhood comes due.",
           "somebody has lied, and the last train leaves at nine.", "it began as a joke.",
           "nobody in town will ever speak of it again.", "and a letter that nobody dares to open.",
           "what is lost in the first reel is found, twice, in the last.")
FILMS = (  # stars that are given to the films to begin with, by place
    (1, 5), (2, 4), (3, 2), (5, 5))


@dataclass(frozen=True)
class Args:
    """Draw the page."""

    run: RunFolder
    """run folder, of the built-in data"""
    out: Path = Path("pics/page.png")
    """where the PNG goes"""


def invented(movies: dict[str, list]) -> dict[str, list]:
    """The films with names and overviews in the words of their synthetic overviews."""
    from scripts.support.synthetic import THEMES

    known = {word for words in THEMES.values() for word in words.split()}
    titles, overviews, taken = [], [], set()
    for k, (overview, year) in enumerate(zip(movies["overview"], movies["year"], strict=True)):
        words = [word for word in re.findall(r"\w+", overview or "") if word in known]
        words = list(dict.fromkeys([*words, *THEMES["sea"].split()]))
        names = (NAMES[(k + turn) % len(NAMES)].format(word.title())
                 for word in words for turn in range(len(NAMES)))
        names = (name for name in names if name not in taken)
        taken.add(name := next(names))
        titles.append(f"{name} ({year})")
        overviews.append(f"The {words[1]}, the {words[2]} and the {words[3]}: "
                         + ENDINGS[k % len(ENDINGS)])
    return movies | {"title": titles, "overview": overviews}


@contextmanager
def served(model: Path):
    """The address of a service of the run with invented films."""
    from bst.serving.worker import Models
    from bst.training.checkpoint import load_fitted, load_model, save_fitted
    from scripts.support.service import serving

    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(model, Path(place) / "run"))
        fitted = load_fitted(folder, load_model(folder)[2]["identity"])
        save_fitted(folder, replace(fitted, movies=invented(fitted.movies)))
        with serving(Models(folder)) as port:
            yield f"http://127.0.0.1:{port}/"


def picture(browser: Browser, address: str, *, phone: bool, dark: bool) -> str:
    """The page with some ratings, as the address of an image."""
    settled = ("document.querySelectorAll('#list li').length === 10 && "
               "document.querySelector('#top').ariaBusy === 'false'")
    browser.look(390 if phone else 1280, 880, phone=phone, dark=dark)
    browser.open(address)
    browser.until(settled)
    if not phone:  # the phone then shows the same person: it is the same browser
        for row, stars in FILMS:
            browser.click(f"#found li:nth-child({row}) input[value='{stars}']")
        browser.until(f"ratings.length === {len(FILMS)} && {settled}")
        browser.run("explain(top10[1]); document.activeElement.blur(); scrollTo(0, 0)")
        browser.until("document.querySelectorAll('#list .why li').length")
    return "data:image/png;base64," + browser.send("Page.captureScreenshot", format="png")["data"]


def side_by_side(browser: Browser, images: list[str]) -> bytes:
    """The PNG of pictures of one height beside each other."""
    browser.look(1612, 864)
    browser.open("about:blank")
    browser.run(f"""document.body.append(...{json.dumps(images)}.map(src => Object.assign(
        new Image(), {{src, height: 880, style: 'border-radius: 16px; margin: 20px'}})));
        Object.assign(document.body.style, {{margin: '20px', background: '#d8d3c8', zoom: .9}});
        Promise.all([...document.images].map(image => image.decode()))""")
    return base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])


def main(args: Args) -> None:
    """Serve, look, write."""
    if CHROMIUM is None:
        raise DataError("no Chromium on the PATH; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile, served(args.run) as address:
        browser = Browser(Path(profile))
        try:
            images = [picture(browser, address, phone=phone, dark=phone)
                      for phone in (False, True)]
            args.out.write_bytes(side_by_side(browser, images))
        finally:
            browser.close()


if __name__ == "__main__":
    command(main, Args, __doc__)
