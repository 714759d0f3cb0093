"""Kills, signals, a second run, a wrong clock, a loss that is NaN. Run: pytest -m faults."""

import contextlib
import random
import signal
import time

import pytest

from tests.faults.child import CALLS, forbid_network, kill_at, turn_clock_back
from tests.faults.conftest import digest, losses


@pytest.mark.slow
def test_eight_kills_at_random_moments_and_the_same_bits_in_the_end(start, whole, tmp_path):
    rng, kills, resumed, out = random.Random(0), 0, 0, tmp_path / "run1"
    for attempt in range(2, 100):
        if kills == 8:
            break
        child = start(out)
        child.wait_for("run folder")
        time.sleep(rng.uniform(0, 0.6))
        with contextlib.suppress(ProcessLookupError):  # it has finished and is gone
            child.send(signal.SIGKILL)
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.said
        kills += code != 0
        resumed += "resuming from step" in child.said
        if code == 0:  # too fast for the kill: another folder
            assert digest(out) == digest(whole)
            out = tmp_path / f"run{attempt}"
    child = start(out)
    assert child.wait() == 0, child.said
    assert digest(out) == digest(whole) and losses(out) == losses(whole)
    assert kills == 8 and resumed >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 12, 20])
@pytest.mark.parametrize("when", CALLS)
def test_a_kill_inside_a_write_and_the_same_bits_in_the_end(
    start, whole, tmp_path, when, number
):
    out = tmp_path / "run"
    assert start(out, fault=kill_at, about=(when, number)).wait() == -signal.SIGKILL
    child = start(out)
    assert child.wait() == 0, child.said
    assert digest(out) == digest(whole) and losses(out) == losses(whole)


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves_with_its_code_and_the_run_goes_on(
    start, whole, tmp_path, number, code
):
    out = tmp_path / "run"
    child = start(out, fault=slow_steps)
    child.wait_for("epoch 1:")
    child.send(number)
    assert child.wait() == code, child.said
    assert f"stopped by signal {int(number)}" in child.said and not child.errors
    assert not (out / "run.lock").exists()
    again = start(out)
    assert again.wait() == 0 and "resuming from step" in again.said, again.said
    assert digest(out) == digest(whole) and losses(out) == losses(whole)


def slow_steps() -> None:
    """Have each update take a while, so that a signal comes before the last one."""
    import bst.training.loop

    real = bst.training.loop.train_step

    def train_step(*args, **options):
        time.sleep(0.05)
        return real(*args, **options)

    bst.training.loop.train_step = train_step


def endless_steps() -> None:
    """Have an update take for ever after the first 30."""
    import bst.training.loop

    real, count = bst.training.loop.train_step, iter(range(10**6))

    def train_step(*args, **options):
        while next(count) >= 30:
            print("stuck", flush=True)
            time.sleep(0.1)
        return real(*args, **options)

    bst.training.loop.train_step = train_step


@pytest.mark.slow
def test_a_second_signal_ends_a_run_that_is_stuck_at_once(start, whole, tmp_path):
    out = tmp_path / "run"
    child = start(out, fault=endless_steps)
    child.wait_for("stuck")
    child.send(signal.SIGTERM)
    time.sleep(0.3)
    assert child.process.is_alive()
    began = time.monotonic()
    child.send(signal.SIGINT)
    assert child.wait() == 130 and time.monotonic() - began < 5
    again = start(out)
    assert again.wait() == 0 and "resuming from step 30" in again.said, again.said
    assert digest(out) == digest(whole)


def test_a_second_run_in_the_folder_is_refused_and_a_lock_of_the_dead_is_not(
    start, whole, tmp_path
):
    out = tmp_path / "run"
    first = start(out, fault=endless_steps)
    first.wait_for("stuck")
    second = start(out)
    assert second.wait() == 73
    assert second.said == (f"error: process {first.process.pid} is working in {out}, expected "
                           "nobody; wait for it or choose another folder\n")
    first.send(signal.SIGKILL)
    first.wait()
    assert (out / "run.lock").read_text() == str(first.process.pid)
    third = start(out)
    assert third.wait() == 0, third.said
    assert digest(out) == digest(whole) and not (out / "run.lock").exists()


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(start, whole, tmp_path):
    out = tmp_path / "run"
    child = start(out, fault=turn_clock_back)
    assert child.wait() == 0, child.said
    assert digest(out) == digest(whole) and losses(out) == losses(whole)


def test_a_whole_run_looks_for_no_address_and_opens_no_connection(start, whole, tmp_path):
    child = start(tmp_path / "run", fault=forbid_network)
    assert child.wait() == 0, child.said
    assert digest(tmp_path / "run") == digest(whole)
