"""Certificate authorities that the HTTP client trusts."""

import ssl
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pycurl


@dataclass(frozen=True, slots=True)
class Trust:
    """Trusted authorities: those in a file, the system's, or both."""

    #: PEM file of trusted authorities.
    ca_file: str | None
    #: Trust the system's authorities, too. `SSL_CERT_FILE` and `SSL_CERT_DIR` name others, as for OpenSSL's own tools.
    system: bool

    @classmethod
    def of(cls, ca_file: str | None) -> "Trust":
        """Trust the authorities in `ca_file` only, or the system's if it is None."""
        return cls(ca_file, system=ca_file is None)

    def widen(self) -> "Trust":
        """Trust the system's authorities, too.

        A private registry may redirect to a public host.
        """
        return Trust(self.ca_file, system=True)

    def set_options(self, curl: Any) -> None:
        """Have a libcurl handle trust these authorities, and no others."""
        curl.setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        if not self.system:
            curl.setopt(pycurl.CAINFO, self.ca_file)
            curl.unsetopt(pycurl.CAPATH)
            return
        file, folder = _system_authorities()
        if folder:
            curl.setopt(pycurl.CAPATH, folder)
        if file and self.ca_file:  # libcurl reads one file
            curl.setopt(pycurl.CAINFO_BLOB, _joined(self.ca_file, file))
        elif file or self.ca_file:
            curl.setopt(pycurl.CAINFO, file or self.ca_file)
        elif folder:
            curl.unsetopt(pycurl.CAINFO)  # else libcurl's own default, a file that this system need not have


def _system_authorities() -> tuple[str | None, str | None]:
    """Return the file and folder of the system's authorities, each None if missing.

    Python's OpenSSL knows the system's. libcurl's own OpenSSL was built for another system.
    """
    paths = ssl.get_default_verify_paths()
    return paths.cafile, paths.capath


@cache
def _joined(*files: str) -> bytes:
    return b"\n".join(Path(file).read_bytes() for file in files)
