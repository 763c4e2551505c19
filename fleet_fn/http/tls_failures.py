"""Failures of TLS, as libcurl passes them on from OpenSSL."""

import re
from dataclasses import dataclass
from typing import Final

HANDSHAKE_CLOSED: Final = "connection closed during the TLS handshake"
#: An error of OpenSSL's TLS (its library 20, in the upper 9 bits), and its text.
_OPENSSL_ERROR: Final = re.compile(r"error:(0A[0-7][0-9A-F]{5}):SSL routines::([^,]*)")
_REASON_BITS: Final = 2**23 - 1
#: OpenSSL's reason for an alert of the server is the alert's number plus this (`SSL_AD_REASON_OFFSET`).
_ALERTS: Final = range(1000, 1256)
#: Alerts that the server sends if bytes were damaged on the way, or if it is in trouble itself (RFC 8446, section 6).
_TRANSIENT_ALERTS: Final = {
    0: "close_notify",
    20: "bad_record_mac",
    22: "record_overflow",
    50: "decode_error",
    80: "internal_error",
    90: "user_canceled",
}
_BAD_CLIENT_CERTIFICATE: Final = "the server rejects the client's certificate"
#: Reasons for the other alerts. They are about the server's, or this client's, configuration.
_PERMANENT_ALERTS: Final = {
    40: "the server accepts none of our versions and ciphers, or requires a client certificate (handshake_failure)",
    42: f"{_BAD_CLIENT_CERTIFICATE} (bad_certificate)",
    43: f"{_BAD_CLIENT_CERTIFICATE} (unsupported_certificate)",
    44: f"{_BAD_CLIENT_CERTIFICATE} (certificate_revoked)",
    45: f"{_BAD_CLIENT_CERTIFICATE} (certificate_expired)",
    46: f"{_BAD_CLIENT_CERTIFICATE} (certificate_unknown)",
    48: f"{_BAD_CLIENT_CERTIFICATE} (unknown_ca)",
    49: "the server denies access (access_denied)",
    70: "the server speaks neither TLS 1.2 nor TLS 1.3 (protocol_version)",
    71: "the server requires stronger ciphers than ours (insufficient_security)",
    112: "the server does not know the host's name (unrecognized_name)",
    116: "the server requires a client certificate, and this client has none (certificate_required)",
    120: "the server does not speak HTTP/1.1 (no_application_protocol)",
}
#: OpenSSL's own reasons.
_UNSUPPORTED_PROTOCOL: Final = 258
_WRONG_VERSION_NUMBER: Final = 267
_BAD_RECORD_MAC: Final = 281
_UNEXPECTED_EOF: Final = 294


@dataclass(frozen=True, slots=True)
class TlsFailure:
    """Reason why TLS failed."""

    reason: str
    #: A retry can help.
    is_transient: bool = False
    #: The server said so.
    is_alert: bool = False


def read_tls_failure(detail: str) -> TlsFailure | None:
    """Return the failure of TLS that a message of libcurl's quotes, if any."""
    error = _OPENSSL_ERROR.search(detail)
    if not error:
        return None
    number = int(error[1], 16) & _REASON_BITS
    if number in _ALERTS:
        return _read_alert(number - _ALERTS.start)
    if number == _WRONG_VERSION_NUMBER:  # the bytes "HTTP/1.1 400", read as TLS
        return TlsFailure("does not speak TLS")
    if number == _UNSUPPORTED_PROTOCOL:
        return TlsFailure(f"TLS refused: {_PERMANENT_ALERTS[70]}")
    if number == _UNEXPECTED_EOF:
        return TlsFailure(HANDSHAKE_CLOSED, is_transient=True)
    return TlsFailure(f"TLS handshake failed: {error[2].strip()}", is_transient=number == _BAD_RECORD_MAC)


def _read_alert(alert: int) -> TlsFailure:
    if alert in _TRANSIENT_ALERTS:
        return TlsFailure(f"TLS refused for now ({_TRANSIENT_ALERTS[alert]})", is_transient=True, is_alert=True)
    return TlsFailure(f"TLS refused: {_PERMANENT_ALERTS.get(alert, f'the server sends alert {alert}')}", is_alert=True)
