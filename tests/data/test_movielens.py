"""Reader, bad rows, overview merge. Run: pytest tests/data/test_movielens.py."""

import os
from pathlib import Path

import pytest

from bst.data.formats import read_tables
from bst.data.overviews import read_metadata
from tests.conftest import refused

USERS = "1::F::1::10::48067\n2::M::56::16::V0072\n7::M::25::0::0-551\n"
MOVIES = ("1::Toy Story (1995)::Animation|Children's|Comedy\n"
          "3::City of Lost Children, The (Cité des enfants perdus, La) (1995)::Adventure\n"
          "4::Léon (a.k.a. The Professional) (1994)::Crime\n"
          "9::Up & Away::Drama\n"
          "11::Toy Story (1994)::Drama\n")
RATINGS = ("1::1::5::978300760\n1::3::3::978302109\n2::4::1::978301968\n7::1::4::978301968\n")
METADATA = (
    "adult,id,title,original_title,overview,release_date\n"
    'False,10,Toy Story,Toy Story,"Woody, a toy,\nmeets Buzz.",1995-10-30\n'
    "False,11,The City of Lost Children,La Cité des Enfants Perdus,A scientist.,1996-05-16\n"
    "False,12,Leon: The Professional,Léon,A hit man.,1994-09-14\n"
    "False,12,Leon again,Léon,A copy.,1994-09-14\n"
    " - Written by x,1997-08-20,,,0.1,1\n"
    "False,13,No Text,No Text,,1990-01-01\n"
    "False,14,,Nameless,Something.,1990-01-01\n"
    "False,15,No Date,No Date,Something.,\n"
    "False,16,Toy Story,Toy Story,A film of the same name.,1993-01-01\n")


def write(folder: Path, *, users=USERS, movies=MOVIES, ratings=RATINGS) -> Path:
    for name, content in (("users", users), ("movies", movies), ("ratings", ratings)):
        (folder / f"{name}.dat").write_text(content, encoding="latin-1", newline="")
    return folder


def test_users_and_ratings_on_the_edge_of_what_is_allowed_are_read(tmp_path):
    top = 2**63 - 1
    users = f"1::F::1::0::48067\n{top}::M::18::20::\n3::M::25::07::V0\n4::F::56::1::9-9\n"
    write(tmp_path, users=users, movies=f"1::A::X|Y\n{top}::B (2001)::\n",
          ratings=f"1::1::5::631152000\n{top}::{top}::1::2524608000\n")
    tables = read_tables(tmp_path)
    assert tables.users.rows() == [
        (1, "F", "1", "0", "4"), (top, "M", "18", "20", None), (3, "M", "25", "7", "V"),
        (4, "F", "56", "1", "9")]
    assert tables.movies.rows() == [(1, "A", None, ["X", "Y"], None, "none"),
                                    (top, "B (2001)", 2001, [], None, "none")]
    assert tables.ratings.rows() == [(1, 1, 5.0, 631152000), (top, top, 1.0, 2524608000)]


def test_overviews_are_merged_by_title_and_year_one_film_to_one_row(tmp_path, capsys):
    (tmp_path / "m.csv").write_text(METADATA, encoding="utf-8")
    tables = read_tables(write(tmp_path), metadata=tmp_path / "m.csv")
    found = tables.movies.select("overview", "match").rows()
    assert found == [("Woody, a toy,\nmeets Buzz.", "exact"), ("A scientist.", "year off"),
                     ("A hit man.", "exact"), (None, "none"),
                     ("A film of the same name.", "year off")]  # no two films share a row
    said = capsys.readouterr().out
    assert "4 of 5 items (80.0%): 2 exact, 0 normalised, 2 year off, 1 none" in said
    assert all(f"1 {defect}" in said for defect in (
        "malformed", "with an id seen before", "without overview", "without title",
        "without release date"))


@pytest.mark.parametrize(("text", "told"), [
    ("a,b\n1,2\n", "m.csv:1: no column id, title"), (None, "see data/README.md"),
    (METADATA + '1,a,a,"' + "x" * (2**24 + 1), "m.csv:12: field larger than field limit")])
def test_a_metadata_file_of_another_kind_is_refused(tmp_path, text, told):
    if text:
        (tmp_path / "m.csv").write_text(text)
    with refused(told):
        read_metadata(tmp_path / "m.csv")


@pytest.mark.data
def test_the_real_files_give_a_million_ratings_and_nearly_every_overview():
    folder = Path(os.environ["BST_DATA"])
    tables = read_tables(folder / "ml-1m", metadata=folder / "movies_metadata.csv")
    assert len(tables.ratings) == 1_000_209 and len(tables.users) == 6_040
    assert tables.movies["overview"].is_not_null().sum() >= 3_845
