"""The lines that a sandbox logs, which can be waited for."""

import threading
from typing import Final

#: Seconds.
_PATIENCE: Final = 10.0


class Log:
    """Keeps the lines that it is called with."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._more:
            self.lines.append(line)
            self._more.notify_all()

    def await_line(self, part: str, count: int = 1) -> None:
        """Wait until so many lines have `part` in them."""
        with self._more:
            found = self._more.wait_for(lambda: sum(part in line for line in self.lines) >= count, _PATIENCE)
        assert found, f"{part!r} not {count} times in {self.lines}"
