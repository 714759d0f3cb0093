"""Readers of all formats: from raw files to metrics. Run: pytest tests/data/test_formats.py."""

import csv
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bst.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from bst.data.formats import LARGEST, layout_of, read_tables
from bst.data.movielens import ML_100K
from bst.data.preparation import make_store, open_store, stream_store
from bst.data.raw import EARLIEST, LATEST, BadRows, RatingLines
from bst.data.sequences import build_sequences, save_store
from bst.data.sources import RawFiles
from bst.evaluation.report import evaluate
from bst.recommend.recommender import Recommender
from bst.run import compare, predict_run, prepare, train_run
from bst.utils.errors import DataError
from tests.conftest import random_tables
from tests.raw_formats import (
    YEARS,
    on_scale,
    small_tables,
    telling,
    write_1m,
    write_100k,
    write_csv,
    write_rows,
)

HALVES = [k / 2 for k in range(1, 11)]
OWN = "user,item,rating,timestamp\n1,10,4.5,1700000000\n1,11,2,1700000060\n2,10,0.5,1700000000\n"
quietly = settings(max_examples=60, deadline=None,
                   suppress_health_check=[HealthCheck.function_scoped_fixture])


def digest(source: Path, **options) -> str:
    return build_sequences(read_tables(source, **options)).digest


def packed(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.iterdir():
            archive.write(file, f"{folder.name}/{file.name}")
    return path


WRITERS = {"ml-1m": write_1m, "ml-100k": write_100k, "ml-csv": write_csv}


@pytest.mark.parametrize("format", WRITERS)
def test_a_format_gives_back_the_tables_that_were_written(tmp_path, format):
    tables = small_tables(num_ratings=80)
    found = read_tables(WRITERS[format](tmp_path / "raw", tables))
    assert found.ratings.equals(tables.ratings)
    assert found.movies.select("item_id", "title", "genres").equals(
        tables.movies.select("item_id", "title", "genres"))
    if format == "ml-csv":
        rated = tables.ratings["user_id"].unique().sort()
        assert found.users["user_id"].equals(rated)
        assert found.users.drop("user_id").null_count().row(0) == (len(rated),) * 4
    else:
        shared = ["user_id", "sex", "age", "zip_region"]
        assert found.users.select(shared).equals(tables.users.select(shared))


def test_ages_in_years_become_groups_and_occupations_keep_their_names(tmp_path):
    folder = write_100k(tmp_path, random_tables())
    (folder / "u.user").write_text("".join(
        f"{k}|{age}|F|{'none' if k % 2 else 'doctor'}|{'T8H1N' if k else ''}\n"
        for k, age in enumerate([7, 17, 18, 24, 25, 44, 45, 49, 50, 55, 56, 73], start=1)))
    users = ML_100K.read_people(RawFiles(folder), BadRows("stop"))[0]
    assert users["age"].to_list() == ["1", "1", "18", "18", "25", "35", "45", "45", "50", "50",
                                      "56", "56"]
    assert users.row(0)[2:] == ("1", "none", "T")
    assert set(YEARS) <= set(users["age"])


def test_a_film_without_year_in_its_title_takes_that_of_its_release(tmp_path):
    folder = write_100k(tmp_path, random_tables())
    flags = "|0" * 18
    (folder / "u.item").write_bytes(
        f"267|unknown||||1{flags}\n5|Caf\xe9 (1994)|01-Mar-1996|||0|1{flags[2:]}\n"
        f"6|Four Rooms|14-Mar-1997|||0{flags}\n7|Odd (0000)||||0{flags}\n".encode("latin-1"))
    movies = ML_100K.read_people(RawFiles(folder), BadRows("stop"))[1]
    assert movies.select("item_id", "title", "year", "genres").rows() == [
        (267, "unknown", None, []), (5, "Café (1994)", 1994, ["Action"]),
        (6, "Four Rooms", 1997, []), (7, "Odd (0000)", None, [])]


@pytest.mark.parametrize("format", WRITERS)
def test_zip_bom_line_ends_and_other_files_change_no_digest(tmp_path, format):
    folder = WRITERS[format](tmp_path / "raw", small_tables(num_ratings=80))
    expected = digest(folder)
    assert digest(packed(folder, tmp_path / "all.zip")) == expected
    for path in folder.iterdir():
        unix = path.read_bytes().replace(b"\r\n", b"\n")
        path.write_bytes(b"\xef\xbb\xbf" + unix.replace(b"\n", b"\r\n"))
    assert digest(folder) == expected
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
                         .rstrip())
    (folder / "README").write_text("of no importance")
    assert digest(folder) == expected == digest(folder, format=format)


