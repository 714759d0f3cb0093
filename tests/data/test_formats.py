"""Readers of all formats. Run: pytest tests/data/test_formats.py."""

import csv
import gzip
import io
import json
import math
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bst.config import DataConfig, RunConfig
from bst.data.formats import read_tables
from bst.data.movielens import ML_100K
from bst.data.preparation import open_store, stream_store
from bst.data.raw import EARLIEST, LARGEST, LATEST, Reading
from bst.data.schema import FIRST_IDX
from bst.data.sequences import build_sequences, load_store
from bst.data.sources import RawFiles
from bst.run import prepare
from bst.utils.errors import DataError
from bst.utils.files import sha256_of
from tests.command import ROOT
from tests.conftest import good_or_refused, quietly, random_tables, refused
from tests.data.test_movielens import METADATA
from tests.raw_formats import WRITERS, small_tables, write_csv, write_rows

OWN = "user,item,rating,timestamp\n1,10,4.5,1700000000\n1,11,2,1700000060\n2,10,0.5,1700000000\n"


def digest(source: Path, **options) -> str:
    return build_sequences(read_tables(source, **options)).digest


@pytest.mark.parametrize("format", WRITERS)
def test_a_format_gives_back_the_tables_that_were_written(tmp_path, format):
    tables = small_tables(num_ratings=80)
    found = read_tables(WRITERS[format](tmp_path / "raw", tables))
    assert found.ratings.equals(tables.ratings)
    assert found.movies.select("item_id", "title", "genres").equals(
        tables.movies.select("item_id", "title", "genres"))
    if format in ("table", "ml-10m"):
        rated = tables.ratings["user_id"].unique().sort()
        assert found.users["user_id"].equals(rated)
        assert found.users.drop("user_id").null_count().row(0) == (len(rated),) * 4
    else:
        shared = ["user_id", "sex", "age", "zip_region"]
        assert found.users.select(shared).equals(tables.users.select(shared))


def test_ages_in_years_become_groups_and_occupations_keep_their_names(tmp_path):
    folder = WRITERS["ml-100k"](tmp_path, random_tables())
    (folder / "u.user").write_text("".join(
        f"{k}|{age}|F|{'none' if k % 2 else 'doctor'}|{'T8H1N' if k else ''}\n"
        for k, age in enumerate([7, 17, 18, 24, 25, 44, 45, 49, 50, 55, 56, 73], start=1)))
    users = Reading(RawFiles(folder), ML_100K, DataConfig()).users
    assert users["age"].to_list() == ["1", "1", "18", "18", "25", "35", "45", "45", "50", "50",
                                      "56", "56"]
    assert users.row(0)[2:] == ("1", "none", "T")


def test_the_quirks_of_the_published_movielens_are_read(tmp_path):
    """A date with a one-digit day, a film "unknown" without one, years from dates, odd titles."""
    folder, flags = WRITERS["ml-100k"](tmp_path / "100k", random_tables()), "|0" * 18
    (folder / "u.item").write_bytes(
        f"267|unknown||||1{flags}\n5|Caf\xe9 (1994)|01-Mar-1996|||0|1{flags[2:]}\n"
        f"6|Four Rooms|4-Feb-1971|||0{flags}\n7|Odd (0000)||||0{flags}\n"
        f"8|Arrival (1895)||||0{flags}\n9|Odd (18951)||||0{flags}\n".encode("latin-1"))
    movies = Reading(RawFiles(folder), ML_100K, DataConfig()).movies
    assert movies.select("item_id", "title", "year", "genres").rows() == [
        (267, "unknown", None, []), (5, "Café (1994)", 1994, ["Action"]),
        (6, "Four Rooms", 1971, []), (7, "Odd (0000)", None, []),
        (8, "Arrival (1895)", 1895, []), (9, "Odd (18951)", None, [])]
    folder = write_csv(tmp_path / "latest", random_tables(), movies=False)
    rated = read_tables(folder).movies["item_id"].to_list()
    rows = [("movieId", "title", "genres"), (rated[0], '"Great" One, The (1995) ', "Drama|War"),
            (rated[1], "Babylon 5", "(no genres listed)"), *((k, "x", "") for k in rated[2:])]
    write_rows(folder / "movies.csv", rows)
    assert read_tables(folder).movies.select("title", "year", "genres").rows()[:2] == [
        ('"Great" One, The (1995)', 1995, ["Drama", "War"]), ("Babylon 5", None, [])]


