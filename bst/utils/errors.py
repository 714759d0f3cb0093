"""The errors that a user can do something about; every other one is a bug of ours."""

from collections.abc import Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """What a user's file got wrong: what was found, where, what was expected, what to do."""

    exit_code = 1  # of a command


class OptionError(DataError):
    """A flag or an argument that is out of range or not one of the options."""

    exit_code = 2


@contextmanager
def one_line(what: object, expected: str) -> Iterator[None]:
    """Turn any error of the block into a DataError of one line about `what` a user gave.

    Any error: json, torch and safetensors raise a dozen kinds.
    """
    try:
        yield
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{what}: {line}; expected {expected}") from error
