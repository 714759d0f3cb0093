"""Kills, signals, a second run, a wrong clock, a loss that is NaN. Run: pytest -m faults."""

import contextlib
import random
import signal
import time

import pytest

from tests.conftest import bits
from tests.faults import child as faults

slow = pytest.mark.slow


@slow
def test_eight_kills_at_random_moments_leave_the_same_bits(start, finish, whole, tmp_path):
    rng, kills, resumed, out = random.Random(0), 0, 0, tmp_path / "run1"
    child = start(tmp_path / "run0")
    child.wait_for("run folder")
    began = time.monotonic()
    child.ends()
    takes = time.monotonic() - began
    for attempt in range(2, 100):
        if kills == 8:
            break
        child = start(out)
        child.wait_for("run folder")
        time.sleep(rng.uniform(0, takes))
        with contextlib.suppress(ProcessLookupError):  # it has finished and is gone
            child.send(signal.SIGKILL)
        code = child.ends(0, -signal.SIGKILL)
        kills += code != 0
        resumed += "resuming from step" in child.said
        if code == 0:  # too fast for the kill: another folder
            assert bits(out) == bits(whole)
            out = tmp_path / f"run{attempt}"
    finish(out)
    assert kills == 8 and resumed >= 2


@pytest.mark.parametrize("number", [pytest.param(5, marks=slow), 12, pytest.param(20, marks=slow)])
@pytest.mark.parametrize("when", faults.CALLS)
def test_a_kill_inside_a_write_leaves_the_same_bits(start, finish, tmp_path, when, number):
    start(tmp_path / "run", fault=faults.kill_at, about=(when, number)).ends(-signal.SIGKILL)
    finish(tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=slow)])
def test_a_signal_saves_and_the_run_goes_on(start, finish, tmp_path, number, code):
    out = tmp_path / "run"
    child = start(out, fault=faults.slow_steps)
    child.wait_for("epoch 1:")
    child.send(number)
    child.ends(code)
    assert f"stopped by signal {int(number)}" in child.said and not child.errors
    assert not (out / "run.lock").exists()
    assert "resuming from step" in finish(out)


@slow
def test_a_second_signal_ends_a_run_that_is_stuck_at_once(start, finish, tmp_path):
    out = tmp_path / "run"
    child = start(out, fault=faults.endless_steps)
    child.wait_for("stuck")
    child.send(signal.SIGTERM)
    time.sleep(0.3)
    assert child.process.is_alive()
    began = time.monotonic()
    child.send(signal.SIGINT)
    child.ends(130)
    assert time.monotonic() - began < 5
    assert "resuming from step 30" in finish(out)


def test_a_second_run_is_refused_and_a_lock_of_the_dead_is_not(start, finish, tmp_path):
    out = tmp_path / "run"
    first = start(out, fault=faults.endless_steps)
    first.wait_for("stuck")
    second = start(out)
    second.ends(73)
    assert second.said == (f"error: process {first.process.pid} is working in {out}, expected "
                           "nobody; wait for it or choose another folder\n")
    first.send(signal.SIGKILL)
    first.ends(-signal.SIGKILL)
    assert (out / "run.lock").read_text() == str(first.process.pid)
    finish(out)


@pytest.mark.parametrize("fault", [
    faults.forbid_network, pytest.param(faults.turn_clock_back, marks=slow)])
def test_a_clock_that_goes_backwards_or_no_network_changes_nothing(finish, tmp_path, fault):
    finish(tmp_path / "run", fault=fault)