@pytest.mark.parametrize("format", WRITERS)
def test_zip_bom_line_ends_and_other_files_change_no_digest(tmp_path, format):
    folder = WRITERS[format](tmp_path / "raw", small_tables(num_ratings=80))
    expected = digest(folder)
    packed = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "raw")
    assert digest(Path(packed)) == expected
    for path in folder.iterdir():
        unix = path.read_bytes().replace(b"\r\n", b"\n")
        path.write_bytes(b"\xef\xbb\xbf" + unix.replace(b"\n", b"\r\n"))
    tables = read_tables(folder)
    assert build_sequences(tables).digest == expected
    assert tables.source == {name: sha256_of(folder / name) for name in tables.source}  # with \\r
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
                         .rstrip())
    (folder / "README").write_text("of no importance")
    assert digest(folder) == expected == digest(folder, format=format)


EXAMPLES = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / "data" / "README.md").read_text().splitlines()
            if re.match(r"\| `\w+\.[\w.]+`.*[⏎{]", line)]


@pytest.mark.parametrize(("file", "text", "flags", "says"), EXAMPLES)
def test_the_table_of_data_readme_is_true(tmp_path, capsys, file, text, flags, says):
    name, text = file.split("`")[1], text.strip("`").replace("⏎", "\n").replace("⇥", "\t")
    content = text.encode("utf-16" if "UTF-16" in file else "utf-8")
    if ".parquet" in name:
        buffer = io.BytesIO()
        pl.read_csv(content).write_parquet(buffer)
        content = buffer.getvalue()
    content = gzip.compress(content) if name.endswith(".gz") else content
    path = tmp_path / name
    path.write_bytes(content)
    if "beside" in file:
        path = tmp_path
        (path / "ratings.csv").write_text(OWN)
    if "zip" in file:
        path = tmp_path / "all.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for folder in "ab" if "two" in file else "a":
                archive.writestr(f"{folder}/{name}", content)
            archive.writestr(f"__MACOSX/a/._{name}", "of no importance")
    option, _, value = flags.strip("`-").partition(" ")
    options = {option.replace("-", "_"): value} if option else {}
    said = says.partition("`")[2].strip("`")
    if not says.startswith("read"):
        with refused(re.escape(said)):
            read_tables(path, **options)
        return
    tables = read_tables(path, **options)
    if "beside" in file:
        assert str(tables.movies["features"][0]) == said
        return
    stars = [1, 1] if "no ratings" in said else [4.5, 2]
    when = [EARLIEST, EARLIEST + 1] if "no times" in said else [1_700_000_000, 1_700_000_060]
    assert tables.ratings.rows() == [(1, 10, stars[0], when[0]), (1, 11, stars[1], when[1])]
    assert tables.movies["title"].to_list() == ["item 10", "item 11"]
    assert tables.users.rows() == [(1, *[None] * 4)]
    printed = capsys.readouterr().out
    assert said in printed and printed.count("\n") == bool(said)


IDS = st.one_of(st.integers(-2**63, 2**63 - 1), st.integers(0, 20), st.sampled_from(
    ["B00X", "007", "-0", "1.0", "tt0111161", "é ü", "a|b", "x" * 300, "9" * 25, "+5"]))
