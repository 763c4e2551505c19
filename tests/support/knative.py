"""A Knative KafkaSource that delivers one partition, as `knative/kafka-source.yaml` has it do so."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tests.support.function import Answer, Client

#: Statuses below 500 that it retries, too.
_RETRIED = (404, 408, 409, 429)


@dataclass
class Partition:
    """Events in their order, one at a time: retried, then put with the dead letters, and on to the next."""

    client: Client
    #: Attempts after the first.
    retries: int = 7
    #: Seconds before the first retry; each next pause is longer by as much.
    pause: float = 1.0
    #: Events that were given up, and what was answered last.
    dead_letters: list[tuple[Mapping[str, str | None], Answer]] = field(default_factory=list)
    #: How often events were delivered, one after the other.
    attempts: list[int] = field(default_factory=list)

    def deliver(self, events: Iterable[tuple[Mapping[str, str | None], bytes]]) -> None:
        """Delivers all."""
        for event, payload in events:
            self._deliver(event, payload)

    def _deliver(self, event: Mapping[str, str | None], payload: bytes) -> None:
        for attempt in range(1 + self.retries):
            if attempt:
                time.sleep(self.pause * attempt)
            answer = self.client.post(event, payload, headers={"Prefer": "reply", "Kn-Namespace": "fleet"})
            if answer.status < 500 and answer.status not in _RETRIED:
                break
        self.attempts.append(attempt + 1)
        if answer.status >= 300:
            self.dead_letters.append((event, answer))
