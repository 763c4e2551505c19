"""Every environment variable, read once and checked once."""

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fleet_fn.errors import Failed
from fleet_fn.firmware.credentials import from_docker_config
from fleet_fn.firmware.private import UntrustedError, check_private, default_folder, private_folder
from fleet_fn.firmware.reference import is_name, parse_reference

T = TypeVar("T")

#: Events of a process that may wait while THREADS others are worked on, and threads that it has besides, so that health
#: is told, and further events are turned away, while all of these hang.
MAX_WAITING = 56
SPARE_THREADS = 8
#: The share of an event's time that is ours to use up; the rest is the server's and the network's.
OURS = 0.97
#: The scheme of `FIRMWARE_REGISTRY` that names folders with OCI image layouts instead of a registry.
LAYOUT_SCHEME = "oci-layout:"


class SettingsError(Exception):
    """Settings are missing or invalid. Its text is one line that names each, what it got and what it takes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says, in the units of the contract. Secrets are kept out of `repr`."""

    #: Base URL of Drogue Cloud's registry and command APIs, without a trailing slash.
    drogue_api_url: str
    #: Where references to firmware begin: a registry's host and path, or `oci-layout:` and a folder.
    firmware_registry: str

    drogue_user: str | None = None
    drogue_token: str | None = field(default=None, repr=False)
    drogue_oidc_token_url: str | None = None
    drogue_oidc_client_id: str | None = None
    drogue_oidc_client_secret: str | None = field(default=None, repr=False)
    #: PEM file of trust anchors; None trusts the system's.
    drogue_ca_file: str | None = None

    firmware_registry_user: str | None = None
    firmware_registry_token: str | None = field(default=None, repr=False)
    firmware_registry_insecure: bool = False
    firmware_registry_ca_file: str | None = None
    #: Folder of Docker's `config.json`, whose credentials are used where `firmware_registry_token` is not set.
    docker_config: str | None = None
    #: Reference used where neither device nor application name one; `{application}` and `{device}` are replaced.
    firmware_default_image: str | None = None
    firmware_dir: str | None = None
    firmware_cache_dir: str = ""
    #: Bytes.
    firmware_cache_bytes: int = 512 * 1024 * 1024

    hawkbit_url: str | None = None
    hawkbit_tenant: str | None = None
    hawkbit_gateway_token: str | None = field(default=None, repr=False)

    #: Seconds for which a device's or an application's spec may be answered from memory.
    spec_ttl: float = 10.0
    #: Seconds for which a tag's manifest may be answered from memory.
    manifest_ttl: float = 30.0
    #: Seconds until a device asks again, sent with SYNC and with the WAIT that goes with a failure.
    poll: int = 300
    #: Seconds until a device asks again, sent with WAIT.
    wait: int = 10
    #: Bytes of a block where the device names no size, and at most.
    mtu_default: int = 512
    mtu_max: int = 65536
    #: Seconds within which every event is answered.
    event_deadline: float = 4.0
    #: Seconds after which an event is not answered any more; 0 answers them all.
    event_max_age: float = 25.0
    events_user: str | None = None
    events_password: str | None = field(default=None, repr=False)
    events_token: str | None = field(default=None, repr=False)
    preview: bool = True
    report_status: bool = True
    log_level: str = "INFO"
    #: `json` or `text`.
    log_format: str = "json"

    port: int = 8080
    #: Worker processes, and threads of each.
    workers: int = 1
    threads: int = 8

    @property
    def has_layouts(self) -> bool:
        """Whether firmware lies in image layouts rather than in a registry."""
        return self.firmware_registry.startswith(LAYOUT_SCHEME)

    @property
    def firmware_prefix(self) -> str:
        """What stands before each reference, ending in `/`: else `ghcr.io/acme` could lead to `ghcr.io/acme-evil`."""
        prefix = self.firmware_registry.removeprefix(LAYOUT_SCHEME)
        return prefix if prefix.endswith("/") else f"{prefix}/"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """The settings that `environment` holds; an empty variable counts as not set.

        Raises:
            SettingsError: a variable is missing, or has a value that it does not take.

        """
        read = _Reader(environment)
        settings = cls(
            **_drogue(read),
            firmware_registry=read.required("FIRMWARE_REGISTRY", _registry_prefix, _REGISTRY_PREFIX),
            firmware_registry_user=read.credential("FIRMWARE_REGISTRY_USER"),
            firmware_registry_token=read.credential("FIRMWARE_REGISTRY_TOKEN"),
            firmware_registry_insecure=read.get("FIRMWARE_REGISTRY_INSECURE", _boolean, _BOOLEAN, False),
            firmware_registry_ca_file=read.optional("FIRMWARE_REGISTRY_CA_FILE", _trust_anchors, _TRUST_ANCHORS),
            docker_config=read.optional("DOCKER_CONFIG", _docker_config, _DOCKER_CONFIG),
            firmware_default_image=read.text("FIRMWARE_DEFAULT_IMAGE"),
            firmware_dir=read.optional("FIRMWARE_DIR", _folder, "a folder that is there"),
            firmware_cache_dir=read.cache_folder("FIRMWARE_CACHE_DIR"),
            firmware_cache_bytes=read.get("FIRMWARE_CACHE_BYTES", _whole(1), "a number of bytes above 0", 536870912),
            hawkbit_url=read.optional("HAWKBIT_URL", _base_url, _BASE_URL),
            hawkbit_tenant=read.text("HAWKBIT_TENANT"),
            hawkbit_gateway_token=read.credential("HAWKBIT_GATEWAY_TOKEN"),
            spec_ttl=read.get("SPEC_TTL_SECONDS", _seconds, _SECONDS, 10.0),
            manifest_ttl=read.get("MANIFEST_TTL_SECONDS", _seconds, _SECONDS, 30.0),
            poll=read.get("POLL_SECONDS", _whole(0, _U32_MAX), _WHOLE_SECONDS, 300),
            wait=read.get("WAIT_SECONDS", _whole(0, _U32_MAX), _WHOLE_SECONDS, 10),
            mtu_default=read.get("MTU_DEFAULT", _whole(1, _U32_MAX), "a number of bytes above 0", 512),
            mtu_max=read.get("MTU_MAX", _whole(1, _U32_MAX), "a number of bytes above 0", 65536),
            event_deadline=read.get("EVENT_DEADLINE_SECONDS", _seconds, _SECONDS, 4.0),
            event_max_age=read.get("EVENT_MAX_AGE_SECONDS", _seconds, _SECONDS, 25.0),
            events_user=read.credential("EVENTS_USER"),
            events_password=read.credential("EVENTS_PASSWORD"),
            events_token=read.credential("EVENTS_TOKEN"),
            preview=read.get("PREVIEW", _boolean, _BOOLEAN, True),
            report_status=read.get("REPORT_STATUS", _boolean, _BOOLEAN, True),
            log_level=read.get("LOG_LEVEL", _one_of(_LOG_LEVELS, str.upper), " or ".join(_LOG_LEVELS), "INFO"),
            log_format=read.get("LOG_FORMAT", _one_of(("json", "text"), str.lower), "json or text", "json"),
            port=read.get("PORT", _whole(0, 65535), "a TCP port from 0 to 65535", 8080),
            workers=read.get("WEB_CONCURRENCY", _whole(1, 1024), "a number of processes from 1 to 1024", 1),
            threads=read.get("THREADS", _whole(1, 1024), "a number of threads from 1 to 1024", 8),
        )
        read.together("EVENTS_USER", "EVENTS_PASSWORD")
        read.together("FIRMWARE_REGISTRY_USER", needs=("FIRMWARE_REGISTRY_TOKEN",))
        read.user("EVENTS_USER")
        read.user("FIRMWARE_REGISTRY_USER", "FIRMWARE_REGISTRY_TOKEN")
        read.template("FIRMWARE_REGISTRY", "application")
        if default_image := read.template("FIRMWARE_DEFAULT_IMAGE", "application", "device"):
            try:
                parse_reference(default_image)
            except Failed:
                read.wrong("FIRMWARE_DEFAULT_IMAGE", "a reference: name, name:tag or name@sha256:…")
        read.finish()
        return settings

    @classmethod
    def for_drogue(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """What `environment` says of Drogue Cloud alone, for who has no business with firmware.

        Raises:
            SettingsError: a variable is missing, or has a value that it does not take.

        """
        read = _Reader(environment)
        settings = cls(firmware_registry="", **_drogue(read))
        read.finish()
        return settings


def _drogue(read: "_Reader") -> dict[str, Any]:
    """The settings that concern Drogue Cloud, by field."""
    fields = {
        "drogue_api_url": read.required("DROGUE_API_URL", _base_url, _BASE_URL),
        "drogue_user": read.credential("DROGUE_USER"),
        "drogue_token": read.credential("DROGUE_TOKEN"),
        "drogue_oidc_token_url": read.optional("DROGUE_OIDC_TOKEN_URL", _endpoint, _BASE_URL),
        "drogue_oidc_client_id": read.credential("DROGUE_OIDC_CLIENT_ID"),
        "drogue_oidc_client_secret": read.credential("DROGUE_OIDC_CLIENT_SECRET"),
        "drogue_ca_file": read.optional("DROGUE_CA_FILE", _trust_anchors, _TRUST_ANCHORS),
    }
    read.together("DROGUE_USER", needs=("DROGUE_TOKEN",))
    read.together("DROGUE_OIDC_TOKEN_URL", "DROGUE_OIDC_CLIENT_ID", "DROGUE_OIDC_CLIENT_SECRET")
    read.apart("DROGUE_OIDC_TOKEN_URL", "DROGUE_TOKEN")
    read.user("DROGUE_USER", "DROGUE_TOKEN")
    return fields


class _Reader:
    """Reads variables and collects all violations, so that a user mends them in one go."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.violations: list[str] = []

    def text(self, name: str) -> str | None:
        return self._environment.get(name) or None

    def credential(self, name: str) -> str | None:
        return self.optional(name, _credential, _CREDENTIAL)

    def wrong(self, name: str, takes: str) -> None:
        self.violations.append(f"{name}: got {_shown(name, self.text(name))}, takes {takes}")

    def optional(self, name: str, parse: Callable[[str], T], takes: str) -> T | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError:
            self.wrong(name, takes)
            return None

    def get(self, name: str, parse: Callable[[str], T], takes: str, default: T) -> T:
        value = self.optional(name, parse, takes)
        return default if value is None else value

    def required(self, name: str, parse: Callable[[str], str], takes: str) -> str:
        """Return the value of a variable that has to be set."""
        if self.text(name) is None:
            self.wrong(name, takes)
            return ""
        return self.get(name, parse, takes, "")

    def cache_folder(self, name: str) -> str:
        """Return the folder that a variable names for a cache, or one in the system's temporary directory."""
        value = self.text(name)
        try:
            folder = private_folder(Path(value)) if value else default_folder()
            _check_writable(folder)
        except UntrustedError as error:
            which = "" if value else "the default "
            self.wrong(name, f"{_PRIVATE_FOLDER} ({which}{error.strerror})")
        except (OSError, RuntimeError, ValueError):  # a loop of links; a null byte
            self.wrong(name, _WRITABLE_FOLDER)
        else:
            return str(folder)
        return ""

    def finish(self) -> None:
        """Raises SettingsError for all that was wrong."""
        if self.violations:
            raise SettingsError("; ".join(self.violations))

    def user(self, name: str, token: str | None = None) -> None:
        """A user name for HTTP Basic, without which a `token` is one for Bearer."""
        if ":" in (self.text(name) or ""):
            self.wrong(name, "a user name without a colon (HTTP Basic, RFC 7617)")
        bearer = token and not self.text(name) and self.text(token)
        if token and bearer and not re.fullmatch(r"[!-~]+", bearer):
            self.wrong(token, f"ASCII characters without spaces (RFC 6750), unless {name} is set")

    def together(self, *names: str, needs: tuple[str, ...] = ()) -> None:
        """Variables of which none makes sense without the others; those that one `needs` may stand alone."""
        if any(self.text(name) for name in names):
            for name in (*names, *needs):
                if self.text(name) is None:
                    self.wrong(name, f"a value, because {next(n for n in names if self.text(n))} is set")

    def template(self, name: str, *placeholders: str) -> str:
        """A value as it is with names put in; other braces than the placeholders' are no part of a reference."""
        known = [f"{{{placeholder}}}" for placeholder in placeholders]
        filled = re.sub("|".join(map(re.escape, known)), "name", self.text(name) or "")
        if "{" in filled or "}" in filled:
            self.wrong(name, f"no other placeholder than {' and '.join(known)}")
            return ""
        return filled

    def apart(self, name: str, other: str) -> None:
        if self.text(name) and self.text(other):
            self.violations.append(f"{name}: got {_shown(name, self.text(name))}, takes nothing while {other} is set")


def _shown(name: str, value: str | None) -> str:
    """What to tell of a value: never a secret, nor what may be one in a URL; always one line."""
    if value is None:
        return "nothing"
    if re.search(r"TOKEN$|PASSWORD|SECRET", name):
        return "a value"
    # What is a password there may hold any character, "@" and "?" included.
    upto = r".*" if re.search(r"[?#].*@", value, re.DOTALL) else r".*(?=@)"
    value = re.sub(rf"^([A-Za-z][A-Za-z0-9+.-]*://)?{upto}", r"\1…", value, count=1, flags=re.DOTALL)
    value = re.sub(r"([?#]).*", r"\1…", value, flags=re.DOTALL)
    return ascii(value[:200]).replace("\\u2026", "…")


_U32_MAX = 2**32 - 1
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_BASE_URL = "an http:// or https:// URL without credentials, query and fragment"
_REGISTRY_PREFIX = f"a prefix of image references such as ghcr.io/acme/, or {LAYOUT_SCHEME} and a folder"
_TRUST_ANCHORS = "the path of a readable file of certificates (PEM)"
_WRITABLE_FOLDER = "a folder that can be written, or that can be made"
_PRIVATE_FOLDER = "a folder that no other user owns or may write"
_DOCKER_CONFIG = "a folder whose config.json, if there is one, can be read and is as docker writes it"
_CREDENTIAL = "printable characters, with no line break at the end either"
_BOOLEAN = "true or false"
_SECONDS = "a decimal number of seconds"
_WHOLE_SECONDS = "a whole number of seconds"


def _base_url(value: str) -> str:
    url = urlsplit(value)
    _ = url.port  # raises ValueError where it is no number
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise ValueError(value)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(value)
    url.hostname.encode("idna")  # raises ValueError where the resolver would
    return value.rstrip("/")


def _endpoint(value: str) -> str:
    _base_url(value)
    return value  # to some servers a slash at the end makes a difference


def _registry_prefix(value: str) -> str:
    if value.startswith(LAYOUT_SCHEME):
        if len(value) == len(LAYOUT_SCHEME):
            raise ValueError(value)
        return value
    host, _, path = value.partition("/")
    if not re.fullmatch(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?", host):
        raise ValueError(value)
    _base_url(f"https://{host}")
    path = re.sub(r"\{.*?\}", "name", path).removesuffix("/")  # other placeholders than ours are told as such
    if path and not is_name(path):
        raise ValueError(value)
    return value


def _trust_anchors(value: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except OSError as error:
        raise ValueError(value) from error
    return value


def _credential(value: str) -> str:
    if not value.isprintable():  # a line break ends a header, and http.client quotes what it refuses in a traceback
        raise ValueError("a credential that no header can carry")
    return value


def _folder(value: str) -> str:
    if not Path(value).is_dir():
        raise ValueError(value)
    return value


def _check_writable(folder: Path) -> None:
    """Raise OSError if no files can be made in a folder, or in the one that it would be made in.

    `UntrustedError` tells that the file system gives files to another user, or opens them to others.
    """
    folder = folder.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    with TemporaryDirectory(dir=folder) as inner:
        path = Path(inner, "file")
        path.touch(0o600)
        check_private(folder, Path(inner).lstat())
        check_private(folder, path.lstat())


def _docker_config(value: str) -> str:
    try:
        from_docker_config(value, "", "")
    except Failed as error:
        raise ValueError(value) from error
    return value


def _boolean(value: str) -> bool:
    try:
        return {"true": True, "false": False}[value.lower()]
    except KeyError as error:
        raise ValueError(value) from error


def _seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?|\.[0-9]+", value):
        raise ValueError(value)
    return float(value)


def _whole(lowest: int, highest: int = 2**63 - 1) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,19}", value) or not lowest <= int(value) <= highest:
            raise ValueError(value)
        return int(value)

    return parse


def _one_of(words: tuple[str, ...], fold: Callable[[str], str]) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if fold(value) not in words:
            raise ValueError(value)
        return fold(value)

    return parse
