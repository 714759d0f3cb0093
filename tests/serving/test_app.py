"""The service over real sockets. Run: pytest tests/serving/test_app.py."""

import copy
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from urllib.parse import quote

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bst.data.schema import FIRST_IDX
from bst.recommend.catalogue import Catalogue
from bst.recommend.recommender import Recommender
from bst.serving import metrics
from bst.serving.app import create_app
from bst.serving.gate import BODY
from bst.serving.messages import EXPLAINED, HISTORY, MOVIES, TOP
from bst.serving.worker import ENTRY, Models
from bst.utils.errors import DataError
from scripts import serve as serve_script
from scripts.support.history import read_history
from scripts.support.service import listen, serving
from tests.command import call, start, until
from tests.conftest import keep, refused

T = 978_000_000
PERSON = [(7, 5, T), (11, 1, T + 900), (29, 4, T + 900)]


def as_json(history: list[tuple]) -> list[dict]:
    """Events of (film, stars, time or none) as a request has them."""
    return [dict(zip(("movie_id", "stars", "time"), event, strict=False)) for event in history]


EVENTS = as_json(PERSON)


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    def json(self) -> dict:
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)

    def error(self) -> str:
        said = self.json()
        assert set(said) == {"error"} and "\n" not in said["error"] and said["error"]
        return said["error"]


