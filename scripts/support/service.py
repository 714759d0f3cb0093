"""Ways to run the application: in worker processes, or in a thread for tests and pictures."""

import gc
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from bst.serving.app import create_app
from bst.serving.gate import JsonProtocol
from bst.serving.worker import Models
from bst.utils.errors import DataError
from scripts.support.upload import read_upload

SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
log = logging.getLogger(__name__)


class Listening(socket.socket):
    """A socket with a long backlog from which asyncio takes one connection at a time.

    For asyncio both are one number. With a large one, the worker that wakes first takes all.
    """

    def listen(self, backlog: int) -> None:
        """The same backlog whatever is asked for."""
        super().listen(512)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, or one clear line."""
    if not 0 <= port < 2**16:
        raise DataError(f"--port {port}: expected 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = Listening(fileno=socket.create_server((host, port), family=family).detach())
        found.listen(512)
        # An answer goes out in two parts; without this, a kept connection waits 40 ms between them.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    except OSError as error:
        raise DataError(f"cannot listen on {host} port {port}: {error}; choose another --host or "
                        "--port") from error


def server_of(models: Models, limits: dict, **config) -> uvicorn.Server:
    """A server of these models; `limits` as of `create_app`, `config` as of uvicorn."""
    app = create_app(models, **{"read_file": read_upload} | limits)
    return uvicorn.Server(uvicorn.Config(
        app, http=JsonProtocol, ws="none", log_config=None, access_log=False, server_header=False,
        backlog=1, **config))


@contextmanager
def serving(models: Models, *, port: int = 0, **limits) -> Iterator[int]:
    """The port of a service on loopback, in a thread; `limits` as of `create_app`."""
    server = server_of(models, limits)
    with listen("127.0.0.1", port) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def serve(models: Models, listening: socket.socket, count: int) -> int:
    """Serve in `count` workers until SIGTERM or SIGINT; returns the exit code.

    Workers are forked: they share the memory of this process, the model too, until they write to
    it. Each accepts connections on the one socket. Both signals let them finish what is in flight;
    SIGHUP has them load the model again. A worker that ends by itself is replaced.

    Args:
        models: loaded; this process reloads them too, for the workers that it starts later.
        listening: a socket that listens.
        count: number of workers.
    """
    fork, workers, got = multiprocessing.get_context("fork"), [], []

    def start() -> multiprocessing.Process:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the worker has its own handlers
        worker = fork.Process(target=_work, args=(models, listening, os.getpid()))
        worker.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return worker

    def send(number: signal.Signals) -> None:
        for worker in workers:
            with suppress(ProcessLookupError):  # it may end in this moment
                if worker.is_alive():
                    os.kill(worker.pid, number)

    def stop(number: int, _frame) -> None:
        got.append(number)
        send(signal.SIGTERM)

    def reload(*_) -> None:
        models.force_reload()
        send(signal.SIGHUP)

    for number, handler in zip(SIGNALS, (stop, stop, reload), strict=True):
        signal.signal(number, handler)
    mark_process_dead(os.getpid())  # of the metrics: it answers nobody
    gc.collect()
    gc.freeze()  # the collector would write to every object, and so copy every page
    workers += [start() for _ in range(count)]
    while not got:
        multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=1)
        models.refresh()
        for k, worker in enumerate(workers):
            if not got and not worker.is_alive():
                log.error("worker %d ended with code %d, another one takes its place", worker.pid,
                          worker.exitcode)
                mark_process_dead(worker.pid)
                time.sleep(0.1)  # should it end again and again
                workers[k] = start()
    listening.close()  # who comes now is told at once
    send(signal.SIGTERM)  # to a worker that was started meanwhile
    for worker in workers:
        worker.join()
    return 128 + got[0]


def _work(models: Models, listening: socket.socket, parent: int) -> None:
    """What a worker does until SIGTERM, or until its parent is gone."""
    async def look() -> None:
        server.should_exit |= os.getppid() != parent

    server = server_of(models, {}, timeout_graceful_shutdown=30, callback_notify=look,
                       timeout_notify=1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, lambda *_: models.force_reload())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    server.run(sockets=[listening])
