"""A circuit breaker: one call at a time goes to an upstream that does not answer."""

from contextlib import nullcontext

import pytest

from fleet_fn.concurrency.circuit_breaker import CircuitBreaker
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError
from tests.support.timing import Clock


class Upstream:
    """An upstream whose calls take some seconds each."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.calls = 0
        self._breaker = CircuitBreaker()

    def call(self, seconds: float = 0.0, error: Exception | None = None, *, limit: float = 4.0) -> str:
        def work() -> str:
            self.calls += 1
            self.clock.now += seconds
            if error:
                raise error
            return "answer"

        return self._breaker.call(work, Deadline(limit, self.clock))

    def hang(self) -> None:
        with pytest.raises(TransientError, match="no answer in time"):
            self.call(4, TransientError("no answer in time"))

    def call_during_a_probe(self) -> None:
        """Call while another call waits for the answer."""

        def probe() -> str:
            return self.call()

        self._breaker.call(probe, Deadline(4, self.clock))


def test_one_call_at_a_time_goes_to_an_upstream_that_hangs() -> None:
    upstream = Upstream()
    upstream.call_during_a_probe()
    upstream.hang()
    calls = upstream.calls
    with pytest.raises(TransientError, match="no answer in time"):
        upstream.call_during_a_probe()
    assert upstream.calls == calls
    upstream.hang()
    assert upstream.call() == "answer"
    upstream.call_during_a_probe()


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0.1, TransientError("refused")), (4, RateLimitedError("429")), (4, PermanentError("401")), (4, None)],
)
def test_what_costs_no_thread_opens_no_circuit(seconds: float, error: Exception | None) -> None:
    upstream = Upstream()
    with pytest.raises(type(error)) if error else nullcontext():
        upstream.call(seconds, error)
    upstream.call_during_a_probe()


def test_a_probe_without_time_lets_nothing_through() -> None:
    upstream = Upstream()
    upstream.hang()
    with pytest.raises(TransientError):
        upstream.call(0.1, TransientError("no answer in time"), limit=0.1)
    with pytest.raises(TransientError):
        upstream.call_during_a_probe()
    with pytest.raises(TransientError):
        upstream.call(0.1, TransientError("connection refused"))
    upstream.call_during_a_probe()
