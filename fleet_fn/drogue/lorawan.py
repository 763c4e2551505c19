"""LoRaWAN: the firmware port, and the uplinks of The Things Network."""

from typing import Final

from fleet_fn.drogue.cloud_events import InvalidEventError, decode_base64
from fleet_fn.strict_json import parse_json

#: The Things Network's firmware port, which Drogue Cloud's integration makes the channel.
LORAWAN_PORT: Final = "223"


def read_uplink(payload: bytes) -> bytes:
    """Return the device's bytes, also from a v3 uplink message of The Things Network."""
    if not payload.lstrip(b" \t\r\n").startswith(b"{"):
        return payload
    try:
        uplink = parse_json(payload)
    except ValueError as error:
        raise InvalidEventError(str(error)) from error
    if "uplink_message" not in uplink:
        return payload
    message = uplink["uplink_message"]
    if not isinstance(message, dict) or "frm_payload" not in message:
        raise InvalidEventError("the uplink has no uplink_message.frm_payload")
    try:
        return decode_base64(message["frm_payload"], "uplink_message.frm_payload")
    except ValueError as error:
        raise InvalidEventError(str(error)) from error
