"""The MQTT integration: its address, and the reasons of its failures."""

import socket
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Final
from urllib.parse import urlsplit

from paho.mqtt.enums import MQTTProtocolVersion

from fleet_fn.errors import TransientError
from fleet_fn.setting_values import MQTT_SCHEMES

#: Name of the integration in reasons and logs.
MQTT_INTEGRATION: Final = "MQTT integration"
MQTT_5: Final = MQTTProtocolVersion.MQTTv5
MQTT_3: Final = MQTTProtocolVersion.MQTTv311
#: Names of the versions, for people.
PROTOCOLS: Final = {MQTT_5: "MQTT 5", MQTT_3: "MQTT 3.1.1"}


#: Connections share a context, which takes 30 ms and 1 MB. It is made anew so often, so that it follows a change of the
#: authorities.
_CONTEXT_SECONDS: Final = 10
_MAKING: Final = Lock()


class LostError(TransientError):
    """There is no connection, or it was lost; the reason names the integration."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{MQTT_INTEGRATION}: {problem}")


class RefusedError(LostError):
    """The integration refused our credentials."""


class UnsupportedError(LostError):
    """The integration, or a message of it, does not speak our version of MQTT."""


@dataclass(frozen=True, slots=True)
class Broker:
    """The address of the integration."""

    host: str
    port: int
    #: Path of the WebSocket; None without one.
    path: str | None
    has_tls: bool
    ca_file: str | None

    @classmethod
    def of(cls, url: str, ca_file: str | None) -> "Broker":
        """Return the broker at a URL; without `ca_file`, trust the system's authorities."""
        parts = urlsplit(url)
        is_websocket = parts.scheme in ("wss", "ws")
        return cls(
            parts.hostname or "",
            parts.port or MQTT_SCHEMES[parts.scheme],
            (parts.path or "/mqtt") if is_websocket else None,
            parts.scheme in ("mqtts", "wss"),
            ca_file,
        )

    def tls(self) -> ssl.SSLContext | None:
        """Return the context of TLS connections; None without TLS.

        Raises:
            OSError: the file of authorities cannot be read.

        """
        if not self.has_tls:
            return None
        with _MAKING:
            return _context(self.ca_file, int(time.monotonic() // _CONTEXT_SECONDS))


@lru_cache(maxsize=1)
def _context(ca_file: str | None, _: int) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


def describe(error: Exception) -> str:
    """Return why no connection came about."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"certificate not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS handshake failed: {error.reason or 'connection closed'}"
        case socket.gaierror():
            return "host not found"
        case TimeoutError():
            return "no answer in time"
        case OSError() if error.strerror:
            return error.strerror.lower()
    return f"no connection: {error}" if str(error) else "no connection"
