"""A run folder as a web service: predictions, top lists, reasons, and a page to try them.

    app = create_app(Models(Path("runs/ml-1m")))   # scripts/serve.py serves it

One thread scores, off the event loop; so many requests may wait for it, the next one is refused at
once. Every answer but the page and /metrics is JSON, and every error is {"error": "one line"}.
"""

import asyncio
import base64
import hashlib
import json
import logging
import math
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import h11
import numpy as np
import torch
from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bst.catalogue import Interaction
from bst.recommend import Explanation, Recommendation, Recommender
from bst.schema import DataError

BODY, BODY_SECONDS = 256 * 1024, 10.0  # bytes of a request's body, and the time it may take
HISTORY, EXPLAINED = 1000, 300  # events; reasons cost the square of their number
MOVIES, TOP, REASONS = 1000, 100, 5  # most of each in one request
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
PAGE = Path(__file__).with_name("page.html")
FILES = "model.json", "model.safetensors", "fitted.safetensors"
log = logging.getLogger("bst.serve")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


MovieId = Annotated[int, Field(ge=0, lt=2**31, examples=[1])]
Seconds = Annotated[int, Field(ge=0, lt=2**40, description="seconds since 1970 UTC")]


class Rated(_Strict):
    """One rating of a history."""

    movie_id: MovieId
    stars: float = Field(examples=[4.0], description="on the scale of the data, see /readyz")
    time: Seconds | None = Field(None, examples=[978300760])


class About(_Strict):
    """What is known of the person, coded as in users.dat."""

    sex: str | None = Field(None, max_length=20, examples=["F"])
    age: str | None = Field(None, max_length=20, examples=["25"])
    occupation: str | None = Field(None, max_length=20, examples=["4"])
    zip: str | None = Field(None, max_length=20, examples=["55117"])


class Asked(_Strict):
    """The person whom a request is about."""

    history: list[Rated] = Field(
        default=[], max_length=HISTORY,
        description="each film once; times for all events or for none: then they count as rated "
                    "in this order, a minute apart")
    user: About = About()
    at: Seconds | None = Field(None, description="when; none: a second after the last rating")

    def person(self) -> dict[str, Any]:
        """Arguments of the recommender's calls."""
        timed = {event.time is not None for event in self.history}
        if len(timed) > 1:
            raise DataError("history: only some events have a time; give all of them one, or none")
        if self.at is not None and timed == {False}:
            raise DataError("at: the events of the history have no time; give them one, or no at")
        events = [Interaction(e.movie_id, e.stars, 60 * k if e.time is None else e.time)
                  for k, e in enumerate(self.history)]
        return {"history": events, "user": self.user.model_dump(exclude_none=True), "at": self.at}

    def check_short(self) -> None:
        """Refuse a history that is too long for reasons."""
        if len(self.history) > EXPLAINED:
            raise DataError(f"history: {len(self.history)} events, expected at most {EXPLAINED} "
                            "where reasons are asked for")


class AskRecommend(Asked):
    """The films with the most expected stars."""

    k: int = Field(10, ge=1, le=TOP)
    exclude_seen: bool = True
    genres: list[Annotated[str, Field(max_length=50)]] = Field([], max_length=50)
    years: list[int] | None = Field(None, min_length=2, max_length=2, examples=[[1980, 1999]])
    reasons: int = Field(0, ge=0, le=REASONS, description="events to name for each film")


class AskPredict(Asked):
    """Expected stars of films."""

    movies: list[MovieId] = Field(max_length=MOVIES)


class AskExplain(Asked):
    """What each event of the history does to a prediction."""

    movie_id: MovieId


class Top(BaseModel):
    """Films, best first."""

    items: list[Recommendation]
    model: str = Field(examples=["9f86d081"], description="which weights answered")


class Stars(BaseModel):
    """Expected stars of one film."""

    movie_id: int
    stars: float


class Predictions(BaseModel):
    """Expected stars in the order of the request."""

    items: list[Stars]
    model: str


@dataclass(frozen=True, kw_only=True)
class Explained(Explanation):
    """An explanation and the model that it is of."""

    model: str


class Movie(BaseModel):
    """A film of the catalogue."""

    movie_id: int
    title: str
    year: int | None
    genres: list[str]
    ratings: int = Field(description="in the train part of the data")


class Movies(BaseModel):
    """Films that were searched for."""

    items: list[Movie]


class Error(BaseModel):
    """Every error."""

    error: str = Field(examples=["history[0].stars: 6 stars, expected one of 1, 2, 3, 4, 5"])


