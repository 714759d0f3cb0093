"""A run folder as a web service: predictions, top lists, reasons, and a page to try them."""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Body, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

from bst.recommend.person import Person
from bst.recommend.recommender import Recommender
from bst.serving import messages, metrics
from bst.serving.gate import Gate, error_reply, reply
from bst.serving.worker import Models, Queue


def create_app(
    models: Models, *, waiting: int = 64, patience: float = 10.0, every: float = 1.0,
    read_file: Callable[[bytes, Recommender], dict] | None = None,
) -> FastAPI:
    """The service, as each worker runs it.

    Args:
        models: what it serves.
        waiting: requests that may wait for the thread that scores; one more gets 429.
        patience: seconds after which a waiting request gets 503.
        every: seconds between two looks at the folder of the run.
        read_file: content of a file of ratings -> answer to POST /history, where the page sends
            it; None: there is no such route, and the page has no Import button.
    """
    queue = Queue(waiting, patience)

    async def watch() -> None:
        while True:
            old = models.current.digest
            is_new = await asyncio.to_thread(models.refresh)
            if is_new is not None:
                (metrics.RELOADS if is_new else metrics.FAILURES).inc()
            for digest in (old, models.current.digest):
                metrics.MODEL.labels(digest).set(digest == models.current.digest)
            metrics.CACHE_BYTES.set(models.current.cache.currsize)
            metrics.update()
            await asyncio.sleep(every)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(watch())
        yield
        watching.cancel()
        queue.executor.shutdown()

    app = FastAPI(title="bst", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
                  redirect_slashes=False, description=__doc__.splitlines()[0])
    _add_answers(app, models, queue)
    _add_state(app, models, queue)
    _add_pages(app, has_import=read_file is not None)
    if read_file is not None:
        @app.post("/history", include_in_schema=False)
        async def history(request: Request) -> Response:
            model, content = models.current.recommender, await request.body()
            return reply(await asyncio.to_thread(read_file, content, model))
    _add_errors(app)
    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(Gate, models=models, queue=queue, paths=paths)
    return app


def _add_answers(app: FastAPI, models: Models, queue: Queue) -> None:
    """The routes that the model answers: /recommend, /predict, /explain, /movies."""
    model = models.current.recommender
    known = [model.catalogue.name(item)[0] for item in model.catalogue.search("", 4)] * 3
    stars = model.model.levels[[0, -1]].tolist()  # of a person for the examples of the docs page
    person = {"history": [{"movie_id": item, "stars": rated}
                          for item, rated in zip(known[:2], stars, strict=True)]}

    async def answer(given: dict, job: Callable[[Recommender, Person, int | None], dict]
                     ) -> Response:
        loaded = models.current  # one model for the whole request

        def work() -> Response:
            who = loaded.recommender.person(given["history"], user=given["user"])
            found = job(loaded.recommender, who, given["at"])
            return reply(found | {"notes": who.notes, "model": loaded.digest})

        return await queue.run(work)

    @app.post("/recommend", response_model=messages.Top, responses=messages.RESPONSES)
    async def recommend(
        asked: Annotated[messages.AskRecommend, Body(examples=[person | {"k": 3, "reasons": 2}])],
    ) -> Response:
        """The k best items, and what in the history raised their stars."""
        def job(model: Recommender, who: Person, at: int | None) -> dict:
            by = asked.by or model.ways[0]
            options = asked.model_dump(exclude={*messages.Asked.model_fields, "by"})
            best = model.recommend(who, at=at, by=by, **options)
            rows = model.catalogue.items([item.movie_id for item in best])
            return {"by": by, "items": [vars(item) | model.catalogue.about(row)
                                        for item, row in zip(best, rows, strict=True)]}

        return await answer(asked.arguments(explained=asked.reasons > 0), job)

    @app.post("/predict", response_model=messages.Predictions, responses=messages.RESPONSES)
    async def predict(
        asked: Annotated[messages.AskPredict, Body(examples=[person | {"movies": known[2:]}])],
    ) -> Response:
        """Expected stars of the items, in their order."""
        def job(model: Recommender, who: Person, at: int | None) -> dict:
            stars = model.predict(who, asked.movies, at=at).tolist()
            rated = map(who.given.get, model.catalogue.items(asked.movies).tolist())
            rows = zip(asked.movies, stars, rated, strict=True)
            return {"items": [{"movie_id": item, "stars": expected, "rated": given}
                              for item, expected, given in rows]}

        return await answer(asked.arguments(), job)

    @app.post("/explain", response_model=messages.Explained, responses=messages.RESPONSES)
    async def explain(
        asked: Annotated[messages.AskExplain, Body(examples=[person | {"movie_id": known[2]}])],
    ) -> Response:
        """What each event of the history does to the prediction, the largest effect first."""
        return await answer(asked.arguments(explained=True), lambda model, who, at: vars(
            model.explain(who, asked.movie_id, at=at)))

    @app.get("/movies", response_model=messages.Movies, responses=messages.RESPONSES)
    async def movies(
        q: Annotated[str, Query(max_length=100, examples=["toy story"])] = "",
        k: Annotated[int, Query(ge=1, le=messages.TOP)] = 10,
    ) -> Response:
        """Items with a word of the title beginning like each word of q, the most rated first."""
        catalogue = models.current.recommender.catalogue
        return await queue.run(lambda: reply({"items": [
            catalogue.about(item) for item in catalogue.search(q, k)]}))


