"""A service in a thread of this process, for its tests and for pictures of its page."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from bst.serving.app import create_app
from bst.serving.gate import JsonProtocol
from bst.serving.worker import Models
from scripts.serve import listen
from scripts.support.upload import add_history


@contextmanager
def serving(models: Models, *, port: int = 0, **limits) -> Iterator[int]:
    """The port of a service on loopback; `limits` as of `create_app`."""
    app = create_app(models, **limits)
    add_history(app, models)
    server = uvicorn.Server(uvicorn.Config(app, http=JsonProtocol, ws="none", log_config=None))
    with listen("127.0.0.1", port) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