ERRORS = {400: "JSON cannot be read from the body", 408: "the body took too long",
          413: "the body is too large",
          422: "the request is wrong; the line says where", 429: "too many requests wait",
          503: "not served in time"}
RESPONSES = {code: {"model": Error, "description": text} for code, text in ERRORS.items()}


class Refused(Exception):
    """A request that gets no answer now: status, one line, seconds to wait before the next try."""

    def __init__(self, status: int, line: str, wait: int = 0) -> None:
        super().__init__(line)
        self.status, self.wait = status, wait


@dataclass(frozen=True)
class Loaded:
    """A model and its name."""

    recommender: Recommender
    digest: str  # of the weights, 8 hexadecimal digits


class Models:
    """The model of a folder; a new one replaces it whole, a broken one does not.

    Args:
        folder: run folder.

    Raises:
        DataError: the folder holds no whole model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.error, self.asked = folder, None, False
        self.reloads = self.failures = 0
        self._stamp = self._look()
        self.current = self._load()

    def refresh(self) -> None:
        """Load the folder again if a file of it has changed or `asked` is set."""
        stamp = self._look()
        if stamp == self._stamp and not self.asked:
            return
        self.asked, self._stamp = False, stamp
        try:
            loaded = self._load()
        except Exception as error:  # whatever is wrong with it, the old model goes on
            self.failures += 1
            self.error = str(error) or type(error).__name__
            log.error("kept model %s: %s", self.current.digest, self.error)
            return
        if self._look() != stamp:
            self._stamp = None  # written while it was read: look again next time
            return
        self.current, self.error = loaded, None
        self.reloads += 1
        log.warning("loaded model %s", loaded.digest)

    def _load(self) -> Loaded:
        recommender = Recommender.from_pretrained(self.folder)
        stars = recommender.predict([], recommender.catalogue.ids)
        if not np.isfinite(stars).all():
            raise DataError(f"{self.folder}: the model predicts {stars[~np.isfinite(stars)][0]}; "
                            "its weights are broken, train again")
        weights = (self.folder / "model.safetensors").read_bytes()
        return Loaded(recommender, hashlib.sha256(weights).hexdigest()[:8])

    def _look(self) -> tuple:
        """What tells whether the files are still the same."""
        def stamp(path: Path) -> tuple | None:
            try:
                found = path.stat()
            except OSError:
                return None
            return found.st_mtime_ns, found.st_size, found.st_ino

        return tuple(stamp(self.folder / name) for name in FILES)


class Worker:
    """One thread that scores, and the requests that wait for it.

    Args:
        size: requests that may wait or be at work; one more is refused.
        patience: seconds after which a request that is still waiting is refused.
    """

    def __init__(self, size: int, patience: float) -> None:
        self.size, self.patience = size, patience
        self.waiting, self._usual = 0, 0.01  # seconds of a job, a running mean
        self._thread = ThreadPoolExecutor(1, "score", torch.set_num_threads, (1,))

    async def run(self, job: Callable[[], dict]) -> dict:
        """The result of the job.

        Raises:
            Refused: the queue is full (429), or the wait was too long (503).
        """
        if self.waiting >= self.size:
            raise Refused(429, f"{self.waiting} requests wait already; try again later",
                          math.ceil(self.waiting * self._usual))
        self.waiting += 1
        latest = time.monotonic() + self.patience
        try:
            return await asyncio.wrap_future(self._thread.submit(self._work, job, latest))
        finally:
            self.waiting -= 1

    def _work(self, job: Callable[[], dict], latest: float) -> dict:
        started = time.monotonic()
        if started > latest:
            raise Refused(503, f"not served within {self.patience:g} seconds; try again later",
                          math.ceil(self.waiting * self._usual))
        try:
            return job()
        finally:
            self._usual += 0.1 * (time.monotonic() - started - self._usual)

    def close(self) -> None:
        """End the thread once its jobs are done."""
        self._thread.shutdown()


class Metrics:
    """Counts of requests and their seconds, as Prometheus reads them."""

    def __init__(self) -> None:
        self.started = time.time()
        self.count: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self.total: Counter[str] = Counter()

    def add(self, path: str, status: int, seconds: float) -> None:
        """Note one answer."""
        self.count[path, status] += 1
        self.seconds[path][sum(seconds > bound for bound in BUCKETS)] += 1
        self.total[path] += seconds

    def text(self, models: Models, worker: Worker) -> str:
        """All numbers in the text format, version 0.0.4."""
        lines = ["# TYPE bst_requests_total counter"]
        lines += [f'bst_requests_total{{path="{path}",status="{status}"}} {n}'
                  for (path, status), n in sorted(self.count.items())]
        lines.append("# TYPE bst_request_seconds histogram")
        for path, found in sorted(self.seconds.items()):
            running = np.cumsum(found)
            lines += [f'bst_request_seconds_bucket{{path="{path}",le="{bound}"}} {n}'
                      for bound, n in zip([*BUCKETS, "+Inf"], running, strict=True)]
            lines += [f'bst_request_seconds_sum{{path="{path}"}} {self.total[path]:.6f}',
                      f'bst_request_seconds_count{{path="{path}"}} {running[-1]}']
        plain = [("bst_queue_requests", "gauge", worker.waiting),
                 ("bst_queue_size", "gauge", worker.size),
                 ("bst_model_reloads_total", "counter", models.reloads),
                 ("bst_model_reload_failures_total", "counter", models.failures),
                 (f'bst_model_info{{digest="{models.current.digest}"}}', "gauge", 1),
                 ("process_cpu_seconds_total", "counter", f"{time.process_time():.3f}"),
                 ("process_start_time_seconds", "gauge", f"{self.started:.3f}")]
        memory = resident_bytes()
        if memory is not None:
            plain.append(("process_resident_memory_bytes", "gauge", memory))
        for name, kind, value in plain:
            lines += [f"# TYPE {name.partition('{')[0]} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int | None:
    """Memory of this process; None where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class Guard:
    """Around the application: reads the body within its limits, counts, adds headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: set[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff"),
                                      (b"cache-control", b"no-store")]
            await send(message)

        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            body = await self._body(scope, receive)
            if body is None:
                status = 499  # the client hung up; nobody sees it but /metrics
            else:
                await self.app(scope, _replay(body, receive), sending)
        except Refused as refused:
            await error_reply(refused.status, str(refused), close=True)(scope, receive, sending)
        finally:
            self.metrics.add(path, status, time.perf_counter() - started)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        too_large = Refused(413, f"the body is larger than {BODY} bytes")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if len(length) > 12 or int(length) > 4 * BODY:
            raise too_large
        body, size, more = b"", 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    body += part if size <= BODY else b""
                    if size > BODY and (not more or size > 4 * BODY):
                        raise too_large  # a little too much is read, so that the answer is too
        except TimeoutError:
            raise Refused(408, f"the body took more than {BODY_SECONDS:g} seconds") from None
        return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return rest.pop() if rest else await receive()

    return next_message


class JsonProtocol(H11Protocol):
    """HTTP whose answer to bytes that are no HTTP is JSON too."""

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong and hang up; in silence if an answer is under way."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": msg}).encode()
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        self.transport.close()


def reply(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: any string of a request can be quoted in it."""
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, headers, media_type="application/json")