def test_columns_of_a_csv_may_stand_in_any_order_and_have_other_names(tmp_path):
    tables = on_scale(small_tables(num_ratings=80), HALVES)
    expected = digest(write_csv(tmp_path / "one", tables, movies=False))
    rows = [("", "Timestamp", "stars", "movie_id", "tag", "USER")]
    rows += [(k, t, r, i, "a, b", u) for k, (u, i, r, t) in enumerate(tables.ratings.iter_rows())]
    write_rows(tmp_path / "mine.csv", rows)
    assert digest(tmp_path / "mine.csv") == expected


def test_your_own_ratings_in_one_file(tmp_path):
    (tmp_path / "mine.csv").write_text(OWN.replace("1,10,", "1, 10 ,").replace("0.5", '"0.5"'))
    tables = read_tables(tmp_path / "mine.csv")
    assert tables.ratings.rows() == [(1, 10, 4.5, 1700000000), (1, 11, 2.0, 1700000060),
                                     (2, 10, 0.5, 1700000000)]
    assert tables.movies["title"].to_list() == ["item 10", "item 11"]
    assert tables.users.rows() == [(1, *[None] * 4), (2, *[None] * 4)]
    assert list(tables.source) == ["mine.csv"]


def test_films_linked_by_tmdb_id_need_no_title(tmp_path, capsys):
    folder = write_csv(tmp_path / "raw", random_tables(num_ratings=40))
    write_rows(tmp_path / "m.csv", [
        ("id", "title", "original_title", "overview", "release_date"),
        (10_007, "Renamed", "Renamed", "Linked.", "2011-01-01"),
        (3, "Film 2", "Film 2", "By title.", "1952-01-01"),
        (4, "Film 1", "Film 1", "The film's own title, but it has its link.", "1951-01-01")])
    movies = read_tables(folder, metadata=tmp_path / "m.csv").movies
    assert movies.filter(pl.col("match") != "none").select("item_id", "overview", "match").rows() \
        == [(7, "Linked.", "linked"), (9, "By title.", "exact")]
    assert "2 of 41 movies (4.9%): 1 linked, 1 exact, 0 normalised" in capsys.readouterr().out