def ask(port: int, path: str, body=None) -> Answer:
    """One request on a connection of its own; a dict is sent as JSON."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        sent = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request("GET" if body is None else "POST", path, sent,
                           {"content-type": "application/json"})
        return Answer(connection.getresponse())


def numbers(port: int) -> Counter:
    rows = ask(port, "/metrics").body.decode().splitlines()
    return Counter({row.rpartition(" ")[0]: float(row.rpartition(" ")[2])
                    for row in rows if row[0] != "#"})


@pytest.fixture(scope="module")
def recommender(build):
    return build(interest=1)[0]


@pytest.fixture(scope="module")
def models(recommender, tmp_path_factory):
    return Models(keep(recommender, tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def port(models):
    with serving(models) as port:
        yield port


def test_the_answers_are_those_of_the_recommender(port, models, recommender):
    asked = {"user": {"sex": "F", "zip": "55117"}, "at": T + 100_000}
    catalogue, given = recommender.catalogue, {film: stars for film, stars, _ in PERSON}

    def said(path, **more):
        return ask(port, path, {"history": EVENTS} | asked | more).json()

    def plain(found):
        return json.loads(json.dumps(asdict(found)))

    stars = recommender.predict(PERSON, catalogue.ids, **asked).tolist()
    assert said("/predict", movies=catalogue.ids)["items"] == [
        {"movie_id": m, "stars": s, "rated": given.get(m)}
        for m, s in zip(catalogue.ids, stars, strict=True)]
    for options in ({"k": 4, "reasons": 2, "genres": ["War"], "years": [1955, 1985]}, {"k": 41},
                    {"k": 41, "exclude_seen": False}, {"by": "stars"}, {"by": "interest"}):
        best = recommender.recommend(PERSON, **{"by": "both"} | asked | options)
        rows = catalogue.items([item.movie_id for item in best])
        found = said("/recommend", **options)
        assert found["items"] == [plain(item) | catalogue.about(row)
                                  for item, row in zip(best, rows, strict=True)]
        assert found["by"] == options.get("by", "both")
    assert said("/explain", movie_id=9) == plain(recommender.explain(PERSON, 9, **asked)) | {
        "model": models.current.digest, "notes": []}
    for query, k in (("fil 19", 50), ("F\u00cdLM 12", 10), ("", 3)):
        items = [catalogue.about(item) for item in catalogue.search(query, k)]
        assert ask(port, f"/movies?q={quote(query)}&k={k}").json()["items"] == items != []


@pytest.mark.parametrize(("given", "expected", "note"), [
    ([(7, 3.5, T), (9, 2, T + 1)], [(7, 4, T), (9, 2, T + 1)],
     "1 of 2 ratings are none of 1, 2, 3, 4, 5: the nearest one counts, 4 for 3.5"),
    ([(7, 0.5, T)], [(7, 1, T)], "1 for 0.5"),
    ([(7, 4, T * 1000 + 5), (9, 2, T * 1000 + 60_000)], [(7, 4, T), (9, 2, T + 60)],
     "2 of 2 times count as milliseconds, like 978000000005"),
    ([(7, 1, T), (9, 2, T + 1), ("7", 5, T + 2)], [(9, 2, T + 1), (7, 5, T + 2)],
     "1 of 3 ratings do not count: the same item is rated again"),
    ([(7, 4), (9, 1), (11, 5)], [(7, 4, T), (9, 1, T + 60), (11, 5, T + 120)], None),
    ([(9, 1, T + 60), ("7", 4, T)], [(7, 4, T), (9, 1, T + 60)], None),
    *(([(7, stars, T)], None, f"{stars:g} stars, expected one of 1, 2, 3, 4, 5")
      for stars in (6, 5.5, 0.4, float("nan"), float("inf"))),
    *(([(7, 4, time)], None, "time .*since 1970") for time in (5, -T, T * 10**6, 10**30)),
    *(([(film, 4, T)], None, f"no item .?{film}.? in the catalogue of 41, whose ids")
      for film in (6, "07", "7.0", "film", 2**80)),
    ([(7, 4, T), (9, 4)], None, "only some events have a time"),
])
@pytest.mark.parametrize("door", ["Python", "file", "HTTP"])
def test_the_rule_for_ids_stars_and_times_is_the_same_at_every_door(
        port, recommender, tmp_path, door, given, expected, note):
    def stars_and_notes():
        if door == "Python":
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                return recommender.predict(given, [7, 5]), [str(line.message) for line in said]
        if door == "file":
            path = tmp_path / "mine.csv"
            rows = [",".join(map(str, (*event, "")[:3])) for event in given]
            path.write_text("\n".join(["movie_id,stars,time", *rows]))
            person = recommender.person(read_history(path, recommender)[0])
            return recommender.predict(person, [7, 5]), person.notes
        found = ask(port, "/predict", {"history": as_json(given), "movies": [7, 5]})
        if found.status == 422:
            raise DataError(found.error())
        said = found.json()
        return [item["stars"] for item in said["items"]], said["notes"]

    if expected is None:
        with refused(note):
            stars_and_notes()
        return
    stars, notes = stars_and_notes()
    assert list(stars) == recommender.predict(expected, [7, 5]).tolist()
    assert len(notes) == (note is not None) and all(note in line for line in notes)


MANY = as_json([(k, 3) for k in range(HISTORY + 1)])


@pytest.mark.parametrize(("path", "body", "status", "message"), [
    ("/predict", {"movies": [7], "history": [{"movie_id": 9, "stars": 1}], "at": 5}, 422, "at: "),
    ("/predict", {"movies": ["7", "a\nb"]}, 422, r"no item 'a\\nb' in the catalogue"),
    ("/predict", {"movies": [7], "histroy": []}, 422, "histroy: Extra inputs"),
    ("/predict", {"movies": [7] * (MOVIES + 1)}, 422, f"movies: .* at most {MOVIES} items"),
    ("/predict", {"movies": [7], "history": MANY}, 422, f"history: .* at most {HISTORY} items"),
    ("/recommend", {"history": MANY[:EXPLAINED + 1], "reasons": 1}, 422, f"at most {EXPLAINED}"),
    ("/explain", {"history": MANY[:EXPLAINED + 1], "movie_id": 7}, 422, f"at most {EXPLAINED}"),
    ("/recommend", {"k": TOP + 1}, 422, f"k: .* less than or equal to {TOP}"),
    ("/recommend", {"genres": ["Noir\n"]}, 422, "no genre 'Noir '"),
    ("/recommend", b'{"\\ud800": 1}', 422, "valid string"),
    ("/recommend", b"[" * 100_000, 400, "parsing the body"),
    ("/predict", b'{"movies": [' + b"9" * 5000 + b"]}", 400, "parsing the body"),
    ("/predict", b" " * (BODY + 1), 413, f"larger than {BODY} bytes"),
    ("/movies?q=" + "x" * 101, None, 422, "q: .* at most 100 characters"),
    ("/history", b"movie_id,stars\n7,5\n9,x\n", 422, "^line 3: stars 'x' is not a number"),
    ("/history", b"", 422, "^line 1: columns none"),
    ("/nowhere", None, 404, "no page /nowhere"),
    ("/predict", None, 405, "/predict does not take GET"),
])
def test_a_wrong_request_is_answered_in_one_line(port, path, body, status, message):
    found = ask(port, path, body)
    assert (found.status, bool(re.search(message, found.error()))) == (status, True), found.body


def test_the_page_has_an_import_button_where_the_service_reads_files(port, models):
    with serving(models, read_file=None) as bare:
        for of, status, button in ((port, 200, b"<button "), (bare, 404, b"<button hidden ")):
            assert ask(of, "/history", b"movie_id,stars\n7,5\n").status == status
            assert button + b'id="import"' in ask(of, "/").body


def test_an_id_that_javascript_would_round_goes_and_comes_as_text(default, tmp_path):
    ids = [2**53 + 2 * k + 1 for k in range(41)]
    fitted = replace(default.fitted, movies=default.fitted.movies | {"item_id": ids})
    models = Models(keep(Recommender(default.model, default.vocabulary, fitted), tmp_path))
    with serving(models) as port:
        known = [film["movie_id"] for film in ask(port, "/movies?k=3").json()["items"]]
        assert all(isinstance(film, str) and int(film) in ids for film in known)
        for film in (known[0], int(known[0])):
            asked = {"history": [{"movie_id": film, "stars": 5}]}
            said = ask(port, "/predict", asked | {"movies": [film, *known[1:]]}).json()["items"]
            assert [(item["movie_id"], item["rated"]) for item in said] == [
                (known[0], 5), (known[1], None), (known[2], None)]
            why = ask(port, "/explain", asked | {"movie_id": known[1]}).json()
            assert [reason["movie_id"] for reason in why["reasons"]] == known[:1]


NAMES = st.sampled_from("history movies movie_id stars time k at user years genres sex".split())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(path=st.sampled_from(["/recommend", "/predict", "/explain", "/movies", "/x%00%ff"]),
       body=st.binary(max_size=200) | st.recursive(
           st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
           lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
           max_leaves=12).map(lambda value: json.dumps(value).encode()))
def test_any_body_gets_json_with_a_status_below_500(port, path, body):
    found = ask(port, path, body)
    assert found.status < 500 and isinstance(found.json(), dict)


POST = b"POST /predict HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(("sent", "status"), [
    (b"\x16\x03\x01\x02", 400), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
    (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 500_000, 400),
    (b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n", 404),
    (POST + b"content-length: -1\r\n\r\n", 400),
    (POST + b"content-length: %d\r\n\r\n" % (4 * BODY + 1), 413),  # refused before it comes
    (POST + b"transfer-encoding: chunked\r\n\r\nZZ\r\n", 400),
    (POST + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % (BODY + 9) + b" " * (BODY + 9)
     + b"\r\n0\r\n\r\n", 413),
    (POST + b"content-length: 9\r\n\r\n{", 408),
    (POST + b'content-length: 14\r\n\r\n{"movies":[7]}', 415),
])
def test_bytes_that_are_no_whole_request_get_4xx_json_too(port, monkeypatch, sent, status):
    monkeypatch.setattr("bst.serving.gate.BODY_SECONDS", 1.0)
    assert ask(port, "/predict", b'{"movies":[7]}').status == 200  # in the cache, as JSON
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.sendall(sent)
        answer = http.client.HTTPResponse(line)
        answer.begin()
        found = Answer(answer)
    assert found.status == status and found.error()
    assert ask(port, "/healthz").json() == {"status": "ok"}


def test_an_error_of_the_program_is_one_line_too_and_the_service_goes_on(port, models, monkeypatch):
    monkeypatch.setattr(models.current.recommender, "predict", lambda **_: 1 / 0)
    found = ask(port, "/predict", {"movies": [7]})
    monkeypatch.undo()
    assert found.status == 500 and "internal error" in found.error()
    assert ask(port, "/predict", {"movies": [7]}).status == 200


def test_a_full_queue_answers_429_at_once_and_who_waited_too_long_gets_503(models, monkeypatch):
    go, predict = threading.Event(), models.current.recommender.predict
    with serving(models, waiting=2, patience=0.2) as port, ThreadPoolExecutor(2) as clients:
        ask(port, "/predict", {"movies": [5]})
        monkeypatch.setattr(models.current.recommender, "predict",  # busy as long as we like
                            lambda *args, **kwargs: go.wait(30) and predict(*args, **kwargs))

        def one_more(waiting):
            client = clients.submit(ask, port, "/predict", {"movies": [7, waiting * 2 + 7]})
            until(lambda: numbers(port)["bst_queue_requests"] == waiting)
            return client

        first, second = one_more(1), one_more(2)
        found = ask(port, "/predict", {"movies": [7, 15]})
        assert (found.status, found.headers["retry-after"]) == (429, "1")
        assert "2 requests" in found.error()
        assert ask(port, "/predict", {"movies": [5]}).status == 200  # in the cache
        assert ask(port, "/readyz").status == 503 and ask(port, "/healthz").status == 200
        time.sleep(0.4)
        go.set()
        assert first.result().status == 200
        late = second.result()
        assert (late.status, late.headers["retry-after"]) == (503, "1")
        assert "not served within 0.2 seconds" in late.error()
        until(lambda: ask(port, "/readyz").status == 200)


def test_answers_are_the_same_bytes_whoever_else_asks_and_from_the_cache(port, recommender):
    films = recommender.catalogue.ids

    def said(k, end=b" "):  # the cache knows a request byte by byte
        history = as_json([(films[k % 41], k % 5 + 1), (films[(k + 7) % 41], (3 * k) % 5 + 1)])
        return ask(port, "/predict",
                   json.dumps({"history": history, "movies": films}).encode() + end).body

    alone, cached = list(map(said, range(64))), numbers(port)["bst_cached_answers_total"]
    assert len(set(alone)) == 64
    with ThreadPoolExecutor(64) as clients:
        for end, hits in ((b"\n", 0), (b" ", 64)):
            assert list(clients.map(said, range(64), [end] * 64)) == alone
            assert numbers(port)["bst_cached_answers_total"] == cached + hits


def test_the_cache_is_bounded_in_bytes(models, monkeypatch):
    monkeypatch.setattr("bst.serving.worker.CACHE", 2 * ENTRY + 20)
    cache = Models(models.folder).current.cache
    for key in "abac":
        cache[key] = b"10 letters"
        assert cache["a"] and cache.currsize <= 2 * ENTRY + 20
    assert set(cache) == {"a", "c"}


def other(recommender: Recommender, add: float) -> Recommender:
    """The same recommender with everything predicted `add` stars higher."""
    model = copy.deepcopy(recommender.model)
    with torch.no_grad():
        model.head[-1].bias += add
    return Recommender(model, recommender.vocabulary, recommender.fitted)


def test_a_new_model_replaces_the_old_one_whole_and_a_broken_one_does_not(default, tmp_path):
    models, weights = Models(keep(default, tmp_path)), tmp_path / "model.safetensors"
    body = {"history": EVENTS, "movies": default.catalogue.ids}
    with serving(models, every=0.02) as port, ThreadPoolExecutor(1) as clients:
        old, stop = ask(port, "/predict", body).json(), threading.Event()
        client = clients.submit(lambda: [ask(port, "/predict", body).json()
                                         for _ in iter(stop.is_set, True)])  # until it is set
        keep(other(default, 0.5), tmp_path)
        until(lambda: ask(port, "/readyz").json()["model"] != old["model"])
        stop.set()
        new = ask(port, "/predict", body).json()
        assert new["items"] != old["items"] and new["model"] != old["model"]
        assert old in client.result() and all(found in (old, new) for found in client.result())

        good = weights.read_bytes()
        for failures, (spoil, line) in enumerate((
                (lambda: weights.write_bytes(good[:-9]), "no readable model"),
                (lambda: weights.write_bytes(b""), "no readable model"),
                (lambda: keep(other(default, float("nan")), tmp_path), "predicts nan"))):
            spoil()
            until(lambda: line in (ask(port, "/readyz").json()["reload_error"] or ""))  # noqa: B023
            assert ask(port, "/predict", body).json() == new
            until(lambda: numbers(port)["bst_model_reload_failures_total"] > failures)  # noqa: B023
            weights.write_bytes(good)
            until(lambda: not ask(port, "/readyz").json()["reload_error"])
        assert ask(port, "/predict", body).json() == new


def test_a_model_whose_sums_come_last_is_loaded_once_they_are_there(default, tmp_path):
    models = Models(keep(default, tmp_path / "run"))
    old = models.current.digest
    new = keep(other(default, 0.5), tmp_path / "new")
    for name in ("model.safetensors", "sums.json"):
        shutil.copy(new / name, tmp_path / "run")
        assert models.refresh() == (name == "sums.json")
        assert (models.current.digest == old) == (name != "sums.json") == bool(models.error)
    (tmp_path / "run" / "sums.json").touch()  # as each resume point of a training run does
    assert models.refresh() is None


def test_every_worker_reloads_is_replaced_if_it_dies_and_finishes_what_is_in_flight(
        models, tmp_path):
    films = models.current.recommender.catalogue.ids
    history = as_json([(film, 3) for film in films])

    def workers():
        return {int(name.split('"')[1]) for name in numbers(port) if "start_time" in name}

    out, errors = tmp_path / "out", tmp_path / "errors"
    process = start("serve.py", ["--run", models.folder, "--port", 0, "--workers", 2], out, errors)
    with ThreadPoolExecutor(40) as clients:
        try:
            until(lambda: f"model {models.current.digest}" in out.read_text())
            port = int(out.read_text().rpartition("http://127.0.0.1:")[2])
            until(lambda: numbers(port)["bst_queue_size"] == 2 * 64)
            os.kill(process.pid, signal.SIGHUP)  # files have not changed
            until(lambda: numbers(port)["bst_model_reloads_total"] == 2)
            os.kill(min(before := workers()), signal.SIGKILL)
            until(lambda: len(workers() - {min(before)}) == 2)
            asked = [clients.submit(ask, port, "/explain", {"history": history, "movie_id": film})
                     for film in films[1:]]
            until(lambda: numbers(port)["bst_queue_requests"] + numbers(port)[
                'bst_requests_total{path="/explain",status="200"}'] == 40)
            process.terminate()
            assert not all(client.done() for client in asked)
            assert [client.result().status for client in asked] == [200] * 40
            process.join(20)
            assert process.exitcode == 128 + signal.SIGTERM
            assert f"worker {min(before)} ended with code -9" in errors.read_text()
        finally:
            process.kill()
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/healthz")


def test_a_wrong_command_line_is_answered_in_one_line(models, tmp_path):
    with listen("127.0.0.1", 0) as taken:
        # an answer that goes out in two parts does not wait for the first to be confirmed
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        port = taken.getsockname()[1]
        for args, message in ((dict(run=tmp_path), "no readable model"),
                              (dict(run=models.folder, port=port), f"cannot listen on .*{port}"),
                              (dict(run=models.folder, port=99999), "expected 0 to 65535")):
            with refused(message):
                serve_script.main(serve_script.Args(**args))


def test_a_catalogue_of_one_item_can_be_served_too(models, monkeypatch):
    monkeypatch.setattr(Catalogue, "search", lambda *_: [FIRST_IDX])
    assert create_app(models).routes


def test_metrics_wait_for_the_file_that_a_new_worker_has_made_but_not_filled(
        tmp_path, monkeypatch):
    monkeypatch.setattr("bst.serving.metrics.SHARED", True)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    (tmp_path / "counter_1.db").touch()
    later = threading.Timer(0.1, (tmp_path / "counter_1.db").write_bytes, [b"\x08" + bytes(7)])
    later.start()
    assert metrics.text() == b""
    later.join()


def test_the_metrics_count_what_was_asked_and_who_hung_up(models):
    hung_up = 'bst_requests_total{path="/predict",status="499"}'
    with serving(models) as port:
        before = numbers(port)
        for path in ("/predict", "/a", "/b"):
            ask(port, path)
        for _ in range(3):
            ask(port, "/predict", {"movies": [7]})
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(POST + b"content-length: 9\r\n\r\n{")
        until(lambda: numbers(port)[hung_up] > before[hung_up])
        more = numbers(port)
        assert 10**7 < more["process_resident_memory_bytes"] < 10**11
    more.subtract(before)
    assert more['bst_requests_total{path="/predict",status="200"}'] == 3
    assert more['bst_requests_total{path="/predict",status="405"}'] == 1
    assert more['bst_requests_total{path="other",status="404"}'] == 2  # no new names
    counts = [more[f'bst_request_seconds_bucket{{le="{bound}",path="/predict"}}']
              for bound in (*metrics.BUCKETS, "+Inf")]
    assert counts == sorted(counts) and counts[-1] == 5


def test_the_openapi_page_describes_every_error(port):
    paths = ask(port, "/openapi.json").json()["paths"]
    assert len(paths) == 7
    for path in ("/recommend", "/predict", "/explain"):
        answers = paths[path]["post"]["responses"]
        assert set(answers) == {"200", "400", "408", "413", "415", "422", "429", "503"}
        assert json.dumps(answers).count("#/components/schemas/Error") == 7


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_runs_its_own_script_only_and_names_no_other_server(port, path):
    found = ask(port, path)
    policy = found.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "connect-src 'self'" in policy
    text = found.body.decode().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"//[a-z]|@import|innerHTML|outerHTML|insertAdjacent|\.write\(", text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("schemathesis") is None, reason="no schemathesis on the PATH; "
                    "pip install '.[fuzz]' in any environment")
def test_schemathesis_finds_no_request_that_breaks_the_service(port, tmp_path):
    done = subprocess.run(
        ["schemathesis", "run", f"http://127.0.0.1:{port}/openapi.json", "--seed", "1", "--checks",
         "not_a_server_error,status_code_conformance,content_type_conformance,"
         "response_schema_conformance"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.slow
def test_the_load_test_writes_what_it_saw(models, tmp_path):
    call("load_test.py", "--run", models.folder, "--workers", "1", "--clients", "30", "--seconds",
         "2", "--minutes", "0.03", "--json", tmp_path / "load.json")
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["model"] == models.current.digest and found["movies"] == 41
    for part in (found[name] for name in ("one", "many", "too many", "known", "minute 1")):
        assert part["status"]["200"] == part["served"] > 0
    assert found["too many"]["status"]["429"] > 0 and set(found["many"]["status"]) == {"200"}
    equal = found["equal"]
    assert equal["64_at_once_equal_alone"] and equal["64_films_minus_alone"] < 1e-5
    assert found["known"]["cpu_ms_each"] < found["many"]["cpu_ms_each"]
    assert abs(found["minute 1"]["memory_mb"] - found["one"]["memory_mb"]) < 30  # of some 300
