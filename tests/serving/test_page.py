"""The web page in a real headless Chromium. Run: pytest tests/serving/test_page.py."""

import json
from dataclasses import replace

import pytest

from bst.recommend.recommender import Recommender
from bst.serving.worker import Models
from scripts.support.browser import CHROMIUM, Browser
from scripts.support.history import read_history
from scripts.support.service import serving
from tests.command import until
from tests.conftest import keep

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; on Debian: "
                                "apt-get install chromium")
EVIL = "<img src=x onerror='document.title=\"evil\"'> & <b>Film</b>"


def count(selector: str) -> str:
    """How many elements fit, in JavaScript."""
    return f"document.querySelectorAll({selector!r}).length"


def texts(selector: str, of: str = "innerText") -> str:
    """Their texts, in JavaScript."""
    return f"[...document.querySelectorAll({selector!r})].map(e => e.{of})"


BOX = "getBoundingClientRect().toJSON()"
FOUND, LISTED, OFFERED = count("#found li"), texts("#list .title"), texts("#found .title")
SETTLED = f"{LISTED}.length === 10 && document.querySelector('#top').ariaBusy === 'false'"


@pytest.fixture(scope="module")
def models(default, tmp_path_factory):
    """Films of which one has a title with markup, one is called as in a catalogue of a library."""
    titles = list(default.fitted.movies["title"])
    titles[4], titles[38] = EVIL, "Matrix, The (1988)"
    fitted = replace(default.fitted, movies=default.fitted.movies | {"title": titles})
    renamed = Recommender(default.model, default.vocabulary, fitted)
    return Models(keep(renamed, tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def port(models):
    with serving(models) as port:
        yield port


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium, port):
    """The page, opened by somebody who has rated nothing."""
    chromium.look(1200, 900)
    chromium.open(f"http://127.0.0.1:{port}/docs")
    chromium.run("localStorage.clear()")
    start(chromium, port)
    chromium.complaints.clear()
    return chromium


def start(browser: Browser, port: int) -> None:
    """Open the page and wait for its lists."""
    browser.open("about:blank")
    browser.open(f"http://127.0.0.1:{port}/")
    browser.until(f"{FOUND} >= 4 && {SETTLED}")


def star(row: int, stars: float, of: str = "#found") -> str:
    return f"{of} li:nth-child({row}) input[value='{stars}']"


def fill(browser: Browser, field: str, text: str) -> None:
    """Put text into an input in the place of what is there."""
    browser.run(f"""document.querySelector({field!r}).value = {text!r};
        document.querySelector({field!r}).dispatchEvent(new Event('input'))""")


def test_a_visit(browser, models, port, tmp_path):
    """Films to begin with, five ratings, reasons, filters, a file, a reload, a change, none."""
    most = browser.run(LISTED)  # what most people like, without filters
    assert browser.run("document.querySelector('#filters').hidden") and len(set(most)) == 10

    first = browser.run(OFFERED)
    assert browser.run("new Set(shown.map(film => film.genres.join())).size") >= 4
    browser.click("#found li:nth-child(2) .plain")  # not seen
    browser.until(f"{OFFERED}[1] !== {first[1]!r}")
    assert browser.run("document.activeElement.innerText") == "Not seen"
    browser.click("#others")
    others = browser.run(OFFERED)
    assert len(others) == 6 and not set(others) & set(first)

    for word, stars in (("matrix", 1), ("onerror", 5)):
        fill(browser, "#query", "")
        browser.click("#query")
        browser.type(word)
        browser.until(f"{FOUND} === 1 && {texts('#found li')}[0].toLowerCase().includes({word!r})")
        browser.click(star(1, stars))
    fill(browser, "#query", "")
    browser.until(f"{FOUND} === 6")
    for rated, stars in enumerate((5, 4, 2), start=3):
        browser.click(f"#found li:not(:has(:checked)) input[value='{stars}']")
        browser.until(f"{count('#rated li')} === {rated}")
    browser.until(SETTLED)
    films, stars = browser.run(LISTED), browser.run(texts("#list .guess", "lastChild.data"))
    rated = browser.run(texts("#rated .title"))
    assert len(set(films)) == 10 and films != most and not set(rated) & set(films)
    assert stars == sorted(stars, reverse=True) and all(len(guess) == 3 for guess in stars)
    a_title_is_text = [f"{EVIL} 1954", "The Matrix 1988"]
    assert rated[3:] == a_title_is_text and browser.run(count("img, b:not(#peek b)")) == 0
    named = [chip for chip in browser.run(texts("#list .chip")) if chip.startswith("Your ")]
    assert len(named) >= 5 and max(map(named.count, named)) <= 3

    browser.click("#list .chip")
    browser.until(f"{count('#list .why li')} > 1")
    assert browser.run("document.querySelector('#list .chip').ariaExpanded") == "true"
    fill(browser, "#low", "1989")
    fill(browser, "#high", "1980")  # swapped
    browser.until("top10.length > 1 && top10.every(film => 1980 <= film.year && film.year <= 1989)")
    browser.click("#clear")
    browser.until(f"{SETTLED} && document.querySelector('#clear').hidden")

    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#export")
    path = tmp_path / "my-ratings.csv"
    until(lambda: path.exists() and path.stat().st_size)
    assert EVIL.replace('"', '""') in path.read_text()
    events, _ = read_history(path, models.current.recommender)
    history = browser.run("JSON.stringify(history())")
    assert [{"movie_id": e.movie, "stars": e.rating} for e in events] == json.loads(history)
    browser.run("ratings = []; changed()")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
    browser.until(f"JSON.stringify(history()) === {history!r}")

    start(browser, port)  # the ratings are still there
    browser.until(f"String({LISTED}) === {','.join(films)!r}")
    browser.click(star(5, 5, "#rated"))
    browser.until(f"String({LISTED}) !== {','.join(films)!r} && {SETTLED}")
    browser.run("window.confirm = () => true")
    browser.click("#rated li:nth-child(2) .plain")
    browser.until(f"{count('#rated li')} === 4")
    browser.click("#drop")
    browser.until(f"{count('#rated li')} === 0")
    assert browser.run("[localStorage.getItem('bst-ratings'), document.title]") == [
        "[]", "What to watch next"]
    start(browser, port)
    offered = browser.run(OFFERED)
    assert first[0] in offered and first[1] not in offered  # not seen is kept too
    assert browser.complaints == []


def test_a_service_that_is_down_is_named_and_the_page_goes_on_once_it_is_back(browser, models):
    old = "document.querySelector('#list').classList.contains('old')"
    with serving(models) as port:
        start(browser, port)
        browser.click(star(1, 4))
        browser.until(f"ratings.length && {SETTLED} && !{old}")
    browser.click(star(1, 1, "#rated"))
    said = browser.until("!document.querySelector('#trouble').hidden && "
                         "document.querySelector('#trouble').textContent")
    assert "does not answer" in said and browser.run(old)
    with serving(models, port=port):
        browser.until(f"document.querySelector('#trouble').hidden && !{old}")
        assert browser.run("ratings[0].stars") == 1


def test_the_keyboard_is_enough_and_a_choice_counts_once_it_is_made(browser):
    browser.run("window.saves = 0; { const one = save; save = () => { saves++; one(); } }")
    browser.run("document.querySelector('#others').focus()")
    browser.key("Tab")  # the first star of the first film
    for _ in range(3):
        browser.key("ArrowRight")
    assert browser.run("[saves, document.activeElement.ariaLabel]") == [0, "3 stars"]
    browser.key("Enter")
    assert browser.run("[saves, ratings[0].stars]") == [1, 3]
    browser.key("Escape")
    browser.key("Digit4")
    assert browser.run("[saves, ratings[0].stars]") == [2, 4]
    browser.key("ArrowLeft")
    browser.until("ratings[0].stars === 3")  # by itself, after a while
    browser.until(SETTLED)
    first = browser.run(LISTED)[0]
    browser.run("document.querySelector('#list input').focus()")
    browser.key("Digit2")
    browser.until(f"{LISTED}[0] !== {first!r} && {SETTLED}")
    assert first in browser.run("document.activeElement.closest('#rated li').innerText")


@pytest.mark.parametrize("phone", [False, True])
def test_half_stars_are_the_halves_of_five_stars(browser, port, phone):
    browser.look(390 if phone else 1200, 844, phone=phone)
    start(browser, port)
    browser.run("""Response.prototype.json = async function () {
        const said = JSON.parse(await this.text());
        if (said.stars) said.stars = Array.from({length: 10}, (_, k) => (k + 1) / 2);
        return said; }; ready = false; shown = []; refresh();""")
    browser.until(f"{count('#found li:first-child label')} === 10")
    sizes = [min(box["width"], box["height"]) for box in browser.run(
        texts("#found li:first-child label", BOX))]
    if phone:  # a star is whole; the same star again is half
        assert min(sizes[1::2]) >= 44
        browser.click(star(1, 4))
        assert browser.run("ratings[0].stars") == 4
        browser.click(star(1, 4))
    else:
        assert min(sizes) >= 24
        browser.click(star(1, 3.5))
    assert browser.run("ratings[0].stars") == 3.5
    assert browser.run("document.querySelector('#found fieldset').style.cssText.includes('70%')")


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_every_control_has_a_name(browser, port, dark):
    browser.look(360, 740, phone=True, dark=dark)
    start(browser, port)
    best = browser.run("document.querySelector('#peek').innerText")
    browser.click(star(1, 5))
    browser.until(f"document.querySelector('#peek').innerText !== {best!r}")
    browser.until(SETTLED)
    for tab in ("find", "top", "mine"):  # the list is on the screen whatever was touched last
        browser.click(f"#tabs [value={tab}]")
        (box,) = browser.run(texts("#list" if tab == "top" else "#peek", BOX))
        assert box["top"] < 700 and box["width"] > 250 and (tab == "top" or box["bottom"] <= 740)
        assert browser.run("document.documentElement.scrollWidth") <= 360
        heights = {box["height"] for box in browser.run(texts("fieldset label", BOX))}
        assert min(heights - {0}) >= 44  # 0: not shown
        tree = browser.send("Accessibility.getFullAXTree")["nodes"]
        controls = [node for node in tree if node.get("role", {}).get("value") in
                    ("button", "radio", "searchbox", "combobox", "spinbutton", "group")
                    and not node["ignored"]]
        assert len(controls) > 8 and all(node["name"]["value"] for node in controls)
    back, ink = (browser.run(f"getComputedStyle(document.body).{name}")
                 for name in ("backgroundColor", "color"))
    assert (sum(map(int, back[4:-1].split(","))) < sum(map(int, ink[4:-1].split(",")))) is dark


def test_each_example_of_the_docs_page_is_answered(browser, port):
    browser.open(f"http://127.0.0.1:{port}/docs")
    sections = browser.until(count("section"))
    browser.run("for (const send of document.querySelectorAll('button')) send.click()")
    said = browser.until(f"{texts('pre')}.every(Boolean) && {texts('pre')}")
    assert sections == len(said) >= 7 and all(answer.startswith("200 ") for answer in said), said