LONG_ID = "9" * 30
TOO_BIG = str(2**63)
ID_RANGE = f"is not in 1..{2**63 - 1}"
TIMES = "is not in 631152000..2524608000"
BAD = {
    "ml-1m": [
        ("ratings.dat", "1::5::9::978300760", "rating '9' is not in 1..5"),
        ("ratings.dat", "1::5::0::978300760", "rating '0' is not in 1..5"),
        ("ratings.dat", "1::5::x::978300760", "rating 'x' is not a whole number"),
        ("ratings.dat", "1::5::3", "3 fields, expected 4"),
        ("ratings.dat", "1::5::3::978300760::1", "5 fields, expected 4"),
        ("ratings.dat", "1::5::3::978300760:", "timestamp '978300760:' is not a whole number"),
        ("ratings.dat", "1:x:5::3::978300760", "3 fields, expected 4"),
        ("ratings.dat", "1::5::3::-5", "timestamp '-5' is not a whole number"),
        ("ratings.dat", "1::5::3::631151999", f"timestamp '631151999' {TIMES}"),
        ("ratings.dat", "1::5::3::2524608001", f"timestamp '2524608001' {TIMES}"),
        ("ratings.dat", "2::5::3::978300761", "user 2 is not in users.dat"),
        ("ratings.dat", "1::6::3::978300761", "movie 6 is not in movies.dat"),
        ("ratings.dat", "1::5::\x003::978300761", "a NUL byte"),
        ("ratings.dat", "::5::3::978300761", "user '' is not a whole number"),
        ("ratings.dat", "0::5::3::978300761", f"user '0' {ID_RANGE}"),
        ("ratings.dat", f"{TOO_BIG}::5::3::978300761", f"user '{TOO_BIG}' {ID_RANGE}"),
        ("ratings.dat", "1::0::3::978300761", f"movie '0' {ID_RANGE}"),
        ("ratings.dat", f"1::{TOO_BIG}::3::978300761", f"movie '{TOO_BIG}' {ID_RANGE}"),
        ("users.dat", "2::f::1::10::48067", "sex 'f' is not F or M"),
        ("users.dat", "1::F::1::10::48067", "id 1 stands on an earlier line too"),
        ("users.dat", "2::F::2::10::48067", "age '2' is not one of the codes ['1', '18', "),
        ("users.dat", "0::F::1::10::4", f"user '0' {ID_RANGE}"),
        ("users.dat", f"{TOO_BIG}::F::1::1::4", f"user '{TOO_BIG}' {ID_RANGE}"),
        ("users.dat", "2::F::1::21::4", "occupation '21' is not in 0..20"),
        ("users.dat", "2::F::1::-1::4", "occupation '-1' is not a whole number"),
        ("users.dat", "2::F::1::10", "4 fields, expected 5 separated by '::'"),
        ("movies.dat", "6::Toy Story (1995)", "2 fields, expected 3 separated by '::'"),
        ("movies.dat", "0::A::B", f"movie '0' {ID_RANGE}"),
        ("movies.dat", f"{TOO_BIG}::A::B", f"movie '{TOO_BIG}' {ID_RANGE}"),
    ],
    "ml-100k": [
        ("u.data", "1\t5\t6\t978300760", "rating '6' is not in 1..5"),
        ("u.data", "1\t5\t3.5\t978300760", "rating '3.5' is not a whole number"),
        ("u.data", "1 5 3 978300760", "1 fields, expected 4 separated by '\\t'"),
        ("u.data", "9\t5\t3\t978300760", "user 9 is not in u.user"),
        ("u.data", "1\t6\t3\t978300760", "movie 6 is not in u.item"),
        ("u.data", "1\t5\t3\t12", "timestamp '12' is not in"),
        ("u.data", "1\t5\t3\t978300760\0", "a NUL byte"),
        ("u.user", "99|24|X|writer|1", "sex 'X' is not F or M"),
        ("u.user", "99|0|F|writer|1", "age '0' is not in 1..120"),
        ("u.user", "99|24|F||1", "occupation '' is empty"),
        ("u.user", "1|24|F|writer|1", "id 1 stands on an earlier line too"),
        ("u.item", "99|Film (1990)|1990-01-01|||" + "0|" * 18 + "0", "is not like 01-Jan-1995"),
        ("u.item", "99|Film (1990)||||" + "0|" * 18 + "2", "are not all 0 or 1"),
        ("u.item", "99|Film (1990)|||" + "0|" * 18 + "0", "23 fields, expected 24"),
    ],
    "ml-csv": [
        ("ratings.csv", "1,5,x,978300760", "rating 'x' is not a number"),
        ("ratings.csv", "1,5,nan,978300760", "rating 'nan' is not a number"),
        ("ratings.csv", "1,5,1e1,978300760", "rating '1e1' is not a number"),
        ("ratings.csv", "1,5,100.5,978300760", "rating '100.5' is not in -100..100"),
        ("ratings.csv", "1,5,3", "3 fields, expected 4 separated by ','"),
        ("ratings.csv", "1,5,3,978300760,2", "5 fields, expected 4 separated by ','"),
        ("ratings.csv", '1,5,"3,978300760', "broken quotes"),
        ("ratings.csv", "1,5,3,978300760000", "timestamp '978300760000' is not in"),
        ("ratings.csv", "1,6,3,978300760", "movie 6 is not in movies.csv"),
        ("ratings.csv", "ann,5,3,978300760", "user 'ann' is not a whole number"),
        ("ratings.csv", f"1,{LONG_ID},3,978300760", f"movie '{LONG_ID}' is not a whole number"),
        ("ratings.csv", "1,5,3,\udcff", "bytes that are not UTF-8"),
        ("movies.csv", "99,Film, The (1990),Drama", "4 fields, expected 3"),
        ("movies.csv", '99,"Film "x"" (1990)",Drama', "broken quotes"),
        ("movies.csv", "5,Film (1990),Drama", "id 5 stands on an earlier line too"),
        ("links.csv", "5x,1,1", "movie '5x' is not a whole number"),
        ("links.csv", "99,1,tt1", "TMDB id 'tt1' is not a whole number"),
    ],
}
CASES = [(format, *case) for format, cases in BAD.items() for case in cases]


