"""Between the sockets and the routes: limits of a body, counts for /metrics, the shape of answers.

Every answer but the page and /metrics is JSON, and every error is {"error": "one line"}.
"""

import asyncio
import json
import os
import time
from collections import Counter, defaultdict
from pathlib import Path

import h11
import numpy as np
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bst.serving.worker import Models, Refused, Worker

BODY, BODY_SECONDS = 256 * 1024, 10.0  # bytes of a request's body, and the time it may take
STATM = Path("/proc/self/statm")  # of Linux; the second number is the resident pages
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


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
        if STATM.exists():
            memory = int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            plain.append(("process_resident_memory_bytes", "gauge", memory))
        for name, kind, value in plain:
            lines += [f"# TYPE {name.partition('{')[0]} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


class Gate:
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

        async def replay() -> Message:
            """The body that was read, then what comes after it."""
            return rest.pop() if rest else await receive()

        path = scope["path"] if scope["path"] in self.paths else "other"
        try:
            body = await self._body(scope, receive)
            rest = [{"type": "http.request", "body": body, "more_body": False}]
            if body is None:
                status = 499  # the client hung up; nobody sees it but /metrics
            else:
                await self.app(scope, replay, sending)
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
    # an id that JavaScript would round goes as text: "1" and 1 are one id
    exact = json.loads(text, parse_int=lambda digits: digits if len(digits) > 15 else int(digits))
    return Response(json.dumps(exact), status, headers, media_type="application/json")


def error_reply(status: int, line: str, *, wait: int = 0, close: bool = False) -> Response:
    """The one shape of errors; `wait` becomes Retry-After."""
    headers = {"connection": "close"} if close else {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, wait))
    return reply({"error": " ".join(line.split())[:500]}, status, headers)
