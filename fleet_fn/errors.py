"""What can go wrong with an upstream, told by what cures it.

Raised where the upstream is known, made an outcome by `update`, and a status code by `app`.
Each error's text is a reason that an operator can act on: one line, without secrets.
"""

from typing import Final, Self

#: Characters of a reason: some of it may be what others wrote, who may have written a lot.
_MAX_REASON: Final = 1000


def one_line(text: str) -> str:
    """`text` without what could begin another line, or steer a terminal: much of it comes from others."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class UpstreamError(Exception):
    """An upstream did not give what an event needs."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…"))
        #: Whether the upstream may have done what it was asked to all the same. A request that was never sent, or that
        #: was answered with 4xx, has had no effect.
        self.may_have_acted = True

    def without_effect(self) -> Self:
        """Return this error as that of a request which the upstream has certainly not acted on."""
        self.may_have_acted = False
        return self

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return str(self)


class TransientError(UpstreamError):
    """A retry within seconds can cure it: a time-out, a refused connection, 429, 5xx."""

    def __init__(self, reason: str, after: int | None = None) -> None:
        super().__init__(reason)
        #: Seconds that the upstream asked to be left alone.
        self.after = after

    @property
    def quiet(self) -> float:
        """Seconds for which it is not asked for the same again."""
        return 1.0


class RateLimitedError(TransientError):
    """The upstream answered 429: it wants fewer requests, from whomever."""

    @property
    def quiet(self) -> float:
        """Seconds for which it is not asked for the same again: as many as it wants, up to 10."""
        return min(self.after or 1.0, 10.0)


class PermanentError(UpstreamError):
    """No retry within seconds can cure it: somebody has to change something."""


class TooLargeError(PermanentError):
    """An answer has more bytes than are read of one."""
