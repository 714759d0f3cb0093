"""One line and an exit code for each failure; locks. Run: pytest tests/utils/test_guard.py."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from einops import rearrange

from bst.utils.errors import DataError, OptionError
from bst.utils.guard import FolderInUseError, folder_lock, unchanged
from scripts.support.command import guarded


def noted(error, note):
    error.add_note(note)
    return error


@pytest.mark.parametrize(("error", "code", "line"), [
    (DataError("a.dat:3: bad"), 1, "a.dat:3: bad"), (OptionError("k is 0"), 2, "k is 0"),
    (FloatingPointError("step 3: the loss is nan"), 1, "step 3: the loss is nan"),
    (ConnectionError("lost"), 1, "lost"),
    (FolderInUseError(Path("runs/a"), 7), 73, "process 7 is working in runs/a, expected nobody; "
     "wait for it or choose another folder"),
    (noted(OSError(errno.ENOSPC, "No space", "a"), "last good checkpoint is step 8"), 74,
     "disk full writing a; last good checkpoint is step 8; free space and give the same command "
     "again"),
    (OSError("No space left on device (os error 28)"), 74,
     "disk full writing a file; free space and give the same command again"),
    (OSError(errno.EFBIG, "File too large", "a"), 74,
     "disk full writing a; free space and give the same command again"),
    (OSError(errno.EROFS, "Read-only file system", "a"), 74, "a: Read-only file system"),
    (MemoryError("Unable to allocate 3 GiB"), 1, "out of memory (Unable to allocate 3 GiB); "
     "expected more of it, or smaller --batch-size, --widths or --history-len"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nat c10"), 1,
     "out of memory (DefaultCPUAllocator: can't allocate memory: 9 bytes); expected more of it, "
     "or smaller --batch-size, --widths or --history-len"),
    (ModuleNotFoundError("No module named 'pandas'", name="pandas"), 1, "no module pandas; --help "
     "says what the script needs, and requirements.txt what all need"),
    (KeyboardInterrupt(), 130, "interrupted; the same command starts again"),
])
def test_a_failure_is_one_line_and_a_code(error, code, line, capsys):
    with pytest.raises(SystemExit) as caught:
        guarded(Mock(side_effect=error))
    assert (caught.value.code, capsys.readouterr().err) == (code, f"error: {line}\n")


@pytest.mark.parametrize("bug", [
    lambda: int("x"), lambda: np.ones(2) + np.ones(3), lambda: json.loads("{"),
    lambda: rearrange(np.ones(2), "a b -> a b"), lambda: (_ for _ in ()).throw(RuntimeError("a"))])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(Exception) as told:
        guarded(bug)
    assert not isinstance(told.value, SystemExit)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("work", ["print('x' * 99999)", "print('x')", "exit(print('x'))"])
def test_a_reader_that_has_read_enough_is_no_error_and_the_work_is_done(work, unbuffered):
    """As with `| head`: the pipe is closed while `main` prints, or before the last flush."""
    read, write = os.pipe()
    os.close(read)
    code = ("import os; from scripts.support.command import guarded\n"
            f"guarded(lambda: [os.write(2, b'a'), {work}, os.write(2, b'b')] and 0)")
    done = subprocess.run([sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"a" if "exit" in work else b"ab")


def test_a_lock_keeps_others_out_names_its_owner_and_is_gone_afterwards(tmp_path):
    folder = tmp_path / "made" / "here"
    with folder_lock(folder):
        assert (folder / "run.lock").read_text() == str(os.getpid())
        with pytest.raises(FolderInUseError, match=f"process {os.getpid()} is working") as told:
            with folder_lock(folder):
                pytest.fail("two are in")
    again = pickle.loads(pickle.dumps(told.value))  # it travels between processes
    assert again.args == (folder, os.getpid()) and str(again) == str(told.value)
    assert not list(folder.iterdir())
    with pytest.raises(KeyError), folder_lock(folder):
        raise KeyError
    assert not list(folder.iterdir())


def test_files_that_are_written_meanwhile_are_named(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    with unchanged(tmp_path, None, tmp_path / "nowhere"):
        (tmp_path / "new").write_text("3")  # not there before, so nobody has read it
    for change in (lambda: (tmp_path / "b").write_text("22"),
                   lambda: os.utime(tmp_path / "b", ns=(0, 0)),
                   lambda: (tmp_path / "b").unlink()):
        with pytest.raises(DataError, match="b changed while it was read"):
            with unchanged(tmp_path):
                change()
        (tmp_path / "b").write_text("2")