@pytest.mark.parametrize(("format", "file", "row", "reason"), CASES)
def test_a_bad_row_is_named_and_in_quarantine_the_good_ones_stay(
    tmp_path, capsys, format, file, row, reason
):
    metadata = tmp_path / "m.csv"
    write_rows(metadata, [("id", "title", "original_title", "overview", "release_date")])
    folder = WRITERS[format](tmp_path / "raw", small_tables(num_ratings=80))
    good = read_tables(folder, metadata=metadata)
    lines = (folder / file).read_bytes().split(b"\n")
    raw = row.encode("utf-8", "surrogateescape")
    (folder / file).write_bytes(b"\n".join([*lines[:-1], raw, b""]))
    with pytest.raises(DataError) as caught:
        read_tables(folder, metadata=metadata)
    assert f"1 bad rows, expected none: {file}:{len(lines)}: " in str(caught.value)
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert "--on-bad quarantine" in str(caught.value)
    found = read_tables(folder, metadata=metadata, on_bad="quarantine", report_dir=tmp_path)
    assert found.ratings.equals(good.ratings) and found.movies.equals(good.movies)
    listed = pl.read_csv(tmp_path / "bad_rows.csv")
    assert listed.columns == ["file", "line", "reason", "raw"] and len(listed) == 1
    assert "left out 1 bad rows" in capsys.readouterr().out


def test_a_zip_bomb_is_refused_in_one_line_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml/ratings.csv", OWN + "\n" * 2**26)
        archive.writestr("ml/movies.csv", "movieId,title\n" + "\n" * 2**22)  # small: no matter
    monkeypatch.setattr(zipfile.ZipExtFile, "read", None)
    packed = zipfile.ZipFile(path).getinfo("ml/ratings.csv").compress_size.to_bytes(4, "little")
    honest, lie = path.read_bytes(), (2**31).to_bytes(4, "little")
    for content in (lie.join(honest.rsplit(packed, 1)), honest):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"ratings.csv grows from [0-9,]+ to 67,1[0-9,]+ bytes"
                           ) as caught:
            read_tables(path)
        assert "\n" not in str(caught.value) and "unpack it yourself" in str(caught.value)
    assert RawFiles(path).size("movies.csv") > 2**22
    monkeypatch.setattr("bst.data.sources.LARGEST_FILE", 2**20)
    with pytest.raises(DataError, match="movies.csv grows"):
        RawFiles(path).size("movies.csv")


def test_a_zip_that_lies_about_its_sizes_is_a_data_error(tmp_path):
    """Its directory says that ratings.csv is small: no more than that is unpacked."""
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ratings.csv", OWN + "\n" * 2**20)
    raw = path.read_bytes()
    true = (len(OWN) + 2**20).to_bytes(4, "little")
    at = raw.rindex(true)  # in the directory; the first one stands before the file itself
    path.write_bytes(raw[:at] + (1000).to_bytes(4, "little") + raw[at + 4:])
    files = RawFiles(path)
    assert files.size("ratings.csv") == 1000
    with pytest.raises(DataError, match="cannot read ratings.csv .*Bad CRC-32"):
        list(files.chunks("ratings.csv", 2**20))


