"""Reader, bad rows, overview merge. Run: pytest tests/data/test_movielens.py."""

import os
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bst.data.formats import read_tables
from bst.data.overviews import read_metadata
from bst.utils.errors import DataError

USERS = "1::F::1::10::48067\n2::M::56::16::V0072\n7::M::25::0::0-551\n"
MOVIES = ("1::Toy Story (1995)::Animation|Children's|Comedy\n"
          "3::City of Lost Children, The (Cité des enfants perdus, La) (1995)::Adventure\n"
          "4::Léon (a.k.a. The Professional) (1994)::Crime\n"
          "9::Up & Away::Drama\n")
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
        raw = content if isinstance(content, bytes) else content.encode("latin-1")
        (folder / f"{name}.dat").write_bytes(raw)
    return folder


def test_rows_come_out_typed_and_in_file_order(tmp_path):
    tables = read_tables(write(tmp_path))
    assert tables.ratings.rows() == [(1, 1, 5.0, 978300760), (1, 3, 3.0, 978302109),
                                     (2, 4, 1.0, 978301968), (7, 1, 4.0, 978301968)]
    assert tables.users.rows()[1] == (2, "M", "56", "16", "V")
    assert tables.movies["year"].to_list() == [1995, 1995, 1994, None]
    assert tables.movies["title"][1].startswith("City of Lost Children, The (Cité")


USER_EDGES = ("1::F::1::0::48067\n2147483647::M::18::20::\n3::M::25::07::V0\n4::M::35::1::x\n"
              "5::M::45::1::-\n6::F::50::1::0\n7::F::56::1::9-9\n")


@pytest.mark.parametrize("end", ["\n", "\r\n"])  # a typed read of the whole, or line by line
def test_users_and_ratings_on_the_edge_of_what_is_allowed_are_read(tmp_path, end):
    top = 2**31 - 1
    write(tmp_path, users=USER_EDGES.replace("\n", end), movies=f"1::A::X|Y\n{top}::B (2001)::\n",
          ratings=f"1::1::5::631152000\n{top}::{top}::1::2524608000\n".replace("\n", end))
    tables = read_tables(tmp_path)
    assert tables.users.rows() == [
        (1, "F", "1", "0", "4"), (top, "M", "18", "20", None), (3, "M", "25", "7", "V"),
        (4, "M", "35", "1", "x"), (5, "M", "45", "1", "-"), (6, "F", "50", "1", "0"),
        (7, "F", "56", "1", "9")]
    assert tables.movies.rows() == [(1, "A", None, ["X", "Y"], None, "none"),
                                    (top, "B (2001)", 2001, [], None, "none")]
    assert tables.ratings.rows() == [(1, 1, 5.0, 631152000), (top, top, 1.0, 2524608000)]


@pytest.mark.parametrize("wrap", [
    lambda text: text.replace("\n", "\r\n"), lambda text: "ï»¿" + text, lambda text: text.rstrip()])
def test_carriage_returns_a_bom_and_a_missing_last_newline_change_nothing(tmp_path, wrap):
    expected = read_tables(write(tmp_path))
    found = read_tables(write(tmp_path, users=wrap(USERS), movies=wrap(MOVIES),
                                 ratings=wrap(RATINGS)))
    assert found.ratings.equals(expected.ratings) and found.movies.equals(expected.movies)


