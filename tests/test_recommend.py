"""What scripts/recommend.py reads and says. Run: pytest tests/test_recommend.py."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from bst.recommend.catalogue import Catalogue
from scripts import recommend as recommend_script
from scripts.support.history import read_history
from scripts.support.titles import find_item
from tests.command import call
from tests.conftest import refused

TITLES = ["Dune (1984)", "Parent Trap, The (1961)", "Parent Trap, The (1998)", "Heat (1995)",
          "Star Wars: Episode V - The Empire Strikes Back (1980)",
          "Star Wars: Episode IV - A New Hope (1977)", "Chasing Amy (1997)", "Chasing Amy (1997)",
          "City of Lost Children, The (Cité des enfants perdus, La) (1995)", "Toy Story (1995)",
          "Lion King, The (1994)", "七人の侍 (1954)", "Nowhere", "Ringu (Ring) (1998)",
          "Ring, The (2002)"]


@pytest.fixture(scope="module")
def films():
    years = [int(title[-5:-1]) if title.endswith(")") else None for title in TITLES]
    return Catalogue({"item_id": [*range(1, 16)], "title": TITLES, "year": years,
                      "genres": [[]] * 15, "ratings": [9] * 15}, [])


@pytest.mark.parametrize(("title", "year", "film"), [
    ("Dune (1984)", None, 1), ("dune", None, 1), ("Dune", 1984, 1),
    ("The Parent Trap (1998)", None, 3), ("Parent Trap, The", 1961, 2),
    ("Star Wars", None, 6), ("Star Wars", 1980, 5), ("The Empire Strikes Back", None, 5),
    ("Star Wars: Episode IV – A New Hope", 1977, 6), ("La Cité des Enfants Perdus", 1995, 9),
    ("七人の侍 (1954)", None, 12), ("Nowhere", 1997, 13),
    ("The Ring", None, 15), ("Ring", 1998, 14),
    ("Dune (2021)", None, r"no items are .* of 2021; did you mean: Dune \(1984\) \[1\]"),
    ("Parent Trap", None, r"2 items are 'Parent Trap'; .*\(1961\) \[2\]; .*\(1998\) \[3\]"),
    ("Chasing Amy (1997)", None, r"2 items are .*Amy \(1997\) \[7\]; Chasing Amy \(1997\) \[8\]"),
    ("Ty Stroy", None, r"no items are 'Ty Stroy'; did you mean: Toy Story \(1995\) \[10\]"),
    ("???", None, r"no items are '\?\?\?'$"),
])
def test_title_and_year_must_both_fit_or_it_is_asked(films, title, year, film):
    if isinstance(film, int):
        assert find_item(films, title, year) == film
        return
    with refused(film):
        find_item(films, title, year)


def test_search_takes_the_beginnings_of_words_or_what_is_written_almost_so(films, default):
    def found(query):
        return [films.name(item)[0] for item in films.search(query, 3)]

    assert found("toy st") == found("Ty Stroy") == found("Toy Stori (1995)") == [10]
    assert set(found("star wars")) == set(found("Star Wrs")) == {5, 6}
    assert found("empire strikes") == found("The Empyre Strikes Back") == [5]
    assert found("qqqq") == []
    known = [default.catalogue.about(item) for item in default.catalogue.search("fil 19", 50)]
    counts = [film["ratings"] for film in known]
    assert len(known) == 41 and counts == sorted(counts, reverse=True)
    assert default.catalogue.about(default.catalogue.search("12 F\u00edlm", 3)[0])["movie_id"] == 29


DAY = 978_393_600  # 2001-01-02


@pytest.mark.parametrize(("content", "found", "notes"), [
    ("Title,Stars\nfilm 12,4\n\n\"Film 3 (1953)\",2.0\n", [(29, 4, None), (11, 2, None)], []),
    ("userId,movieId,rating,timestamp\n7,29,5,978393600\n7,29,3,978393700000\n7,11,1,978393600.0\n",
     [(29, 5, DAY), (29, 3, 978393700000), (11, 1, DAY)], []),
    ("\ufeffNAME;Your Rating;Date\r\n\"Film 3\";3,5;2001-01-02\r\n", [(11, 3.5, DAY)], []),
    ("Movie_ID\tscore\tTime\n29\t4\t2001-01-02T01:00+01:00\n".encode("utf-16"), [(29, 4, DAY)], []),
    ("film,rating\nF\u00edlm 12,4\n".encode("latin-1"), [(29, 4, None)], []),
    ("movie_id,title,year,stars\n29,Film 12,1962,4\n11,,,2\n,Film 4,,3\n",
     [(29, 4, None), (11, 2, None), (13, 3, None)], []),
    ("Date,Name,Year,Letterboxd URI,Rating,Watched Date\n2009-01-01,Film 12,1962,x,4.5,2001-01-02\n"
     "2001-01-02,Film 3,1953,y,,2001-01-02\n", [(29, 4.5, DAY)], ["1 rows without stars are left"]),
    ("Const,Your Rating,Date Rated,Title,Original Title,IMDb Rating,Year,Release Date\n"
     "tt1,9,2001-01-02,\"Film 12\",x,7.1,1962,1962-05-01\n", [(29, 4.5, DAY)],
     ["stars out of 10 count as stars out of 5"]),
    ("", "csv:1: columns none", None),
    ("PK\0\3", "csv is no text, expected a CSV file", None),
    ("title,stars\nFilm 12,much\n", "csv:2: stars 'much' is not a number", None),
    ("title,stars\nFilm 12, really,4\n", "csv:2: 3 fields, expected 2 as in line 1", None),
    ("title,stars\nFilm 12,4\nFilm 3,6\n", "csv:3: 6 stars, expected one of 1, 2, 3", None),
    ("title,year,stars\nFilm 12,inf,4\n", "csv:2: year 'inf' is no year", None),
    ("movie_id,title,stars\n29,Film 3,4\n", r"csv:2: movie 29 is 'Film 12 .*, not 'Film 3'", None),
    ("movie_id,stars,time\n29,4,1970-01-02\n", "csv:2: time 86400, expected seconds", None),
])
def test_a_history_file_is_read_as_people_have_it_or_answered_with_the_line(
        default, tmp_path, content, found, notes):
    path = tmp_path / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(found, str):
        with refused(found):
            default.person(read_history(path, default)[0])
        return
    events, said = read_history(path, default)
    assert [event[:3] for event in events] == found
    assert len(said) == len(notes) and all(map(str.startswith, said, notes))
    assert events[-1].where.startswith(f"{path}:")
    default.person(events)  # takes them


def test_what_is_not_found_is_listed_at_once_or_left_out(default, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("title,year,stars\nFlim 3,,2\nFilm 12,,4\nFilm 12,1999,4\nFilm 4,1954,3\n")
    lines = [rf"{path}:2: no items are 'Flim 3'; did you mean: Film 3 \(1953\)",
             rf"{path}:4: no items are 'Film 12' of 1999; did you mean: Film 12 \(1962\) \[29\]"]
    with refused(".*".join(["2 of 4 items are not found", *lines, "--skip-unknown"])):
        read_history(path, default)
    events, notes = read_history(path, default, skip_unknown=True)
    assert [event[:3] for event in events] == [(29, 4, None), (13, 3, None)]
    assert notes[0] == "2 of 4 items are not found and left out:"
    assert all(map(re.match, lines, notes[1:])) and len(notes) == 3
    path.write_text("title,stars\nNothing,2\n")
    with refused("1 of 1 items are not found: .*mine.csv:2: no items"):
        read_history(path, default, skip_unknown=True)


def test_the_command_line_recommends_and_explains(trained, raw, tmp_path):
    model, mine = ("--model", trained[0]), tmp_path / "mine.csv"
    said = call("recommend.py", *model, "--user", "42", "--k", "3", "--json",
                tmp_path / "top.json").stdout.splitlines()
    items = json.loads((tmp_path / "top.json").read_text())["items"]
    assert said[0].endswith("ratings known") and len(said) == 2 + len(items) == 5
    for line, item in zip(said[2:], items, strict=True):
        assert set(item) == {"movie_id", "title", "stars", "reasons"}
        assert f"{item['stars']:.2f}" in line and item["title"] in line
    call("recommend.py", *model, "--all-users", "--k", "3", "--out", tmp_path / "top.csv")
    everybody = pl.read_csv(tmp_path / "top.csv")
    assert everybody["user_id"].n_unique() == 120 and len(everybody) <= 360
    mine_of_all = everybody.filter(pl.col("user_id") == 42).sort("rank")
    assert mine_of_all["item_id"].to_list() == [item["movie_id"] for item in items]
    films = [line.split("::")[1] for line in
             (raw / "movies.dat").read_text(encoding="latin-1").splitlines()[:3]]
    mine.write_text(f'title,stars\n"{films[0]}",3\n"{films[1]}",4.5\nNothing,5\n', encoding="utf-8")

    def explain(film, *more):
        return call("recommend.py", *model, "--history", mine, "--skip-unknown", "--explain", film,
                    *more)

    found = explain(films[2])
    assert found.stdout.startswith("2 ratings known") and "you rated it" not in found.stdout
    assert films[0] in found.stdout and films[1] in found.stdout
    for line in ("1 of 3 items are not found and left out:", f"{mine}:4: no items are 'Nothing'",
                 "1 of 2 ratings are none of 1, 2, 3, 4, 5: the nearest one counts, 5 for 4.5"):
        assert line in found.stderr
    woman = explain(films[2], "--about", "sex=F", "age=25").stdout
    assert woman.splitlines()[1] != found.stdout.splitlines()[1]
    (item,) = json.loads(explain(films[2], "--json", "-").stdout)["items"]
    assert item["title"] == films[2] and f"{item['stars']:.2f} stars" in found.stdout
    assert f"{item['reasons'][0]['difference']:+.3f}" in found.stdout
    assert f"{films[1]}: 5.00 stars (you rated it 5)" in explain(films[1]).stdout


@pytest.mark.parametrize(("changes", "message"), [
    (dict(user=9999), "no user 9999 among the 120 users"),
    (dict(), "expected --user, --history or --all-users"),
    (dict(all_users=True, out=Path("top.json")), "--out top.json: expected a file that ends in"),
    (dict(user=1, history=Path("mine.csv")), "one of them only"),
    (dict(user=1, about=("sex=F",)), "--about beside --user"),
    (dict(user=1, explain="Nothing Like It"), "no items are 'Nothing Like It'"),
    (dict(user=1, run=Path("nowhere")), "nowhere: no readable model"),
])
def test_a_wrong_command_line_is_answered_in_one_line(trained, changes, message):
    args = recommend_script.Args(**{"run": trained[0], **changes})
    with refused(message):
        recommend_script.main(args)
