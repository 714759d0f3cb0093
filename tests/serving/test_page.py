"""The web page in a real headless Chromium. Run: pytest tests/serving/test_page.py."""

import socket
from dataclasses import replace

import pytest

from bst.recommend.recommender import Recommender
from bst.serving.worker import Models
from scripts.support.browser import CHROMIUM, Browser
from scripts.support.history import read_history
from tests.conftest import keep
from tests.serving.test_app import serving, until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; on Debian: "
                                "apt-get install chromium")
EVIL = "<img src=x onerror='document.title=\"evil\"'> & <b>Film</b>"
LISTED = "[...document.querySelectorAll('#list .title')].map(e => e.firstChild.data.trim())"
SETTLED = f"{LISTED}.length === 10 && document.querySelector('#top').ariaBusy === 'false'"
GUESSES = "[...document.querySelectorAll('#list .guess')].map(e => e.lastChild.data)"
FOUND = "document.querySelectorAll('#found li').length"


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


@pytest.fixture
def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


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
    """The place of a choice."""
    return f"{of} li:nth-child({row}) input[value='{stars}']"


def rate_five(browser: Browser) -> None:
    """Give stars to five films, by search and from the films that many know."""
    for word, stars in (("matrix", 1), ("Film 39", 5)):
        browser.click("#query")
        browser.run("document.querySelector('#query').select()")
        browser.type(word)
        browser.until(f"{FOUND} === 1 && document.querySelector('#found').innerText"
                      f".toLowerCase().includes({word.lower()!r})")
        browser.click(star(1, stars))
    browser.run("""document.querySelector('#query').value = '';
        document.querySelector('#query').dispatchEvent(new Event('input'))""")
    browser.until(f"{FOUND} === 6")
    for count, stars in enumerate((5, 4, 2), start=3):
        browser.click(f"#found li:not(:has(:checked)) input[value='{stars}']")
        browser.until(f"document.querySelectorAll('#rated li').length === {count}")
    browser.until(SETTLED)


def test_five_ratings_give_ten_films_and_another_rating_another_list(browser):
    most = browser.run(LISTED)  # what most people like, without filters
    assert browser.run("document.querySelector('#filters').hidden") and len(set(most)) == 10
    rate_five(browser)
    films, stars = browser.run(LISTED), browser.run(GUESSES)
    assert len(set(films)) == 10 and films != most and stars == sorted(stars, reverse=True)
    assert all(len(guess) == 3 for guess in stars)  # one decimal
    rated = browser.run("[...document.querySelectorAll('#rated .title')].map(e => e.innerText)")
    assert rated[3:] == ["Film 39 1989", "The Matrix 1988"]
    assert not {title.rpartition(" ")[0] for title in rated} & set(films)
    chips = browser.run("[...document.querySelectorAll('#list .chip')].map(e => e.innerText)")
    named = [chip for chip in chips if chip.startswith("Your ")]
    assert len(named) >= 5 and max(map(named.count, named)) <= 3
    assert "About " in browser.run("document.querySelector('#list').innerText")
    assert browser.run("document.querySelector('#top-say').innerText") == (
        "Ranked by expected stars.")
    assert browser.run("document.querySelector('#mine-head').innerText") == "Your ratings (5)"
    browser.click(star(5, 5, "#rated"))
    browser.until(f"String({LISTED}) !== {','.join(films)!r}")
    assert browser.run(GUESSES) != stars and len(browser.run(LISTED)) == 10
    assert browser.complaints == []


def test_ratings_are_there_after_a_reload_and_gone_once_removed(browser, port):
    rate_five(browser)
    films = browser.run(LISTED)
    start(browser, port)
    browser.until(f"String({LISTED}) === {','.join(films)!r}")
    browser.run("window.confirm = () => true")
    browser.click("#rated li:nth-child(2) .plain")
    browser.until("document.querySelectorAll('#rated li').length === 4")
    browser.click("#drop")
    browser.until("document.querySelectorAll('#rated li').length === 0")
    assert browser.run("localStorage.getItem('bst-ratings')") == "[]"


def test_films_to_begin_with_differ_and_those_not_seen_do_not_come_again(browser, port):
    names = "shown.map(film => film.title)"
    first = browser.run(names)
    assert browser.run("new Set(shown.map(film => film.genres.join())).size") >= 4
    browser.click("#found li:nth-child(2) .plain")
    browser.until(f"{names}[1] !== {first[1]!r}")
    assert browser.run("document.activeElement.innerText") == "Not seen"
    browser.click("#others")
    others = browser.run(names)
    assert len(others) == 6 and not set(others) & set(first)
    start(browser, port)
    assert first[1] not in browser.run(names)


