"""Middleware around the routes: limits of a body, the cache, counts, the form of answers.

Every answer but the pages and /metrics is JSON, and every error is {"error": "one line"}.
"""

import asyncio
import hashlib
import json
import re
import time

import h11
from fastapi import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bst.serving.metrics import HITS, REQUESTS, SECONDS
from bst.serving.worker import Models, Queue
from bst.utils.errors import DataError

BODY, BODY_SECONDS = 256 * 1024, 10.0  # most bytes and seconds of a request's body
CACHED = {"/recommend", "/predict", "/explain", "/movies"}  # functions of model and request
LONG = re.compile(r" -?\d{16}")  # of JSON: a whole number that may be above 2^53


class Gate:
    """The middleware; answers are counted by path, if it is one of `paths`."""

    def __init__(self, app: ASGIApp, models: Models, queue: Queue, paths: set[str]) -> None:
        self.app, self.models, self.queue, self.paths = app, models, queue, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500
        cache, key = {}, None  # set below where a good answer is kept

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff"),
                                      (b"cache-control", b"no-store")]
            elif status == 200 and key is not None:
                cache[key] = message["body"]
            await send(message)

        async def replay() -> Message:
            """The body that was read, then what comes after it."""
            return rest.pop() if rest else await receive()

        path, app = scope["path"] if scope["path"] in self.paths else "other", self.app
        try:
            body = await self._body(scope, receive)
            rest = [{"type": "http.request", "body": body, "more_body": False}]
            if body is None:
                status = 499  # the client hung up; nobody sees it but /metrics
                return
            if path in CACHED:
                types = [value for name, value in scope["headers"] if name == b"content-type"]
                asked = (scope["method"], path, scope["query_string"], *types,
                         hashlib.sha256(body).digest())
                cache = self.models.current.cache
                if (answer := cache.get(asked)) is not None:
                    HITS.inc()
                    app = Response(answer, media_type="application/json")
                else:
                    self.queue.check()  # before the work of reading the JSON
                    key = asked
            await app(scope, replay, sending)
        except (DataError, HTTPException) as error:
            code, line = getattr(error, "status_code", 422), getattr(error, "detail", str(error))
            # the rest of a body that was not read to its end is no request
            await error_reply(code, line, close=code in (408, 413))(scope, receive, sending)
        finally:
            REQUESTS.labels(path, status).inc()
            SECONDS.labels(path).observe(time.perf_counter() - started)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        too_large = HTTPException(413, f"the body is larger than {BODY} bytes")
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
                        raise too_large  # some excess is read, or clients miss the answer
        except TimeoutError:
            raise HTTPException(408, f"the body took more than {BODY_SECONDS:g} seconds") from None
        return body


class JsonProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, but bytes that are no HTTP get their error as JSON."""

    def send_400_response(self, msg: str) -> None:
        """Send the error, unless an answer has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": msg}).encode()
            self.transport.write(
                b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        self.transport.close()


def reply(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: any string of a request can be quoted in it; dataclasses become objects."""
    text = json.dumps(content, allow_nan=False, default=vars)
    if LONG.search(text):  # an id that JavaScript would round goes as text: "1" and 1 are one id
        text = json.dumps(json.loads(text, parse_int=lambda digits: digits if len(digits) > 15
                                     else int(digits)))
    return Response(text, status, headers, media_type="application/json")


def error_reply(status: int, line: str, *, close: bool = False) -> Response:
    """An error as JSON; `close`: no further request on this connection."""
    headers = {"connection": "close"} if close else {}
    if status in (429, 503):
        headers["retry-after"] = "1"
    return reply({"error": " ".join(line.split())[:500]}, status, headers)
