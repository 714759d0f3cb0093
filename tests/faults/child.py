"""A script of the project in a process of its own, with a fault planted in it."""

import itertools
import os
import resource
import signal
import socket
import time
from pathlib import Path

import bst.training.loop
import bst.utils.files
from tests.command import start, until

CALLS = {"before write": (bst.utils.files, "open"), "after write": (os, "fsync"),
         "before rename": (os, "replace"), "after rename": (bst.utils.files, "sync_folder")}


class Child:
    """`python scripts/SCRIPT ARGS` with `fault(*about)` called first; its output is in `log`."""

    def __init__(self, log: Path, script: str, args: list, fault=None, about: tuple = ()) -> None:
        self.log = log
        self.process = start(script, args, log, log, fault, about)

    def ends(self, *codes: int) -> int:
        """The exit code, one of `codes`, else 0; negative for a signal that killed it."""
        self.process.join(300)
        assert self.process.exitcode in (codes or (0,)), (self.process.exitcode, self.said)
        return self.process.exitcode

    def wait_for(self, words: str) -> None:
        """Return once it has printed `words`, or has ended."""
        until(lambda: words in self.said or not self.process.is_alive(), seconds=300)

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    @property
    def errors(self) -> list[str]:
        """The lines of `said` that an error makes, a traceback included."""
        lines = self.said.splitlines()
        return [k for k in lines if k.startswith(("error:", "Traceback", "  File", "thread '"))]


def before_each(module, name: str, act) -> None:
    """Have `act(number of the call, from 1)` happen before each call of a function."""
    real, count = getattr(module, name, open), itertools.count(1)

    def call(*args, **options):
        act(next(count))
        return real(*args, **options)

    setattr(module, name, call)


def kill_at(when: str, number: int) -> None:
    """Die by SIGKILL at the `number`-th call of the one of `CALLS` that is named `when`.

    They are what an atomic write calls, in its order.
    """

    def die(at: int) -> None:
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)

    before_each(*CALLS[when], die)


def slow_steps() -> None:
    """Have each update take a while, so that a signal comes before the last one."""
    before_each(bst.training.loop, "train_step", lambda _: time.sleep(0.05))


def endless_steps() -> None:
    """Have an update take for ever after the first 30."""

    def stick(number: int) -> None:
        while number > 30:
            print("stuck", flush=True)
            time.sleep(0.1)

    before_each(bst.training.loop, "train_step", stick)


def fill_disk(stuff: Path) -> None:
    """Fill the disk before the 26th update, with a file `stuff`."""

    def fill(number: int) -> None:
        if number == 26:
            free = os.statvfs(stuff.parent)
            stuff.write_bytes(bytes(free.f_bavail * free.f_frsize))

    before_each(bst.training.loop, "train_step", fill)


def turn_clock_back() -> None:
    """Have the clock of the wall go backwards, an hour at each look."""
    late = itertools.count(2_000_000_000, -3600)
    time.time = lambda: float(next(late))
    time.time_ns = lambda: next(late) * 10**9


def limit_memory(spare: int) -> None:
    """Let the address space grow by `spare` bytes from here."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def limit_files(size: int) -> None:
    """Refuse files of more than `size` bytes, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def forbid_network() -> None:
    """Have every look for an address and every connection end the process with code 99."""

    def refuse(*about, **_):
        print(f"network: {about}", flush=True)
        os._exit(99)

    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        setattr(socket, name, refuse)
    socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