BAD_RATINGS = [
    ("1::4::9::978300760", "rating '9' is not in 1..5"),
    ("1::4::0::978300760", "rating '0' is not in 1..5"),
    ("1::4::x::978300760", "rating 'x' is not a whole number"),
    ("1::4::3", "3 fields, expected 4"),
    ("1::4::3::978300760::1", "5 fields, expected 4"),
    ("1::4::3::978300760:", "timestamp '978300760:' is not a whole number"),
    ("1:x:4::3::978300760", "3 fields, expected 4"),
    ("1::4::3::-5", "timestamp '-5' is not a whole number"),
    ("1::4::3::99999999999", "timestamp '99999999999' is not in"),
    ("1::4::3::12", "timestamp '12' is not in"),
    ("1::1::3::978300761", "user 1 rated movie 1 on an earlier line too"),
    ("5::1::3::978300761", "user 5 is not in users.dat"),
    ("1::5::3::978300761", "movie 5 is not in movies.dat"),
    ("1::4::\x003::978300761", "a NUL byte"),
    ("::4::3::978300761", "user '' is not a whole number"),
    ("0::4::3::978300761", "user '0' is not in 1..2147483647"),
    ("2147483648::4::3::978300761", "user '2147483648' is not in 1..2147483647"),
    ("1::0::3::978300761", "movie '0' is not in 1..2147483647"),
    ("1::2147483648::3::978300761", "movie '2147483648' is not in 1..2147483647"),
    ("1::4::3::631151999", "timestamp '631151999' is not in 631152000..2524608000"),
    ("1::4::3::2524608001", "timestamp '2524608001' is not in 631152000..2524608000"),
    ("1::4::6::978300761", "rating '6' is not in 1..5"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_RATINGS)
def test_a_bad_rating_is_named_with_file_line_and_reason(tmp_path, row, reason):
    write(tmp_path, ratings=RATINGS + row + "\n")
    with pytest.raises(DataError) as caught:
        read_tables(tmp_path)
    message = str(caught.value)
    assert f"1 bad rows, expected none: ratings.dat:5: {reason}" in message
    assert "--on-bad quarantine" in message and "\n" not in message


@pytest.mark.parametrize(("row", "reason"), BAD_RATINGS)
def test_quarantine_keeps_the_good_rows_and_lists_the_bad_one(tmp_path, row, reason, capsys):
    good = read_tables(write(tmp_path))
    write(tmp_path, ratings=row + "\n" + RATINGS if "earlier" not in reason else
          RATINGS + row + "\n")
    tables = read_tables(tmp_path, on_bad="quarantine", report_dir=tmp_path / "out")
    assert tables.ratings.equals(good.ratings)
    listed = pl.read_csv(tmp_path / "out" / "bad_rows.csv")
    assert listed.columns == ["file", "line", "reason", "raw"] and len(listed) == 1
    assert reason in listed["reason"][0]
    assert "left out 1 bad rows" in capsys.readouterr().out


@pytest.mark.parametrize(("field", "content", "message"), [
    ("users", "1::X::1::10::48067\n", "users.dat:1: sex 'X' is not F or M"),
    ("users", USERS + "1::F::1::10::48067\n", "users.dat:4: id 1 stands on an earlier line"),
    ("users", "1::F::2::10::48067\n", "users.dat:1: age '2' is not one of the codes "
     r"\['1', '18', '25', '35', '45', '50', '56'\]"),
    ("users", "1::f::1::10::48067\n", "users.dat:1: sex 'f' is not F or M"),
    ("users", "0::F::1::10::4\n", r"users.dat:1: user '0' is not in 1\.\.2147483647"),
    ("users", "2147483648::F::1::1::4\n", "users.dat:1: user '2147483648' is not in 1"),
    ("users", "1::F::1::21::4\n", r"users.dat:1: occupation '21' is not in 0\.\.20"),
    ("users", "1::F::1::-1::4\n", "users.dat:1: occupation '-1' is not a whole number"),
    ("users", "1::F::1::10\n", "users.dat:1: 4 fields, expected 5 separated by '::'"),
    ("movies", "1::Toy Story (1995)\n", "movies.dat:1: 2 fields, expected 3 separated by '::'"),
    ("movies", "0::A::B\n", r"movies.dat:1: movie '0' is not in 1\.\.2147483647"),
    ("movies", "2147483648::A::B\n", "movies.dat:1: movie '2147483648' is not in 1"),
    ("ratings", "", "ratings.dat is empty"), ("users", "\n\n", "users.dat is empty"),
])
def test_a_bad_file_is_refused_with_its_line(tmp_path, field, content, message):
    with pytest.raises(DataError, match=message):
        read_tables(write(tmp_path, **{field: content}))


def test_the_first_ten_of_many_bad_rows_are_listed_and_all_are_counted(tmp_path):
    with pytest.raises(DataError) as caught:
        read_tables(write(tmp_path, ratings="1::1::9::978300760\n" * 13))
    assert str(caught.value).startswith("13 bad rows")
    assert "ratings.dat:10:" in str(caught.value) and "ratings.dat:11:" not in str(caught.value)


def test_a_missing_file_or_folder_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="cannot read users.dat.*data/README.md"):
        read_tables(tmp_path, format="ml-1m")
    with pytest.raises(DataError, match="cannot read users.dat"):
        read_tables(tmp_path / "nowhere", format="ml-1m")