def test_what_is_not_recognised_is_told_in_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    accepted = re.escape("ml-1m (ratings.dat, movies.dat, users.dat), ml-100k (u.data, u.item, "
                         "u.user) or ml-csv (ratings.csv, or one .csv file)")
    with pytest.raises(DataError, match=f"found notes.txt; expected the files of {accepted}"):
        read_tables(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"found no file; expected the files of {accepted}"):
        read_tables(tmp_path / "empty")
    with pytest.raises(DataError, match="nowhere: cannot read it .*No such file"):
        read_tables(tmp_path / "nowhere")
    with pytest.raises(DataError, match="notes.txt: cannot read it .*not a zip"):
        read_tables(tmp_path / "notes.txt")
    write_1m(tmp_path, random_tables(num_ratings=40))
    write_csv(tmp_path, random_tables(num_ratings=40))
    with pytest.raises(DataError, match="holds ratings.dat and ratings.csv.*--format ml-1m"):
        read_tables(tmp_path)
    assert len(read_tables(tmp_path, format="ml-csv").ratings) == 40
    with pytest.raises(DataError, match="cannot read u.user"):
        read_tables(tmp_path, format="ml-100k")


@pytest.mark.parametrize(("header", "message"), [
    ("1,10,4.5,1700000000", "no columns for the user in the header '1, 10, 4.5, 1700000000'"),
    ("user;item;rating;timestamp", "no columns for the user"),
    ("user,item,rating", "no columns for the timestamp.*named timestamp or time"),
    ("user,item,movie,rating,time", "2 columns for the item"), ("", "is empty"),
    ("user,item,\rrating,time", "mine.csv:1: new-line character seen"),  # atheris found it
    ('user,item,"\0,', "no columns for the rating in the header 'user, item, .x00,'")])
def test_a_header_that_names_no_ratings_is_refused(tmp_path, header, message):
    (tmp_path / "mine.csv").write_text(header + "\n" * bool(header))
    with pytest.raises(DataError, match=message):
        read_tables(tmp_path / "mine.csv")


def test_a_header_alone_is_no_data(tmp_path):
    (tmp_path / "mine.csv").write_text("user,item,rating,timestamp\n")
    with pytest.raises(DataError, match="mine.csv: no row, expected rows of user, movie, rating"):
        read_tables(tmp_path / "mine.csv")


def test_built_in_data_have_no_format_to_choose(tmp_path):
    with pytest.raises(DataError, match="--format ml-csv without --data"):
        open_store(DataConfig(format="ml-csv"))


CELLS = st.sampled_from([
    "1", "5", "7", "0", "-1", "007", "0" * 20 + "5", "4294967297", "x", "", " 5", "3.5", "3.", ".5",
    "-.5", "--5", "1.5.2", "-0", "1e1", "nan", "inf", "100", "100.01", "-100", "4" * 60, "0.1",
    "0.30000001", "978300760", "978300761", str(EARLIEST - 1), str(LATEST), "9" * 19, '"3"', '"',
    "é", "\0", "3,4", "+3", "1 2", "\r", "2.9999999"])
LINES = st.lists(st.one_of(
    st.tuples(st.sampled_from("15"), st.sampled_from(["5", "7"]), CELLS, st.just("978300760")),
    st.tuples(CELLS, st.just("7"), st.just("3"), CELLS),
    st.tuples(st.just("1"), CELLS, st.just("3"), st.just("978300761")),
    st.lists(CELLS, max_size=6)), max_size=6)


def plain_rows(text: str, separator: str, low: float, high: float, first_id: int
               ) -> tuple[list[tuple], set[int]]:
    """Good rows and lines of bad ones by the rules in words: an oracle without numpy or polars."""
    good, bad, pairs = [], set(), set()
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line:
            continue
        try:
            if "\0" in line or "\r" in line:
                raise ValueError
            if separator == ",":
                cells = next(csv.reader([line], strict=True), [])
                user, item, rating, when = (cell.strip() for cell in cells)
                if not set(rating) <= set("0123456789.-"):
                    raise ValueError
            else:
                user, item, rating, when = line.split("\t")
                if not rating.isdecimal():
                    raise ValueError
            if not all(cell.isascii() and cell.isdecimal() for cell in (user, item, when)):
                raise ValueError
            if abs(float(rating)) > LARGEST:  # would overflow float32
                raise ValueError
            row = (int(user), int(item), float(np.float32(float(rating))), int(when))
            if not (first_id <= row[0] < 2**63 and row[1] in (5, 7)
                    and low <= float(rating) <= high and EARLIEST <= row[3] <= LATEST):
                raise ValueError
            if separator == "\t" and row[0] not in (1, 5):
                raise ValueError
            if row[:2] in pairs:
                raise ValueError
            pairs.add(row[:2])
            good.append(row)
        except (ValueError, csv.Error):
            bad.add(number)
    return good, bad


