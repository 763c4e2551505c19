"""Signals that several commands handle in the same way."""

import signal
from types import FrameType


def end_on_sigterm() -> None:
    """Let SIGTERM end the command as Ctrl-C does, with a KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