def test_a_zip_is_read_like_its_folder_and_nothing_is_unpacked(tmp_path):
    write(tmp_path)
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for name in ("users.dat", "movies.dat", "ratings.dat"):
            archive.write(tmp_path / name, f"../ml-1m/{name}")
    found = read_tables(tmp_path / "ml.zip")
    assert found.ratings.equals(read_tables(tmp_path).ratings)
    assert not (tmp_path.parent / "ml-1m").exists()


def test_overviews_are_merged_by_title_and_year_one_film_to_one_row(tmp_path, capsys):
    (tmp_path / "m.csv").write_text(METADATA, encoding="utf-8")
    tables = read_tables(write(tmp_path), metadata=tmp_path / "m.csv", report_dir=tmp_path)
    found = tables.movies.select("overview", "match").rows()
    assert found == [("Woody, a toy,\nmeets Buzz.", "exact"), ("A scientist.", "year off"),
                     ("A hit man.", "exact"), (None, "none")]
    said = capsys.readouterr().out
    assert "3 of 4 movies (75.0%): 2 exact, 0 normalised, 1 year off, 1 none" in said
    assert "1 malformed" in said and "1 with an id seen before" in said
    unmatched = pl.read_csv(tmp_path / "unmatched_movies.csv")
    assert unmatched["title"].to_list() == ["Up & Away"]


def test_two_films_of_one_name_never_share_a_row(tmp_path):
    movies = "1::Toy Story (1995)::Drama\n2::Toy Story (1994)::Drama\n"
    (tmp_path / "m.csv").write_text(METADATA, encoding="utf-8")
    write(tmp_path, movies=movies, ratings="1::1::5::978300760\n")
    tables = read_tables(tmp_path, metadata=tmp_path / "m.csv")
    assert tables.movies["overview"].to_list() == ["Woody, a toy,\nmeets Buzz.",
                                                   "A film of the same name."]


def test_metadata_defects_are_counted_by_kind(tmp_path):
    (tmp_path / "m.csv").write_text(METADATA, encoding="utf-8")
    films, defects = read_metadata(tmp_path / "m.csv")
    assert [film["id"] for film in films] == ["10", "11", "12", "16"]
    assert defects == {"malformed": 1, "with an id seen before": 1, "without overview": 1,
                       "without title": 1, "without release date": 1}


def test_a_metadata_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="m.csv:1: no column id, title"):
        read_metadata(tmp_path / "m.csv")
    with pytest.raises(DataError, match="see data/README.md"):
        read_metadata(tmp_path / "none.csv")


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=40), at=st.integers(0, 90), which=st.integers(0, 2))
def test_only_a_data_error_escapes_from_any_bytes(tmp_path, noise, at, which):
    contents = [text.encode("latin-1") for text in (USERS, MOVIES, RATINGS)]
    contents[which] = contents[which][:at] + noise + contents[which][at:]
    write(tmp_path, users=contents[0], movies=contents[1], ratings=contents[2])
    try:
        read_tables(tmp_path)
    except DataError:
        pass


@settings(max_examples=100, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=40), at=st.integers(0, 500))
def test_only_a_data_error_escapes_from_any_metadata(tmp_path, noise, at):
    raw = METADATA.encode()
    (tmp_path / "m.csv").write_bytes(raw[:at] + noise + raw[at:])
    try:
        read_metadata(tmp_path / "m.csv")
    except DataError:
        pass


@pytest.mark.data
def test_the_real_files_give_a_million_ratings_and_nearly_every_overview(tmp_path):
    folder = Path(os.environ["BST_DATA"])
    tables = read_tables(folder / "ml-1m", metadata=folder / "movies_metadata.csv",
                            report_dir=tmp_path)
    assert len(tables.ratings) == 1_000_209 and len(tables.users) == 6_040
    assert tables.movies["overview"].is_not_null().sum() >= 3_845
