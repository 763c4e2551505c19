"""Failures of upstreams, classified by whether a retry can help.

The modules that know the upstream raise them, `update` makes them outcomes, and `web` makes these status codes. Each
error's text is a reason that an operator can act on: one line, without secrets.
"""

from typing import Final, Self

#: Characters of a reason: parts of it may come from elsewhere, and be long.
_MAX_REASON_CHARACTERS: Final = 1000


def one_line(text: str) -> str:
    """Replace characters of a text that could begin a line or control a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _cut(text: str) -> str:
    is_long = len(text) > _MAX_REASON_CHARACTERS
    return one_line(f"{text[:_MAX_REASON_CHARACTERS]}…" if is_long else text)


class UpstreamError(Exception):
    """An upstream did not deliver, for a reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(_cut(reason))
        #: The upstream may have acted on the request all the same. A request that was not sent, or was answered with
        #: 4xx, had no effect.
        self.may_have_acted = True

    def without_effect(self) -> Self:
        """Mark the error as one of a request without effect, and return it."""
        self.may_have_acted = False
        return self

    @property
    def reason(self) -> str:
        """Reason, in one line."""
        return str(self)

    @property
    def negative_ttl(self) -> float:
        """Seconds for which the same request is not repeated."""
        return 10.0


class TransientError(UpstreamError):
    """A retry within seconds can help: a time-out, a refused connection, 429, 5xx."""

    def __init__(self, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        #: Seconds that the upstream asks to wait (`Retry-After`); None if it does not say.
        self.retry_after = retry_after

    @property
    def negative_ttl(self) -> float:
        """Seconds for which the same request is not repeated."""
        return 1.0


class RateLimitedError(TransientError):
    """The upstream answered 429: it gets too many requests, ours or those of others."""

    @property
    def negative_ttl(self) -> float:
        """Seconds for which a request is not repeated: the upstream's wish, up to 10."""
        return min(self.retry_after or 1.0, 10.0)


class PermanentError(UpstreamError):
    """No retry within seconds can help: an operator has to act."""

    def __init__(self, reason: str, message: str = "") -> None:
        """Create an error; if the reason is a word for programs, `message` tells people."""
        super().__init__(reason)
        #: The particulars, in one line; empty if the reason has them.
        self.message = _cut(message)


def negative_ttl(error: UpstreamError) -> float:
    """Return the seconds for which the request that failed is not repeated."""
    return error.negative_ttl


class TooLargeError(PermanentError):
    """The answer is larger than its bound."""
