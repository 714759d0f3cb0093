"""How a command runs and ends: an error is one line and an exit code; signals.

Exit codes: 1 the data, the memory or the loss; 2 a flag; 73 another process works in the folder; 74
a file cannot be read or written; 130 and 143 stopped by SIGINT and SIGTERM.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import IO, NoReturn

import tyro

from bst.utils.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
