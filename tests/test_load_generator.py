"""benchmarks/load.py: its statistics on servers whose delays are known."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def load():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("load")


class Stalling:
    """Answers in 2 ms, but for one second in which it answers nothing."""

    def __init__(self, begins: float):
        self.begins = time.perf_counter() + begins

    def __call__(self):
        time.sleep(0.002)
        ends = self.begins + 1
        if self.begins <= time.perf_counter() < ends:
            time.sleep(max(0.0, ends - time.perf_counter()))


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides(load):
    closed = load.closed_loop([Stalling(1.0)], 3.0).figures()
    opened = load.open_loop([Stalling(1.0)] * 64, 100.0, 3.0).figures()
    # One of some 900 requests met the stall; the other clients it kept from asking are not there.
    assert closed["p99_ms"] < 400 and closed["max_ms"] > 900
    # A third of the arrivals fell into it, and wait half of it on average.
    assert opened["n"] == len(load.arrivals(100.0, 3.0)) and opened["missing"] == 0
    assert opened["p90_ms"] > 500 and opened["max_ms"] > 900
    assert opened["p50_ms"] < opened["p90_ms"] / 2


def test_latencies_count_from_the_time_a_request_was_due(load):
    """One connection to a server of 50 ms at 40 arrivals a second: the queue grows, and all of it is waiting time."""
    measured = load.open_loop([lambda: time.sleep(0.05)], 40.0, 2.0, drain=10.0)
    n = len(load.arrivals(40.0, 2.0))
    assert len(measured.latencies) == n and not measured.missing
    # The last of n requests ends no earlier than after n x 50 ms, and was due at 2 s; a busy machine adds to it.
    assert 0.05 * n - 2.0 - 0.1 < max(measured.latencies) < 0.05 * n + 5.0
    assert max(measured.latencies) > 20 * 0.05


def test_what_is_never_answered_counts_with_its_wait(load):
    never = threading.Event()
    measured = load.open_loop([lambda: never.wait(60)] * 2, 50.0, 1.0, drain=0.5)
    never.set()
    figures = measured.figures()
    assert figures["n"] == 0 and figures["missing"] == len(load.arrivals(50.0, 1.0))
    assert figures["max_ms"] > 1400 and figures["p50_ms"] > 600


def test_errors_are_counted_and_no_latencies(load):
    def fails():
        time.sleep(0.01)
        raise RuntimeError("too many")

    for measured in (load.closed_loop([fails], 0.5), load.open_loop([fails] * 8, 50.0, 0.5)):
        assert not measured.latencies and measured.errors["RuntimeError: too many"] > 10


def test_arrivals_are_a_poisson_process(load):
    times = load.arrivals(200.0, 50.0)
    gaps = np.diff(times)
    # 10,000 arrivals: the mean of the gaps and their spread are both 1 / rate, within three standard errors.
    assert np.mean(gaps) == pytest.approx(1 / 200, rel=0.03) and np.std(gaps) == pytest.approx(1 / 200, rel=0.06)
    assert len(times) == pytest.approx(10_000, rel=0.03) and times[-1] < 50
    assert (load.arrivals(200.0, 50.0) == times).all()
