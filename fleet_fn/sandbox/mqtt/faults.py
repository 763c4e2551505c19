"""Faults of the MQTT integration that tests switch on."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Faults:
    """What the integration does wrong, until it is switched off again."""

    #: Refuse all credentials.
    refuses_credentials: bool = False
    #: Keep connections, but neither hear nor say anything on them.
    is_silent: bool = False
    #: Applications whose next record in Kafka is no CloudEvent. It ends each connection that comes to it, again and
    #: again.
    poisoned: set[str] = field(default_factory=set)
