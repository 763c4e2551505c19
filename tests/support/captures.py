"""Whole HTTP requests as the real deliverers of events sent them, from the folder `shared` beside the checkout."""

import base64
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).parents[3] / "shared" / "vectors" / "deliverers.json"
EVENT_SOURCE: Final = "drogue-event-source 0.2.3"
KNATIVE: Final = "Knative Kafka dispatcher 1.23"
#: The sink's credentials that drogue-event-source was given.
USER, PASSWORD = "fleet", "p:w%ä"

#: The file's requests have the line `host: 127.0.0.1:8080` damaged: a replacement took `\112` for the letter J.
_DAMAGED, _WHOLE = b"J7.0.0.1:8080", b"\r\nhost: 127.0.0.1:8080"


@dataclass(frozen=True)
class Capture:
    """A request, and what the record in Kafka named."""

    deliverer: str
    application: str
    device: str
    channel: str
    type: str
    request: bytes

    @property
    def head(self) -> bytes:
        """The request line and the headers."""
        return self.request.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.request.partition(b"\r\n\r\n")[2]

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """The headers with their names as they were written, and their values with all spaces but the first."""
        return headers_of(self.request)

    def header(self, name: str) -> bytes | None:
        """The value of the first header of that name in lower case, or None."""
        return next((value for known, value in self.headers if known.lower() == name), None)

    def __str__(self) -> str:
        return f"{self.deliverer.partition(' ')[0]} {self.channel} {self.device} {self.header('ce-id')!r}"


def headers_of(request: bytes) -> list[tuple[str, bytes]]:
    """A request's headers, in their order."""
    _, *lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    pairs = (line.partition(b": ") for line in lines)
    return [(name.decode("ascii"), value) for name, _, value in pairs]


@functools.cache
def captures() -> tuple[Capture, ...]:
    """All of them; none where the file is missing."""
    if not FILE.is_file():
        return ()
    known: dict[str, list[dict[str, Any]]] = json.loads(FILE.read_text(encoding="utf-8"))["deliverers"]
    return tuple(
        Capture(
            deliverer,
            entry["application"],
            entry["device"],
            entry["channel"],
            entry["type"],
            base64.b64decode(entry["request"]).replace(_DAMAGED, _WHOLE),
        )
        for deliverer, entries in known.items()
        for entry in entries
    )