def test_a_service_that_is_down_is_named_and_the_page_goes_on_once_it_is_back(
    browser, models, unused_port
):
    old = "document.querySelector('#list').classList.contains('old')"
    with serving(models, port=unused_port):
        start(browser, unused_port)
        browser.click(star(1, 4))
        browser.until(f"ratings.length && {SETTLED} && !{old}")
    browser.click(star(1, 1, "#rated"))
    said = browser.until("!document.querySelector('#trouble').hidden && "
                         "document.querySelector('#trouble').textContent")
    assert "does not answer" in said and "ratings are safe" in said and browser.run(old)
    with serving(models, port=unused_port):
        browser.until(f"document.querySelector('#trouble').hidden && !{old}")
        assert browser.run("ratings[0].stars") == 1


def test_a_title_is_text_and_never_markup(browser):
    browser.click("#query")
    browser.type("onerror")
    browser.until(f"{FOUND} === 1")
    browser.click(star(1, 5))
    browser.until("ratings.length === 1")
    assert browser.run("document.querySelector('#found .title').firstChild.data.trim()") == EVIL
    assert browser.run("document.querySelectorAll('img, b:not(#peek b)').length") == 0
    assert browser.run("document.title") == "What to watch next" and browser.complaints == []


def test_the_keyboard_is_enough_and_a_choice_counts_once_it_is_made(browser):
    browser.run("window.saves = 0; { const one = save; save = () => { saves++; one(); } }")
    browser.run("document.querySelector('#others').focus()")
    browser.key("Tab")  # the first star of the first film
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        browser.key(key)
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
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source="""
        Response.prototype.json = async function () { const said = JSON.parse(await this.text());
            return said.stars ? {...said, stars: Array.from({length: 10}, (_, k) => (k + 1) / 2)}
                : said; };""")["identifier"]
    try:
        start(browser, port)
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    boxes = browser.run("""[...document.querySelectorAll('#found li:first-child label')].map(
        e => { const box = e.getBoundingClientRect(); return [box.width, box.height]; })""")
    assert len(boxes) == 10
    if phone:  # a star is whole; the same star again is half
        assert all(min(box) >= 44 for box in boxes[1::2])
        browser.click(star(1, 4))
        assert browser.run("ratings[0].stars") == 4
        browser.click(star(1, 4))
    else:
        assert all(min(box) >= 24 for box in boxes)
        browser.click(star(1, 3.5))
    assert browser.run("ratings[0].stars") == 3.5
    assert browser.run("document.querySelector('#found fieldset').style.cssText.includes('70%')")


def test_reasons_open_and_close_and_filters_narrow_the_list(browser):
    rate_five(browser)
    browser.click("#list .chip")
    browser.until("document.querySelectorAll('#list .why li').length > 1")
    assert browser.run("document.querySelector('#list .chip').ariaExpanded") == "true"
    browser.click("#list .chip")
    browser.until("document.querySelectorAll('#list .why li').length === 0")
    for name, year in (("low", 1989), ("high", 1980)):
        browser.run(f"""document.querySelector('#{name}').value = {year};
            document.querySelector('#{name}').dispatchEvent(new Event('input'))""")
    browser.until("top10.length && top10.every(film => 1980 <= film.year && film.year <= 1989)")
    assert browser.run("document.querySelector('#filter-note').textContent") == (
        "The years were swapped: 1980 to 1989.")
    browser.click("#clear")
    browser.until(f"{SETTLED} && document.querySelector('#clear').hidden")


def test_the_file_that_the_page_exports_is_a_history_and_comes_back(browser, models, tmp_path):
    rate_five(browser)
    browser.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#export")
    path = tmp_path / "my-ratings.csv"
    until(lambda: path.exists() and path.stat().st_size)
    events, _ = read_history(path, models.current.recommender)
    assert [[e.movie, e.rating] for e in events] == browser.run(
        "ratings.map(r => [r.movie_id, r.stars])")
    before = browser.run("JSON.stringify(history())")
    browser.run("ratings = []; changed()")
    found = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=found, selector="#file")["nodeId"]
    browser.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)
    browser.until(f"JSON.stringify(history()) === {before!r}")
    assert "5 ratings" in browser.run("document.querySelector('#mine-note').textContent")


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
        box = browser.run(f"""(() => {{ const box = document.querySelector('{
            "#list" if tab == "top" else "#peek"}').getBoundingClientRect();
            return [box.top, box.bottom, box.width]; }})()""")
        assert box[0] < 700 and box[2] > 250 and (tab == "top" or box[1] <= 740)
        assert browser.run("document.documentElement.scrollWidth") <= 360
        assert browser.run("""[...document.querySelectorAll('fieldset label')].filter(e =>
            e.offsetParent && e.getBoundingClientRect().height < 44).length""") == 0
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
    count = browser.until("document.querySelectorAll('section').length")
    browser.run("for (const send of document.querySelectorAll('button')) send.click()")
    browser.until("[...document.querySelectorAll('pre')].every(e => e.textContent)")
    said = browser.run("[...document.querySelectorAll('pre')].map(e => e.textContent)")
    assert count == len(said) >= 7 and all(answer.startswith("200 ") for answer in said), said
