"""Deliverers of Drogue Cloud's events: their requests, and the answers they retry."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, Self

from fleet_fn.sandbox.events import Event

Backoff = Literal["constant", "linear", "exponential"]
#: Header names as the deliverer writes them, with the bytes of their values.
Headers = list[tuple[str, bytes]]

#: The namespace of the KafkaSource in `knative/`.
_NAMESPACE: Final = "fleet"
_VERTX: Final = b"Vert.x-WebClient/4.5.21"
#: Statuses below 500 that Knative retries (its data plane specification, "Event Acknowledgement and Delivery Retry").
_KNATIVE_RETRIES: Final = frozenset({404, 408, 409, 429})


@dataclass(frozen=True, slots=True)
class Policy:
    """A deliverer's retries. The sandbox's speed divides all seconds."""

    #: Attempts after the first.
    retries: int = 5
    delay_seconds: float = 1.0
    backoff: Backoff = "constant"
    #: For one attempt, from connecting to the answer's headers.
    timeout_seconds: float = 5.0

    def pause(self, retry: int) -> float:
        """Return the seconds before a retry; the first is number 1."""
        factors: dict[Backoff, int] = {"constant": 1, "linear": retry, "exponential": 1 << retry}
        return self.delay_seconds * factors[self.backoff]

    def check(self) -> None:
        """Raise ValueError if no delivery can follow this policy."""
        if self.retries < 0 or self.delay_seconds < 0 or not self.timeout_seconds > 0:
            raise ValueError("retries and delays must be 0 or more, and a time-out above 0")


@dataclass(frozen=True, slots=True)
class Deliverer:
    """One kind of deliverer."""

    policy: Policy
    #: After its last retry, it restarts at the same event instead of giving the event up.
    restarts: bool
    #: It can send Basic credentials.
    takes_basic: bool
    is_retried: Callable[[int], bool]
    #: Returns the headers of an event, given the credentials and the record's offset in its topic.
    write: Callable[[Event, str | None, int], Headers]

    def with_policy(self, policy: Policy | None) -> Self:
        """Return this deliverer with another policy, if one is given.

        Raises:
            ValueError: no delivery can follow the policy.

        """
        if policy is None:
            return self
        policy.check()
        return replace(self, policy=policy)


def _write_as_event_source(event: Event, authorization: str | None, _: int) -> Headers:
    """Write headers like drogue-event-source: in raw UTF-8.

    Basic credentials come twice, because it sets them twice.
    """
    headers: Headers = []
    if authorization is not None:
        times = 2 if authorization.startswith("Basic ") else 1
        headers += [("authorization", authorization.encode())] * times
    for name, value in event.attributes.items():
        text = value.removesuffix("Z") + "+00:00" if name == "time" and value.endswith("Z") else value
        headers.append((_header(name), text.encode()))
    return [*headers, ("accept", b"*/*"), *_length(event, "content-length")]


def _write_as_knative(event: Event, authorization: str | None, offset: int) -> Headers:
    """Write headers like Knative's Kafka dispatcher.

    Each UTF-16 unit becomes one byte, `?` beyond ISO 8859-1.
    """
    headers: Headers = [
        ("user-agent", _VERTX),
        ("Prefer", b"reply"),
        ("Kn-Namespace", _NAMESPACE.encode()),
    ]
    if authorization is not None:
        headers.append(("Authorization", authorization.encode()))
    extensions = {"knativekafkapartition": "0", "knativekafkaoffset": str(offset)}
    for name, value in (event.attributes | extensions).items():
        headers.append((_header(name), _latin_1(value)))
    return [*headers, *_length(event, "content-length")]


def _write_encoded(event: Event, authorization: str | None, _: int) -> Headers:
    """Write headers by the CloudEvents HTTP binding (3.1.3.2).

    Characters beyond printable ASCII are percent-encoded. The source stays as it is: its percent signs, encoded once
    more, would name another device.
    """
    headers: Headers = []
    for name, value in event.attributes.items():
        is_media_type = name == "datacontenttype"
        text = value.encode() if is_media_type or name == "source" else _percent_encode(value)
        headers.append(("Content-Type" if is_media_type else f"ce-{name}", text))
    if authorization is not None:
        headers.append(("Authorization", authorization.encode()))
    return [*headers, *_length(event, "Content-Length")]


def _header(attribute: str) -> str:
    return "content-type" if attribute == "datacontenttype" else f"ce-{attribute}"


def _length(event: Event, name: str) -> Headers:
    return [] if event.data is None else [(name, str(len(event.data)).encode())]


def _latin_1(value: str) -> bytes:
    units = value.encode("utf-16-le")
    return bytes(low if not high else ord("?") for low, high in zip(units[::2], units[1::2], strict=True))


def _percent_encode(value: str) -> bytes:
    return b"".join(
        b"%%%02X" % byte if byte in b'"%' or not 0x21 <= byte <= 0x7E else bytes((byte,)) for byte in value.encode()
    )


EVENT_SOURCE: Final = Deliverer(
    policy=Policy(),
    restarts=True,
    takes_basic=True,
    is_retried=lambda status: status >= 500,
    write=_write_as_event_source,
)
#: A KafkaSource without a `spec.delivery`.
KNATIVE: Final = Deliverer(
    policy=Policy(retries=10, delay_seconds=0.3, backoff="exponential", timeout_seconds=600.0),
    restarts=False,
    takes_basic=False,
    is_retried=lambda status: status >= 500 or status in _KNATIVE_RETRIES,
    write=_write_as_knative,
)
ENCODED: Final = replace(EVENT_SOURCE, write=_write_encoded)

DELIVERERS: Final = {"event-source": EVENT_SOURCE, "knative": KNATIVE, "encoded": ENCODED}
