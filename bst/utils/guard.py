"""How a command ends: an error is one line and an exit code; locks and signals.

Exit codes: 1 the data, the memory or the loss; 2 a flag; 73 another process works in the folder; 74
a file cannot be read or written; 130 and 143 stopped by SIGINT and SIGTERM.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

from filelock import FileLock, Timeout

from bst.utils.errors import DataError
from bst.utils.files import stamp

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FolderInUseError(DataError):
    """Another process works in the folder; its arguments are the folder and the process's id."""

    exit_code = 73  # EX_CANTCREAT of sysexits.h

    def __str__(self) -> str:
        folder, pid = self.args
        return (f"process {pid} is working in {folder}, expected nobody; wait for it or choose "
                "another folder")


def guarded(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with what it returns, or with one line that says what went wrong.

    A bug of ours keeps its traceback. A reader that stops reading, as with `| head`, is no error.
    """
    try:
        with redirect_stdout(_Pipe(sys.stdout)) as out:
            try:
                sys.exit(main())
            finally:
                out.flush()
    except KeyboardInterrupt:
        _leave("interrupted; the same command starts again", 128 + signal.SIGINT)
    except (DataError, FloatingPointError, ConnectionError) as error:
        _leave(str(error), getattr(error, "exit_code", 1))
    except OSError as error:
        _leave(_about_file(error), 74)  # EX_IOERR of sysexits.h
    except ModuleNotFoundError as error:
        _leave(f"no module {error.name}; --help says what the script needs, and requirements.txt "
               "what all need", 1)
    except (MemoryError, RuntimeError) as error:
        is_memory = any(words in str(error) for words in ("can't allocate memory", "out of memory"))
        if not (is_memory or isinstance(error, MemoryError)):
            raise
        first = str(error).splitlines()[:1]
        _leave(f"out of memory{''.join(f' ({line[:120]})' for line in first)}; expected more of "
               "it, or smaller --batch-size, --widths or --history-len", 1)


class _Pipe:
    """Standard output that drops what is written after its reader has stopped reading."""

    def __init__(self, file: IO) -> None:
        self._file = file

    def __getattr__(self, name: str) -> object:
        do = getattr(self._file, name)
        return partial(self._try, do) if name in ("write", "flush") else do

    def _try(self, do: Callable, *args: str) -> int | None:
        try:
            return do(*args)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())


def command(main: Callable[..., int | None], flags: type, description: str) -> NoReturn:
    """The command line of a script: `main` of the dataclass `flags`, run by `guarded`.

    Each field is a flag; so are the fields of dataclasses in it, without a prefix.
    """
    import tyro

    guarded(lambda: main(tyro.cli(flags, description=description,
                                  config=(tyro.conf.OmitArgPrefixes,))))


def _leave(line: str, code: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


def _about_file(error: OSError) -> str:
    """One line: the file, what is wrong with it, and what is still good."""
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    name = error.filename or "a file"
    if error.errno in FULL or "os error 28" in str(error):  # polars has no errno
        return f"disk full writing {name}{notes}; free space and give the same command again"
    return f"{name}: {error.strerror or error}{notes}"


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep every other process out of `folder`, which is made if it is not there.

    The kernel drops the lock of a process that is gone, so a file that a kill left is no lock.

    Raises:
        FolderInUseError: names the process that is there.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    # 0.2 seconds: the owner may be writing its id, or leaving
    lock = FileLock(path, timeout=0.2, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(folder, int(path.read_text() or 0)) from error
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def unchanged(*paths: Path | None) -> Iterator[None]:
    """Refuse what the block has read if a file, or one in a folder, was written meanwhile.

    Raises:
        DataError: names the file.
    """
    folders = (p.iterdir() if p.is_dir() else [p] for p in paths if p is not None)
    before = {path: stamp(path) for files in folders for path in files if not path.is_dir()}
    yield
    for path, was in before.items():
        if stamp(path) != was:
            raise DataError(f"{path} changed while it was read, expected a file at rest; give the "
                            "same command again once it is written")


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a clean stop; the second one exits at once."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame) -> None:
        # torchrun repeats a signal that the terminal has sent already, and kills after 30 s itself
        if self.signal and "TORCHELASTIC_RUN_ID" not in os.environ:
            os._exit(128 + number)
        self.signal = number
        os.write(2, b"stopping after this step; a second signal ends it at once\n")

    def __call__(self) -> bool:
        """True once a signal came."""
        return self.signal != 0