@settings(max_examples=120, deadline=None)
@given(rows=LINES, odd=st.booleans(), tabs=st.booleans(), end=st.sampled_from(["", "\n"]))
def test_a_reader_takes_what_a_plain_one_takes(tmp_path_factory, rows, odd, tabs, end):
    """Clean rows go the fast way, anything odd the slow one: the result is the oracle's."""
    folder = tmp_path_factory.mktemp("raw")
    rows = rows if odd else [r for r in rows if len(r) == 4 and r[2] in (".5", "3.5", "5", "3")]
    text = "\n".join(("\t" if tabs else ",").join(row) for row in rows) + end
    if tabs:
        (folder / "u.user").write_text("1|24|F|writer|1\n5|24|F|writer|1\n")
        flags = "|0" * 19
        (folder / "u.item").write_text(f"5|A||||{flags[1:]}\n7|B||||{flags[1:]}\n")
        (folder / "u.data").write_bytes(text.encode("utf-8") or b"\n")
        good, bad = plain_rows(text, "\t", 1, 5, 1)
    else:
        (folder / "movies.csv").write_text("movieId,title\n5,A\n7,B\n")
        text = f"user,item,rating,timestamp\n{text}"
        (folder / "ratings.csv").write_bytes(text.encode("utf-8"))
        good, bad = plain_rows(text, ",", -LARGEST, LARGEST, 0)
        bad -= {1}
    if not text.strip():
        bad = set()  # the file is empty: told without a line
    try:
        tables = read_tables(folder, on_bad="quarantine", report_dir=folder)
        assert tables.ratings.rows() == good
    except DataError:
        assert not good
    listed = folder / "bad_rows.csv"
    found = pl.read_csv(listed)["line"].to_list() if listed.exists() else []
    assert sorted(found) == sorted(bad)
    shutil.rmtree(folder)


def test_the_fast_way_is_used_for_clean_rows(tmp_path):
    for source in (write_100k(tmp_path / "a", random_tables()),
                   write_csv(tmp_path / "b", on_scale(random_tables(), HALVES))):
        files = RawFiles(source)
        lines = layout_of(files).ratings
        (content, _), = lines.blocks(files)
        assert len(lines.fast(content)) == 700


@pytest.mark.parametrize(("short", "long"), [
    ("1,5,3,978300760", "1,7,3,978300760,8,9"), ("1,5,3,,978300760", "1,7,3,978300760,8")])
def test_the_fast_way_takes_no_line_with_a_field_too_few_beside_one_too_many(short, long):
    lines = RatingLines(file="a.csv", separator=",", count=5, known_from=("a", "b"),
                        is_whole=False)
    assert len(lines.fast(b"1,5,3,978300760,7")) == 1
    for rows in ((short, long), (long, short)):
        assert lines.fast("\n".join(rows).encode()) is None


@quietly
@given(format=st.sampled_from(sorted(WRITERS)), noise=st.binary(max_size=30),
       at=st.floats(0, 1), which=st.integers(0, 3))
def test_only_a_data_error_escapes_from_any_bytes(tmp_path, format, noise, at, which):
    folder = WRITERS[format](tmp_path / format, small_tables(num_ratings=30))
    write_rows(tmp_path / "m.csv", [("id", "title", "original_title", "overview", "release_date")])
    files = sorted(folder.iterdir())
    path = files[which % len(files)]
    raw = path.read_bytes()
    path.write_bytes(raw[:int(at * len(raw))] + noise + raw[int(at * len(raw)):])
    try:
        read_tables(folder, metadata=tmp_path / "m.csv")
    except DataError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("format", ["ml-100k", "ml-csv"])
