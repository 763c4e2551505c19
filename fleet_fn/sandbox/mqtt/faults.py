"""Faults of the MQTT integration that tests switch on."""

from dataclasses import dataclass


@dataclass(slots=True)
class Faults:
    """What the integration does wrong, until it is switched off again."""

    #: Refuse all credentials.
    refuses_credentials: bool = False
    #: Keep connections, but neither hear nor say anything on them.
    is_silent: bool = False
