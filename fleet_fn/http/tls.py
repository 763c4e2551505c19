"""Certificate authorities that the HTTP client trusts."""

import ssl
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pycurl

from fleet_fn.http.failures import TransferError

#: Seconds for which a handle trusts the authorities that it read from a file. A handle that makes one connection after
#: another reads them again then, so it follows a rotation within a minute. A new handle reads them for itself.
CA_CACHE_SECONDS: Final = 60
#: libcurl's option for that. pycurl has no name for it.
_CA_CACHE_TIMEOUT: Final = 321


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
        """Have a libcurl handle's next connections trust only these authorities.

        Raises:
            TransferError: a file of authorities cannot be read.

        """
        curl.setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2)
        curl.setopt(_CA_CACHE_TIMEOUT, CA_CACHE_SECONDS)
        if not self.system:
            curl.setopt(pycurl.CAINFO, self.ca_file)
            curl.unsetopt(pycurl.CAPATH)
            return
        file, folder = _system_authorities()
        if folder:
            curl.setopt(pycurl.CAPATH, folder)
        if file and self.ca_file:  # libcurl reads one file
            curl.setopt(pycurl.CAINFO_BLOB, _join(self.ca_file, file))
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


def _join(*paths: str) -> bytes:
    """Return the content of files, one after another.

    Raises:
        TransferError: a file cannot be read.

    """
    try:
        return _read(tuple(_Version.of(path) for path in paths))
    except OSError as error:
        raise TransferError(pycurl.E_SSL_CACERT_BADFILE, str(error), was_sent=False, has_answer=False) from error


class _Version(NamedTuple):
    """State of a file. A file that is written again, or replaced, has another one."""

    path: str
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: str) -> "_Version":
        status = Path(path).stat()
        return cls(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(files: tuple[_Version, ...]) -> bytes:
    return b"\n".join(Path(file.path).read_bytes() for file in files)
