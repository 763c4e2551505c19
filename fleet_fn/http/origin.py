"""Origins: scheme, host, port and base path of an upstream."""

from typing import NamedTuple
from urllib.parse import urlsplit


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454), and the base path of an upstream's interface."""

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Return the origin of an http or https URL that the settings have checked."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname or "", parts.port or (443 if secure else 80), parts.path.rstrip("/"))

    @property
    def url(self) -> str:
        """URL of the origin, without secrets."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port as in the header `Host`, but without the scheme's own port.

        The form is that of RFC 9110, section 7.2.
        """
        name = self.host if self.host.isascii() else self.host.encode("idna").decode("ascii")
        if ":" in name:
            name = f"[{name}]"
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"
