"""Bearer tokens: keep the current one, renew it early, read a server's answer.

One thread at a time fetches a token.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, Self

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.strict_json import parse_json

#: Lifetime of a token whose answer states none: a common default (60 s in the token specification of OCI registries;
#: RFC 6749, section 5.1, has none). Too short does no harm.
_DEFAULT_LIFETIME_SECONDS: Final = 60
_MAX_LIFETIME_SECONDS: Final = 24 * 60 * 60
#: Time before its end at which a token is replaced; a quarter of its lifetime if that is less.
_RENEWAL_SECONDS: Final = 10.0
#: A token that a header can carry.
_TOKEN: Final = re.compile(r"[!-~]{1,65536}")


@dataclass(frozen=True, slots=True)
class Token:
    """Bearer token, with readings of the clock of its `BearerTokens`."""

    #: Value of the header `Authorization`.
    header: str = field(repr=False)
    #: When it was requested.
    since: float
    #: When it has to be replaced.
    until: float
    #: Reason to report if a server refuses it; for callers that ask for it.
    if_refused: str = ""

    @classmethod
    def issued(cls, token: str, lifetime: object, since: float, if_refused: str = "") -> Self:
        """Return the token of an answer to a request that began at `since`.

        Args:
            token: the token itself.
            lifetime: the stated seconds from `since`. The default replaces anything but an integer of 1 or more.
            since: reading of the clock.
            if_refused: see the field.

        """
        if not isinstance(lifetime, int) or isinstance(lifetime, bool) or lifetime < 1:
            lifetime = _DEFAULT_LIFETIME_SECONDS
        lifetime = min(lifetime, _MAX_LIFETIME_SECONDS)
        return cls(f"Bearer {token}", since, since + lifetime - min(_RENEWAL_SECONDS, lifetime / 4), if_refused)


@dataclass(eq=False, slots=True)
class BearerTokens:
    """The current token for one purpose.

    It is safe to use from several threads, of which one fetches at a time.

    A caller without a valid token waits for its turn, in which it may find the token of another caller::

        with tokens.turn(refused, deadline) as known:
            token = known or tokens.renew(fetch)
    """

    #: Name of the upstream in reasons.
    name: str
    #: Seconds for which a failure to fetch answers later callers, too. 0: only callers that waited for that fetch.
    #: None: no other caller; each one fetches for itself, within its own deadline.
    negative_ttl: Callable[[UpstreamError], float | None]
    #: Seconds, never stepping.
    clock: Callable[[], float] = time.monotonic
    #: The last token that was fetched, valid or not.
    last: Token | None = field(default=None, init=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)
    #: The last failure that other callers share, with its time.
    _failure: tuple[float, UpstreamError] | None = field(default=None, init=False)

    def valid(self, refused: str | None = None) -> Token | None:
        """Return the last token if it is not due for replacement and not `refused`.

        Do not block.
        """
        token = self.last
        return token if token and token.header != refused and self.clock() < token.until else None

    @contextmanager
    def turn(self, refused: str | None, deadline: Deadline) -> Iterator[Token | None]:
        """Hold the right to `renew`, which one thread has at a time.

        Yield the valid token, if there is one by now; a token that a server refused counts as revoked.

        Args:
            refused: the `Authorization` that a server refused; None if there is none.
            deadline: bounds the wait for the turn.

        Raises:
            TransientError: another thread's turn took until the deadline.
            UpstreamError: another caller's failure, as `negative_ttl` says.

        """
        asked = self.clock()
        if not self._turn.acquire(timeout=deadline.remaining):
            raise TransientError(f"{self.name}: an earlier request for a token has not ended")
        try:
            known = self.valid(refused)
            if not known:
                self._raise_failure(asked)
            yield known
        finally:
            self._turn.release()

    def renew(self, fetch: Callable[[], Token]) -> Token:
        """Fetch a token and keep it, or keep the failure for other callers.

        Only the thread whose turn it is may call this.

        Raises:
            UpstreamError: the error of `fetch`.

        """
        try:
            self.last = token = fetch()
        except UpstreamError as error:
            if self.negative_ttl(error) is not None:
                # A copy has no traceback, whose frames would stay in memory.
                self._failure = self.clock(), copy(error)
            raise
        return token

    def _raise_failure(self, asked: float) -> None:
        """Raise the last failure if it is too recent for a caller that came at `asked`."""
        if self._failure:
            since, error = self._failure
            if since > asked - (self.negative_ttl(error) or 0.0):
                raise copy(error)


def read_token(body: bytes, subject: str, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the token in a server's answer, and all members of the answer.

    Args:
        body: the answer, a JSON object.
        subject: what reasons call the answer. They do not quote it, because it may hold the token.
        names: members that may hold the token; the first one that is not empty does.

    Raises:
        PermanentError: the answer is malformed, or has no token that a header can carry.

    """
    found: object = None
    with suppress(ValueError):  # not chained to an error of ours: it may quote the token
        found = parse_json(body)
    if not isinstance(found, dict):
        raise PermanentError(f"{subject} is no JSON object")
    token = next((value for name in names if (value := found.get(name))), None)
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise PermanentError(f"{subject} has no {names[0]} that a header can carry")
    return token, found
