"""The web page in a real headless Chromium. Run: pytest tests/serving/test_page.py."""

import socket
from dataclasses import replace

import pytest

from bst.recommend.recommender import Recommender
from bst.serving.worker import Models
from scripts.support.browser import CHROMIUM, Browser
from tests.conftest import keep
from tests.serving.test_app import serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; on Debian: "
                                "apt-get install chromium")
EVIL = "<img src=x onerror='document.title=\"evil\"'> & <b>Film</b>"
LISTED = "[...document.querySelectorAll('#list .title')].map(e => e.textContent)"
SETTLED = f"{LISTED}.length === 10 && document.querySelector('#top').ariaBusy === 'false'"
STARS = "[...document.querySelectorAll('#list .guess')].map(e => e.textContent)"


@pytest.fixture(scope="module")
def models(default, tmp_path_factory):
    titles = list(default.fitted.movies["title"])
    titles[4] = EVIL
    fitted = replace(default.fitted, movies=default.fitted.movies | {"title": titles})
    evil = Recommender(default.model, default.vocabulary, fitted)
    return Models(keep(evil, tmp_path_factory.mktemp("run")))


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
    chromium.open(f"http://127.0.0.1:{port}/")
    chromium.until("document.querySelectorAll('#found li').length === 6")
    chromium.run("localStorage.clear()")
    chromium.open("about:blank")
    chromium.open(f"http://127.0.0.1:{port}/")
    chromium.until("document.querySelectorAll('#found li').length === 6")
    chromium.complaints.clear()
    return chromium


def rate_five(browser: Browser) -> None:
    """Give stars to five films, by search and from the films that many know."""
    for row, stars in enumerate((5, 4, 2)):
        browser.click(f"#found li:nth-child({row + 1}) input[value='{stars}']")
        browser.until(f"document.querySelectorAll('#rated li').length === {row + 1}")
    for word, stars in (("Film 38", 1), ("Film 39", 5)):
        browser.click("#query")
        browser.run("document.querySelector('#query').select()")
        browser.type(word)
        browser.until("document.querySelectorAll('#found li').length === 1 && document"
                      f".querySelector('#found .title').textContent.startsWith('{word}')")
        browser.click(f"#found li input[value='{stars}']")
    browser.until("document.querySelectorAll('#rated li').length === 5")
    browser.until(SETTLED)


def test_five_ratings_give_ten_films_and_another_rating_another_list(browser):
    rate_five(browser)
    films, stars = browser.run(LISTED), browser.run(STARS)
    assert len(set(films)) == 10 and stars == sorted(stars, reverse=True)
    rated = browser.run("[...document.querySelectorAll('#rated .title')].map(e => e.textContent)")
    assert rated[:2] == ["Film 39 (1989)", "Film 38 (1988)"] and not set(rated) & set(films)
    assert "because of your" in browser.run("document.querySelector('#list').innerText")
    assert browser.run("document.querySelector('#mine-head').textContent") == "Your ratings (5)"
    browser.click("#rated li:nth-child(2) input[value='5']")
    browser.until(f"String({LISTED}) !== {','.join(films)!r}")
    assert browser.run(STARS) != stars and len(browser.run(LISTED)) == 10
    assert browser.run("document.querySelectorAll('#list .move').length") > 0  # says how far
    assert browser.complaints == []


def test_ratings_are_there_after_a_reload_and_gone_once_removed(browser, port):
    rate_five(browser)
    films = browser.run(LISTED)
    browser.open("about:blank")
    browser.open(f"http://127.0.0.1:{port}/")
    browser.until(f"String({LISTED}) === {','.join(films)!r}")
    browser.run("window.confirm = () => true")
    browser.click("#rated li:nth-child(2) button")
    browser.until("document.querySelectorAll('#rated li').length === 4")
    browser.click("#clear")
    browser.until("document.querySelectorAll('#rated li, #list li').length === 0")
    assert browser.run("localStorage.getItem('bst-ratings')") == "[]"


def test_a_service_that_is_down_is_named_and_the_page_goes_on_once_it_is_back(
    browser, models, port, unused_port
):
    with serving(models, port=unused_port):
        browser.open(f"http://127.0.0.1:{unused_port}/")
        browser.until("document.querySelectorAll('#found li').length === 6")
        browser.click("#found li:nth-child(1) input[value='4']")
        browser.until(SETTLED)
    browser.click("#rated li:nth-child(1) input[value='1']")
    said = browser.until("!document.querySelector('#trouble').hidden && "
                         "document.querySelector('#trouble').textContent")
    assert "does not answer" in said and "ratings are safe" in said
    with serving(models, port=unused_port):
        browser.until("document.querySelector('#trouble').hidden")
        assert browser.run("ratings[0].stars") == 1


def test_a_title_is_text_and_never_markup(browser):
    browser.click("#query")
    browser.type("onerror")
    browser.until("document.querySelectorAll('#found li').length === 1")
    browser.click("#found li input[value='5']")
    browser.until(f"{LISTED}.length === 10")
    assert browser.run("document.querySelector('#found .title').textContent") == EVIL
    assert browser.run("document.querySelectorAll('img, b').length") == 0
    assert browser.run("document.title") == "What to watch next" and browser.complaints == []


def test_the_keyboard_is_enough_and_focus_follows_the_film(browser):
    browser.run("document.querySelector('#query').focus()")
    browser.key("Tab")  # the first star of the first film
    browser.key("Space")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    browser.until(SETTLED)
    assert browser.run("ratings.map(r => r.stars)") == [3]
    assert browser.run("document.activeElement.ariaLabel") == "3 stars"
    first = browser.run(LISTED)[0]
    browser.run("document.querySelector('#list input').focus()")
    browser.key("Space")
    browser.until(f"{LISTED}[0] !== {first!r} && {SETTLED}")
    held = browser.run("document.activeElement.closest('#rated li').innerText")
    assert first in held


def test_reasons_open_and_close_and_filters_narrow_the_list(browser):
    rate_five(browser)
    browser.click("#list li button")
    browser.until("document.querySelectorAll('#list .why li').length === 5")
    assert browser.run("document.querySelector('#list button').ariaExpanded") == "true"
    browser.click("#list li button")
    browser.until("document.querySelectorAll('#list .why li').length === 0")
    browser.run("""document.querySelector('#low').value = 1980;
        document.querySelector('#low').dispatchEvent(new Event('input'))""")
    browser.until(f"{LISTED}.length && {LISTED}.every(t => /\\(19[89]/.test(t))")
    browser.run("""document.querySelector('#low').value = 2100;
        document.querySelector('#low').dispatchEvent(new Event('input'))""")
    browser.until("document.querySelector('#top-empty').textContent === "
                  "'No film passes the filters.'")


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone_and_every_control_has_a_name(browser, dark):
    browser.look(360, 740, phone=True, dark=dark)
    rate_five(browser)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    small = browser.run("""[...document.querySelectorAll('fieldset label')]
        .filter(e => e.getBoundingClientRect().height < 44).length""")
    assert small == 0
    tree = browser.send("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if node.get("role", {}).get("value") in
                ("button", "radio", "searchbox", "combobox", "spinbutton", "group", "list")
                and not node["ignored"]]
    assert len(controls) > 100
    assert not [node for node in controls
                if not node["name"]["value"] and node["role"]["value"] != "list"]
    back, ink = (browser.run(f"getComputedStyle(document.body).{name}")
                 for name in ("backgroundColor", "color"))
    assert (sum(map(int, back[4:-1].split(","))) < sum(map(int, ink[4:-1].split(",")))) is dark
