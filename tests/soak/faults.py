"""Faults at the wire, drawn by chance and counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

from tests.support.hostile import cut, hang_up, raw, reset
from tests.support.http import Answer, Request, Response

#: Seconds that the function gives an event: half of what it has by default.
DEADLINE: Final = 2.0


class Faults:
    """What goes wrong; each of its kinds as often as the next."""

    def __init__(self, share: float, seed: int) -> None:
        """Faults in a `share` of the requests (0 to 1)."""
        self._share = share
        self._random = Random(seed)
        self._lock = threading.Lock()
        #: Requests to each upstream, and by upstream or wire what went wrong how often.
        self.requests: Counter[str] = Counter()
        self.injected: Counter[tuple[str, str]] = Counter()

    def around(self, answer: Answer, upstream: Callable[[Request], str]) -> Answer:
        """`answer`, but for those requests that get something else; `upstream` tells what is asked."""

        def meddled(request: Request) -> Response | None:
            asked = upstream(request)
            with self._lock:
                self.requests[asked] += 1
                kind = self._random.choice(_KINDS) if self._random.random() < self._share else None
                if kind:
                    self.injected[asked, kind.__name__.strip("_").replace("_", " ")] += 1
            return kind(request, answer, self._random) if kind else answer(request)

        return meddled

    def strike(self, wire: str, kind: str, weight: float = 1.0) -> bool:
        """Whether the message that is on its way now meets this fault."""
        with self._lock:
            struck = self._random.random() < self._share * weight
            if struck:
                self.injected[wire, kind] += 1
        return struck


def _reset(request: Request, _answer: Answer, _random: Random) -> None:
    reset(request)


def _error(_request: Request, _answer: Answer, random: Random) -> Response:
    return Response(random.choice((500, 502, 503, 504)))


def _throttled(_request: Request, _answer: Answer, random: Random) -> Response:
    return Response(429, headers=random.choice(({}, {"Retry-After": "1"})))


def _hang(_request: Request, _answer: Answer, _random: Random) -> None:
    time.sleep(DEADLINE + 1)


def _cut_body(request: Request, answer: Answer, _random: Random) -> Response | None:
    response = answer(request)
    if response is None:
        return None
    broken = cut(response, len(response.body) // 2) if response.body else raw(b"HTTP/1.1 20")
    return broken(request)


def _answer_lost(request: Request, answer: Answer, _random: Random) -> None:
    answer(request)
    hang_up(request)


_KINDS: Final = (_reset, _error, _throttled, _hang, _cut_body, _answer_lost)