FACTS = st.lists(st.tuples(IDS, IDS, st.sampled_from([-10.0, 0.0, 0.125, 3.0, 0.3, 77.25, 1000.0]),
                           st.integers(EARLIEST, EARLIEST + 9)), min_size=1, max_size=30)


@quietly
@given(rows=FACTS)
def test_csv_json_and_parquet_of_the_same_ratings_give_one_store(tmp_path, monkeypatch, rows):
    """In memory as in parts; ids come back as they are; the latest rating of a pair counts."""
    monkeypatch.setattr("bst.data.preparation.PART", 200)
    names = ("user", "item", "rating", "timestamp")
    write_rows(tmp_path / "a.csv", [names, *rows])
    (tmp_path / "a.jsonl").write_text("".join(
        json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns[:2]:
        if not all(isinstance(name, int) for name in column):
            column[:] = map(str, column)
    pl.DataFrame(dict(zip(names, columns, strict=True))).write_parquet(tmp_path / "a.parquet")
    latest = {(str(u), str(i)): (r, t) for u, i, r, t in sorted(rows, key=lambda row: row[3])}
    digests = set()
    for kind in ("csv", "jsonl", "parquet"):
        stream_store(tmp_path / f"a.{kind}", tmp_path / "parts")
        store = build_sequences(read_tables(tmp_path / f"a.{kind}"))
        digests |= {store.digest, load_store(tmp_path / "parts").digest}
    assert len(digests) == 1
    users, items = (store.users["user_id"].to_list(), store.movies["item_id"].to_list())
    assert {(str(users[u]), str(items[i - FIRST_IDX])): (r, t) for u, i, r, t in zip(
        store.user_row, store.item_idx, store.rating.tolist(), store.timestamp.tolist(),
        strict=True)} == {pair: (float(np.float32(r)), t) for pair, (r, t) in latest.items()}
    for ids, column in ((users, columns[0]), (items, columns[1])):
        assert set(ids) == set(column) and ids == sorted(ids)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ids_that_a_file_says_are_text_stay_text(tmp_path, kind):
    (tmp_path / "a.jsonl").write_text('{"user": "10", "item": 10, "rating": 3}\n')
    pl.read_ndjson(tmp_path / "a.jsonl").write_parquet(tmp_path / "a.parquet")
    assert read_tables(tmp_path / f"a.{kind}").ratings.rows() == [("10", 10, 3, EARLIEST)]


def test_a_parquet_file_that_was_cut_or_overwritten_is_a_data_error(tmp_path):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"user": ["a"], "item": [1], "rating": [1.5]}).write_parquet(path)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:300], content[:4], content[:4] + bytes(40)
                    + content[44:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.parquet: .*; expected a parquet file$"):
            read_tables(path)


@pytest.mark.parametrize(("repeats", "kept"), [("last", [2, 4]), ("first", [1, 3])])
@pytest.mark.parametrize("turned", [False, True])
def test_of_an_item_rated_again_the_rating_by_time_then_line_counts(
        tmp_path, capsys, repeats, kept, turned):
    rows = [(1, 5, 1, 978300001), (1, 5, 2, 978300002), (1, 6, 3, 978300001), (1, 6, 4, 978300001)]
    rows = rows[1::-1] + rows[2:] if turned else rows
    write_rows(tmp_path / "mine.csv", [("user", "item", "rating", "time"), *rows])
    tables = read_tables(tmp_path / "mine.csv", repeats=repeats)
    assert tables.ratings.sort("item_id")["rating"].to_list() == kept
    assert f"2 ratings of an item that the user has rated already; the {repeats} one counts" in \
        capsys.readouterr().out


def test_tables_of_items_and_users_stand_beside_the_ratings(tmp_path):
    (tmp_path / "interactions.tsv").write_text("user_id\titem_id\tscore\nann\t7\t0.25\n")
    (tmp_path / "items.jsonl").write_text(
        '{"item_id": "6"}\n'  # lacks what the next one has
        '{"item_id": "7", "called": "Bond (1962)", "genres": [null, "Action", "Spy"],'
        ' "blurb": "M."}\n')
    pl.DataFrame({"user": ["ann"], "gender": ["F"], "zip": ["55117"]}).write_parquet(
        tmp_path / "users.parquet")
    tables = read_tables(tmp_path, columns="title=called,text=blurb,item=item_id")
    assert tables.users.rows() == [("ann", "F", None, None, "5")]
    assert tables.movies.rows()[1:] == [
        ("7", "Bond (1962)", 1962, ["Action", "Spy"], "M.", "table")]
    assert tables.ratings.rows() == [("ann", "7", 0.25, EARLIEST)]
    with refused("items.jsonl:1: no columns for the text in the header 'item_id, called, genres"):
        read_tables(tmp_path, columns="text=blurp")


def test_item_features_of_any_file_and_way_give_one_store(tmp_path):
    """Also "NA", a year of its own, an overview of the table beside one of the metadata."""
    folder, digests = write_csv(tmp_path / "raw", random_tables(num_ratings=40)), set()
    names = ("item", "title", "releaseDate", "plot", "by-line", "page_count")
    films = [(5 + 2 * k, f"Film {k}", f"{1950 + k}-06-01", "Own." * (k == 1),
              ["Ann", "Bob"][:k % 3], 1e300 if k == 10 else None if k % 5 else k / 4)
             for k in range(41)]
    write_rows(tmp_path / "m.csv", [
        ("id", "title", "original_title", "overview", "release_date"),
        *((k, f"Film {k}", f"Film {k}", "Theirs.", f"{1950 + k}-01-01") for k in (1, 2))])
    write_rows(folder / "movies.csv", [names, *(
        (*film[:4], "|".join(film[4]), "NA" if film[5] is None else film[5]) for film in films)])
    frame = pl.DataFrame(films, names, orient="row", infer_schema_length=None)
    for kind, write in (("csv", str), ("jsonl", frame.write_ndjson),
                        ("parquet", frame.write_parquet)):
        write(folder / f"movies.{kind}")
        config = DataConfig(data=folder, metadata=tmp_path / "m.csv",
                            item_features="by line, PageCount,by line")
        stream_store(config, tmp_path / "parts")
        store = open_store(config)
        digests |= {store.digest, open_store(DataConfig(data=tmp_path / "parts")).digest}
        (folder / f"movies.{kind}").unlink()
    assert len(digests) == 1 and RunConfig(data=config).hash == RunConfig().hash
    assert store.movies.select("year", "overview", "match", "features").rows()[:3] == [
        (1950, None, "none", {"PageCount": 0.0, "by line": []}),
        (1951, "Own.", "table", {"PageCount": None, "by line": ["Ann"]}),
        (1952, "Theirs.", "exact", {"PageCount": None, "by line": ["Ann", "Bob"]})]
    assert store.movies["features"].struct.field("PageCount").max() == 10  # 1e300 is no number
    for asked in ({"metadata": tmp_path / "m.csv"}, {"columns": "1,2,3"}, {"format": "table"},
                  {"repeats": "first"}, {"item_features": "page_count"}):
        config = DataConfig(data=tmp_path / "parts", on_bad="quarantine", **asked)
        flag = next(iter(asked)).replace("_", "-")
        with refused(f"--{flag} beside the store {config.data}, which stays as it was made"):
            open_store(config)
        assert open_store(config.of_store(config.data)).digest in digests


def test_a_file_of_another_scale_is_named_as_what_it_looks_like(tmp_path):
    folder = WRITERS["ml-1m"](tmp_path, random_tables(num_ratings=100))
    text = (folder / "ratings.dat").read_text()
    (folder / "ratings.dat").write_text(re.sub(r"(::\d)(::\d{9})", r"\g<1>0\2", text))
    with pytest.raises(DataError, match="100 bad .* are bad: --format ml-10m takes any sc"):
        read_tables(folder)
    assert read_tables(folder, format="ml-10m").ratings["rating"].max() == 50


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
    assert "2 of 41 items (4.9%): 1 linked, 1 exact, 0 normalised" in capsys.readouterr().out
    with open(folder / "movies.csv", "a") as file:
        file.write("x,Film 3 (1953),\n")  # all ids of this table are text, those of links.csv not
    movies = read_tables(folder, metadata=tmp_path / "m.csv").movies
    assert movies.filter(pl.col("match") == "linked")["item_id"].to_list() == ["7"]


BAD = {
    "ml-1m": [
        ("ratings.dat", "1::5::9::978300760", "rating '9' is not in 1..5"),
        ("ratings.dat", "1::5::3", "3 fields, expected 4"),
        ("ratings.dat", "1::5::3::978300760:", "timestamp '978300760:' is neither seconds"),
        ("ratings.dat", "1::5::3::631151999", "timestamp '631151999' is not in 1990..2050"),
        ("ratings.dat", "2::5::3::978300761", "user '2' is not in users.dat"),
        ("ratings.dat", "1::6::3::978300761", "item '6' is not in movies.dat"),
        ("ratings.dat", "1::5::\x003::978300761", "a NUL byte"),
        ("ratings.dat", "::5::3::978300761", "no user"),
        ("users.dat", "2::f::1::10::48067", "sex 'f' is not F or M"),
        ("users.dat", "1::F::1::10::48067", "id 1 stands on an earlier line too"),
        ("users.dat", "2::F::2::10::48067", "age '2' is not one of the codes ['1', '18', "),
        ("users.dat", "2::F::1::-1::4", "occupation '-1' is not a whole number"),
    ],
    "ml-100k": [
        ("u.data", "1\t5\t3.5\t978300760", "rating '3.5' is not a whole number"),
        ("u.user", "99|0|F|writer|1", "age '0' is not in 1..120"),
        ("u.user", "99|24|F||1", "occupation '' is empty"),
        ("u.item", "99|Film (1990)|1990-01-01|||" + "0|" * 18 + "0", "is not like 01-Jan-1995"),
        ("u.item", "99|Film (1990)||||" + "0|" * 18 + "2", "are not all 0 or 1"),
    ],
    "table": [
        ("ratings.csv", "1,5,nan,978300760", "rating 'nan' is not a number"),
        ("ratings.csv", "1,5,-1e7,978300760", "rating '-1e7' is not in -1000000..1000000"),
        ("ratings.csv", "1,5,3,978300760,2", "5 fields, expected 4 separated by ','"),
        ("ratings.csv", '1,5,"3,978300760', "broken quotes"),
        ("ratings.csv", "1,5.0,3,978300760", "item '5.0' is not in movies.csv"),
        ("ratings.csv", "1,5,3,\udcff", "bytes that are not UTF-8"),
        ("movies.csv", "99,Film, The (1990),Drama", "4 fields, expected 3"),
        ("links.csv", ",1,1", "no id"),
        ("links.csv", "99,1,tt1", "TMDB id 'tt1' is not a whole number"),
    ],
}


@pytest.mark.parametrize(("format", "file", "row", "reason"), [
    (format, *case) for format, cases in BAD.items() for case in cases])
def test_a_bad_row_is_named_and_in_quarantine_the_good_ones_stay(
        tmp_path, capsys, format, file, row, reason):
    metadata = tmp_path / "m.csv"
    write_rows(metadata, [("id", "title", "original_title", "overview", "release_date")])
    folder = WRITERS[format](tmp_path / "raw", small_tables(num_ratings=80))
    good = read_tables(folder, metadata=metadata)
    lines = (folder / file).read_bytes().split(b"\n")
    raw = row.encode("utf-8", "surrogateescape")
    (folder / file).write_bytes(b"\n".join([*lines[:-1], raw, b""]))
    place = f"1 bad rows, expected none: {file}:{len(lines)}: "
    with refused(f"{place}.*{re.escape(reason)}.*--on-bad quarantine"):
        read_tables(folder, metadata=metadata)
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
        with refused("ratings.csv grows from [0-9,]+ to 67,1[0-9,]+ bytes.*unpack it yourself"):
            read_tables(path)
    assert RawFiles(path).size("movies.csv") > 2**22


def test_a_zip_that_lies_about_its_sizes_is_a_data_error(tmp_path):
    """Its directory says that ratings.csv is small: no more than that is unpacked."""
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ratings.csv", OWN + "\n" * 2**20)
    true, lie = ((size).to_bytes(4, "little") for size in (len(OWN) + 2**20, 1000))
    path.write_bytes(lie.join(path.read_bytes().rsplit(true, 1)))  # the last one: the directory's
    files = RawFiles(path)
    assert files.size("ratings.csv") == 1000
    with pytest.raises(DataError, match="cannot read ratings.csv .*Bad CRC-32"):
        list(files.chunks("ratings.csv", 2**20))


ACCEPTED = "expected the files of ml-1m (ratings.dat, movies.dat, users.dat), ml-10m (the same "
REFUSED = [  # files, and what is said of the folder, or of the only file
    ({"notes.txt": "x"}, {}, "found notes.txt; " + ACCEPTED),
    ({}, {}, "found no file; " + ACCEPTED),
    ({"notes.zip": "x"}, {"data": "notes.zip"}, "notes.zip: cannot read it (File is not a zip"),
    ({}, {"data": "nowhere"}, "nowhere: cannot read it ([Errno 2] No such file"),
    ({"a.csv": "user", "b.csv": "user"}, {}, "holds a.csv, b.csv, expected one data set; say"),
    ({"a.csv": "user"}, {"columns": "user=1,film=2"}, "--columns 'user=1,film=2': expected user="),
    ({"a.csv": "user"}, {"columns": "1,2", "format": "ml-1m"}, "beside --format ml-1m, whose"),
    ({"ratings.dat": "", "users.dat": "", "ratings.csv": ""}, {},
     "holds ratings.dat, ratings.csv, expected one data set; say which with --format ml-1m"),
    ({"ratings.dat": "x"}, {"format": "ml-100k"}, "cannot read u.user"),
    ({}, {"data": None}, "no data; give a data set"),
    ({"a.csv": ""}, {}, "a.csv is empty"),
    ({"a.csv": "user,item,rating\n1,10,x"}, {}, "a.csv:2: rating 'x' is not a number"),
    ({"a.csv": "user,item,rating\n1,10,x"}, {"on_bad": "quarantine"},
     "a.csv: every row is bad, expected rows of user, item, rating, timestamp; see bad_rows.csv"),
    ({"a.csv": "user,item,rating\n"}, {}, "a.csv: no row, expected rows of user, item, rating"),
    ({"a.csv": OWN}, {}, "protocol temporal leaves no valid ratings of 3 at 2 different times"),
]


@pytest.mark.parametrize(("files", "options", "message"), REFUSED)
def test_what_is_no_data_set_is_told_in_one_line(tmp_path, files, options, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text, newline="")
    data = options.get("data", ".")
    with refused(re.escape(message)):
        prepare(RunConfig(data=DataConfig(**options | {"data": data and tmp_path / data})),
                report_dir=tmp_path / "report")


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


def plain_time(text: str) -> int:
    value = math.floor(float(text)) if "_" not in text else 0
    for size in (1, 10**3):
        if EARLIEST * size <= value <= LATEST * size:
            return value // size
    raise ValueError


def plain_rows(lines: list[str], separator: str) -> tuple[list[tuple], set[int]]:
    """Good rows and lines of bad ones by the rules in words: an oracle without numpy or polars."""
    good, bad = {}, set()
    for number, line in enumerate(lines, start=1 + (separator == ",")):
        try:
            if not line.strip("\r"):
                continue
            if "\0" in line:
                raise ValueError
            is_csv = separator == "," and '"' in line
            cells = next(csv.reader([line], strict=True)) if is_csv else line.split(separator)
            user, item, rating, when = (cell.strip() for cell in cells)
            stars, time = float(rating), plain_time(when)
            if "_" in rating or item not in ("5", "7") or not abs(stars) <= LARGEST or not user:
                raise ValueError
            if separator != "," and (user not in ("1", "5") or stars not in (1, 2, 3, 4, 5)):
                raise ValueError
            again = good.get((user, item))
            if again is None or again[1][3] <= time:
                good[user, item] = number, (user, item, float(np.float32(stars)), time)
        except (ValueError, csv.Error, OverflowError):
            bad.add(number)
    return [row for _, row in sorted(good.values())], bad


FLAGS = "|0" * 18
BESIDE = {  # files beside the ratings, their name and the separator of their fields
    "table": {"movies.csv": "movieId,title\n5,A\n7,B\n", "ratings.csv": ","},
    "ml-100k": {"u.user": "1|24|F|writer|1\n5|24|F|writer|1\n",
                "u.item": f"5|A||||0{FLAGS}\n7|B||||0{FLAGS}\n", "u.data": "\t"},
    "ml-1m": {"users.dat": "1::F::1::0::1\n5::F::1::0::1\n", "movies.dat": "5::A::\n7::B::\n",
              "ratings.dat": "::"}}


@settings(max_examples=200, deadline=None)
@example(rows=[["4" * 60]], format="table", end="", slip="")
@given(rows=LINES, format=st.sampled_from(sorted(BESIDE)), end=st.sampled_from(["", "\n", "\r\n"]),
       slip=st.sampled_from(["", "::", "\t", ","]))
def test_a_reader_takes_what_a_plain_one_takes(tmp_path_factory, rows, format, end, slip):
    """No field slips from one line, or from one column, into another (`slip` stands in front)."""
    folder = tmp_path_factory.mktemp("raw")
    for name, text in BESIDE[format].items():
        (folder / name).write_text(text)
    separator = text
    lines = [separator.join(row) for row in rows] or [""]
    lines[0] = slip + lines[0]
    good, bad = plain_rows("\n".join(lines).split("\n"), separator)
    lines = ["user,item,rating,timestamp"] * (format == "table") + lines
    text = (end or "\n").join(lines) + end
    (folder / name).write_bytes(text.encode("utf-8"))
    if not text.strip():
        bad = set()  # the file is empty: told without a line
    try:
        found = read_tables(folder, on_bad="quarantine", report_dir=folder).ratings.rows()
        assert [(str(user), str(item), *rest) for user, item, *rest in found] == good
    except DataError:
        assert not good
    listed = folder / "bad_rows.csv"
    found = pl.read_csv(listed, columns=["line"])["line"].to_list() if listed.exists() else []
    assert sorted(found) == sorted(bad)
    shutil.rmtree(folder)


@settings(quietly, max_examples=200)
@given(format=st.sampled_from(sorted(WRITERS)), noise=st.binary(max_size=30),
       at=st.floats(0, 1), which=st.integers(0, 4))
def test_only_a_data_error_escapes_from_any_bytes(tmp_path, format, noise, at, which):
    folder = WRITERS[format](tmp_path / format, small_tables(num_ratings=30))
    (folder / "m.csv").write_text(METADATA, encoding="utf-8")
    files = sorted(folder.iterdir())
    path = files[which % len(files)]
    raw = path.read_bytes()
    path.write_bytes(raw[:int(at * len(raw))] + noise + raw[int(at * len(raw)):])
    good_or_refused(read_tables, DataConfig(data=folder, metadata=folder / "m.csv"))
