"""Serve the model of a run folder over HTTP, with a web page at /.

A new model in the folder is loaded while the old one serves; SIGHUP loads it at once. SIGTERM and
SIGINT finish the requests in flight. Needs fastapi and uvicorn: pip install '.[serve]'.
"""

import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.utils.errors import DataError
from bst.utils.guard import command
from scripts.support.flags import RunFolder


@dataclass(frozen=True)
class Args:
    """Serve a run."""

    model: RunFolder
    """run folder"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0: all, only behind a proxy that you trust"""
    port: int = 8000
    """port to listen on; 0: any free one"""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, or one clear line."""
    if not 0 <= port < 2**16:
        raise DataError(f"--port {port}: expected 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host, port), family=family, backlog=512)
        # An answer goes out in two parts; without this, a kept connection waits 40 ms between them.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    except OSError as error:
        raise DataError(f"cannot listen on {host} port {port}: {error}; choose another --host or "
                        "--port") from error


def main(args: Args) -> None:
    """Load, listen, serve until a signal."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        import uvicorn

        from bst.serving.app import create_app
        from bst.serving.gate import JsonProtocol
        from bst.serving.worker import Models
        from scripts.support.upload import add_history
    except ModuleNotFoundError as error:
        raise DataError(f"no module {error.name}; run: pip install '.[serve]'") from error
    import torch

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    models = Models(args.model)
    signal.signal(signal.SIGHUP, lambda *_: setattr(models, "asked", True))
    app = create_app(models)
    add_history(app, models)
    config = uvicorn.Config(app, http=JsonProtocol, ws="none", log_config=None,
                            access_log=False, server_header=False, timeout_graceful_shutdown=30)
    listening = listen(args.host, args.port)
    host, port = listening.getsockname()[:2]
    print(f"model {models.current.digest} of {args.model} at "
          f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    command(main, Args, __doc__)