def error_reply(status: int, line: str, *, wait: int = 0, close: bool = False) -> Response:
    """The one shape of errors; `wait` becomes Retry-After."""
    headers = {"connection": "close"} if close else {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, wait))
    return reply({"error": " ".join(line.split())[:500]}, status, headers)


def page() -> tuple[str, str]:
    """The page, and the content policy under which nothing but its own script and style runs."""
    text = PAGE.read_text(encoding="utf-8")

    def digest(tag: str) -> str:
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        return base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()

    return text, (f"default-src 'none'; script-src 'sha256-{digest('script')}'; "
                  f"style-src 'sha256-{digest('style')}'; connect-src 'self'; img-src data:; "
                  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def create_app(models: Models, *, waiting: int = 64, patience: float = 10.0,
               every: float = 1.0) -> FastAPI:
    """The service.

    Args:
        models: what it serves.
        waiting: requests that may wait for the scoring thread; one more gets 429.
        patience: seconds after which a waiting request gets 503.
        every: seconds between two looks at the folder.
    """
    worker, metrics = Worker(waiting, patience), Metrics()
    html, policy = page()
    person, known = _example(models.current.recommender)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def watch() -> None:
            while True:
                await asyncio.sleep(every)
                await asyncio.to_thread(models.refresh)

        watching = asyncio.create_task(watch())
        yield
        watching.cancel()
        worker.close()

    app = FastAPI(title="bst", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
                  redirect_slashes=False, description=__doc__.splitlines()[0])

    async def answer(job: Callable[[Recommender], dict]) -> Response:
        loaded = models.current  # one model for the whole request
        found = await worker.run(lambda: job(loaded.recommender))
        return reply(found | {"model": loaded.digest})

    @app.post("/recommend", response_model=Top, responses=RESPONSES)
    async def recommend(
        asked: Annotated[AskRecommend, Body(examples=[person | {"k": 3, "reasons": 2}])],
    ) -> Response:
        """The k films with the most expected stars, and what in the history raised them."""
        given = asked.person()
        if asked.reasons:
            asked.check_short()
        return await answer(lambda model: {"items": [asdict(item) for item in model.recommend(
            k=asked.k, exclude_seen=asked.exclude_seen, genres=asked.genres,
            years=asked.years and tuple(asked.years), reasons=asked.reasons, **given)]})

    @app.post("/predict", response_model=Predictions, responses=RESPONSES)
    async def predict(
        asked: Annotated[AskPredict, Body(examples=[person | {"movies": known}])],
    ) -> Response:
        """Expected stars of the films, in their order."""
        given = asked.person()

        def job(model: Recommender) -> dict:
            stars = model.predict(movies=asked.movies, **given).tolist()
            return {"items": [{"movie_id": movie, "stars": found}
                              for movie, found in zip(asked.movies, stars, strict=True)]}

        return await answer(job)

    @app.post("/explain", response_model=Explained, responses=RESPONSES)
    async def explain(
        asked: Annotated[AskExplain, Body(examples=[person | {"movie_id": known[0]}])],
    ) -> Response:
        """What each event of the history does to the prediction, the largest effect first."""
        given = asked.person()
        asked.check_short()
        return await answer(lambda model: asdict(model.explain(movie=asked.movie_id, **given)))

    @app.get("/movies", response_model=Movies, responses=RESPONSES)
    async def movies(
        q: Annotated[str, Query(max_length=100, examples=["toy story"])] = "",
        k: Annotated[int, Query(ge=1, le=TOP)] = 10,
    ) -> Response:
        """Films with a word of the title beginning like each word of q, the most rated first."""
        catalogue = models.current.recommender.catalogue
        return reply(await worker.run(lambda: {"items": [
            catalogue.about(item) for item in catalogue.search(q, k)]}))

    @app.get("/healthz")
    async def healthz() -> Response:
        """200 as long as the process answers."""
        return reply({"status": "ok"})

    @app.get("/readyz", responses={503: RESPONSES[503]})
    async def readyz() -> Response:
        """200 when a request would be taken; what is served, and the last failed reload."""
        if worker.waiting >= worker.size:
            return error_reply(503, f"{worker.waiting} requests wait")
        loaded = models.current
        model = loaded.recommender
        return reply({"status": "ready", "model": loaded.digest, "reload_error": models.error,
                      "movies": len(model.catalogue.ids), "stars": model.model.levels.tolist(),
                      "genres": list(model.catalogue.statistics.genres)})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(metrics.text(models, worker),
                                 media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        headers = {"content-security-policy": policy, "referrer-policy": "no-referrer"}
        return Response(html, headers=headers, media_type="text/html")

    @app.exception_handler(DataError)
    async def wrong_data(_: Request, error: DataError) -> Response:
        return error_reply(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def wrong_request(_: Request, error: RequestValidationError) -> Response:
        return error_reply(422, _first_line(error.errors()))

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error_reply(error.status, str(error), wait=error.wait)

    @app.exception_handler(HTTPException)
    async def wrong_place(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        known = {404: f"no page {path}", 405: f"{path} does not take {request.method}"}
        return error_reply(error.status_code, known.get(error.status_code, error.detail))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return error_reply(500, "internal error; the log of the service says more")

    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(Guard, metrics=metrics, paths=paths)
    return app


def _example(model: Recommender) -> tuple[dict, list[int]]:
    """A person and films of the catalogue, so that the examples of the OpenAPI page work here."""
    known = [model.catalogue.name(item)[0] for item in model.catalogue.search("", 4)]
    low, high = model.model.levels[[0, -1]].tolist()
    history = [{"movie_id": known[0], "stars": high}, {"movie_id": known[1], "stars": low}]
    return {"history": history}, known[2:]


def _first_line(errors: list[dict]) -> str:
    """The first thing that is wrong with a request: where, and what."""
    first, *others = errors
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}"
                    for part in first["loc"][1:]).lstrip(".")
    more = f" (and {len(others)} more)" if others else ""
    return f"{where or 'body'}: {first['msg']}{more}"