@pytest.mark.parametrize("on_bad", ["stop", "quarantine"])
@pytest.mark.parametrize("damage", [False, True])
def test_a_store_in_parts_is_the_one_in_memory(tmp_path, format, on_bad, damage):
    folder = WRITERS[format](tmp_path / "raw", on_scale(small_tables(num_ratings=200), HALVES)
                             if format == "ml-csv" else small_tables(num_ratings=200))
    path = folder / layout_of(RawFiles(folder)).ratings.file
    lines = path.read_bytes().splitlines()
    if damage:
        lines[50:50] = [b"x", lines[20], b""]
    path.write_bytes(b"\n".join(lines) + b"\n")
    told = []
    for name, build in (
            ("one", lambda out: save_store(build_sequences(read_tables(
                folder, on_bad=on_bad, report_dir=out)), out)),
            ("two", lambda out: stream_store(folder, out, on_bad=on_bad, chunk_bytes=300,
                                             part_bytes=700))):
        (tmp_path / name).mkdir()
        try:
            build(tmp_path / name)
            told.append("")
        except DataError as error:
            told.append(str(error))
    assert told[0] == told[1] and bool(told[0]) == (damage and on_bad == "stop")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
                for name in ("one", "two"))
    assert one == two and (told[0] or "manifest.json" in one)


def test_the_flag_reaches_both_ways_to_a_store_and_no_run_name(tmp_path):
    folder = write_csv(tmp_path / "raw", on_scale(random_tables(), HALVES))
    write_1m(folder, random_tables(num_ratings=40))
    config = DataConfig(data=folder, format="ml-csv")
    assert len(open_store(config)) == len(make_store(config, tmp_path / "store")) == 700
    assert RunConfig(data=config).hash == RunConfig().hash


SCALES = {"100k": [1, 2, 3, 4, 5], "halves": HALVES, "percent": list(range(0, 101, 5))}


@pytest.mark.parametrize(("scale", "loss"), [("100k", "mse"), ("halves", "ordinal"),
                                             ("percent", "mse")])
def test_raw_files_become_metrics_on_their_own_scale(tmp_path, scale, loss):
    levels = SCALES[scale]
    tables = on_scale(telling(small_tables()), levels, others=0.2)
    folder = write_100k(tmp_path / "raw", tables) if scale == "100k" else \
        write_csv(tmp_path / "raw", tables, movies=scale == "halves")
    config = RunConfig(
        data=DataConfig(data=folder, cache=tmp_path / "cache"),
        model=ModelConfig(width=8, heads=2, history_len=9, loss=loss),
        train=TrainConfig(steps=60, lr=0.02, batch_size=1024))
    prepared = prepare(config)
    assert train_run(prepared, tmp_path / "run")
    store, split = prepared.store, prepared.split
    label = store.rating[split.test]
    score, star = (v[split.test] for v in predict_run(prepared, tmp_path / "run", "test"))
    assert (levels[0] <= score).all() and (score <= levels[-1]).all()
    assert set(star.tolist()) <= set(levels) and len(set(star.tolist())) > 1
    if scale == "halves":
        ours = compare(prepared, tmp_path / "run")[0]
        assert ours["mae"] == pytest.approx(np.abs(score.astype(np.float64) - label).mean())
        assert ours["mae_star"] == pytest.approx(np.abs(star.astype(np.float64) - label).mean())
    mean = store.rating[split.train].mean(dtype=np.float64)
    assert np.abs(score - label).mean() < 0.8 * np.abs(mean - label).mean()
    row = evaluate(np.full(len(store), mean), store, split, "test", scorer="global mean", seed=0,
                   config_hash=config.hash)
    nearest = min(levels, key=lambda level: abs(level - mean))
    assert row["mae_star"] == pytest.approx(np.abs(nearest - label).mean())
    recommender = Recommender.from_pretrained(tmp_path / "run")
    movie = recommender.catalogue.ids[0]
    assert len(recommender.recommend([(movie, levels[-1], 978_000_000)], 3)) == 3
    with pytest.raises(DataError, match="expected one of"):
        recommender.recommend([(movie, levels[-1] + 0.25, 978_000_000)], 3)


def test_too_few_times_for_a_protocol_are_told(tmp_path):
    (tmp_path / "mine.csv").write_text(OWN)
    config = RunConfig(data=DataConfig(data=tmp_path / "mine.csv"))
    with pytest.raises(DataError, match="protocol temporal leaves no valid ratings of 3 at 2 dif"):
        prepare(config)
