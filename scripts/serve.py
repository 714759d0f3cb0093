"""Serve the model of a run folder over HTTP, with a web page at /.

A new model in the folder is loaded while the old one serves; SIGHUP loads it at once. SIGTERM and
SIGINT finish the requests in flight. Needs fastapi and uvicorn: pip install '.[scripts,serve]'.
"""

import logging
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.config import Options, option
from bst.utils.errors import DataError
from scripts.support.command import command
from scripts.support.flags import CORES, RunFolder


@dataclass(frozen=True)
class Args(Options):
    """Serve a run."""

    run: RunFolder
    """run folder"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0: all, only behind a proxy that you trust"""
    port: int = 8000
    """port to listen on; 0: any free one"""
    workers: int = option(CORES, "processes that answer; the default is the number of cores",
                          "[1, 1024]")


def main(args: Args) -> int:
    """Load, listen, serve until a signal."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="bst-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where workers put their counts together
        try:
            from bst.serving.worker import Models
            from scripts.support.service import listen, serve
        except ModuleNotFoundError as error:
            raise DataError(f"no module {error.name}; run: pip install '.[serve]'") from error
        import torch

        torch.set_num_threads(1)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        models = Models(args.run)
        listening = listen(args.host, args.port)
        host, port = listening.getsockname()[:2]
        print(f"model {models.current.digest} of {args.run} at "
              f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        return serve(models, listening, args.workers)


if __name__ == "__main__":
    command(main, Args, __doc__)