def _add_state(app: FastAPI, models: Models, queue: Queue) -> None:
    """The routes about the service itself: /healthz, /readyz, /metrics."""
    @app.get("/healthz")
    async def healthz() -> Response:
        """200 as long as the process answers."""
        return reply({"status": "ok"})

    @app.get("/readyz", responses={503: messages.RESPONSES[503]})
    async def readyz() -> Response:
        """200 if a request would be accepted; what is served, and why a reload failed."""
        if queue.waiting >= queue.size:
            return error_reply(503, f"{queue.waiting} requests wait")
        model = (loaded := models.current).recommender
        return reply({"status": "ready", "model": loaded.digest, "reload_error": models.error,
                      "movies": len(model.catalogue.ids), "stars": model.model.levels.tolist(),
                      "genres": model.catalogue.genres, "by": model.ways})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        """Numbers for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI, *, has_import: bool) -> None:
    """The pages; a content security policy lets only their own script and style run."""
    for path, name in (("/", "page.html"), ("/docs", "docs.html")):
        text = Path(__file__).with_name(name).read_text(encoding="utf-8")
        if not has_import:
            text = text.replace('<button id="import"', '<button hidden id="import"')
        parts = re.search("<style>(.*?)</style>.*<script>(.*?)</script>", text, re.DOTALL).groups()
        style, script = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
                         for part in parts)
        policy = (f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; "
                  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                  "frame-ancestors 'none'")
        page = Response(text, media_type="text/html", headers={
            "content-security-policy": policy, "referrer-policy": "no-referrer"})
        app.add_route(path, lambda _, page=page: page, include_in_schema=False)


def _add_errors(app: FastAPI) -> None:
    """One form for all errors."""
    @app.exception_handler(RequestValidationError)
    async def wrong_request(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "none")
        if request.method == "POST" and "json" not in kind:
            return error_reply(415, f"content-type: {kind}, expected application/json")
        first, *others = error.errors()
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}"
                        for part in first["loc"][1:]).lstrip(".")
        more = f" (and {len(others)} more)" if others else ""
        return error_reply(422, f"{where or 'body'}: {first['msg']}{more}")

    @app.exception_handler(HTTPException)
    async def wrong_path(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        known = {404: f"no page {path}", 405: f"{path} does not take {request.method}"}
        return error_reply(error.status_code, known.get(error.status_code, error.detail))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return error_reply(500, "internal error; the log of the service says more")
