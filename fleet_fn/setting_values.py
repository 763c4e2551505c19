"""Kinds of values for settings: how to parse them, and what to set them to."""

import os
import re
import ssl
import stat
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Generic, TypeVar
from urllib.parse import urlsplit

from fleet_fn.errors import PermanentError
from fleet_fn.firmware.private import UntrustedError, check_private, default_folder, private_folder
from fleet_fn.oci.docker_config import from_docker_config
from fleet_fn.oci.reference import LAYOUT_SCHEME, VERBATIM, is_host, is_name, parse_reference
from fleet_fn.protocol.messages import U32_MAX

T_co = TypeVar("T_co", covariant=True)

#: Longest wait for an upstream. poll(2), which waits, takes 24 days at most; no deliverer waits for a day.
_MAX_DEADLINE_SECONDS: Final = 86_400
#: A name of an application, which is one of a host (RFC 1123) in Drogue Cloud, and what may be between two in a list.
_APPLICATION: Final = re.compile(r"(?!.{254})(?![.-])([A-Za-z0-9-]{0,62}[A-Za-z0-9](\.(?!-)|\Z))+(?<!\.)")
_SEPARATOR: Final = re.compile(r"[\s,]+")
#: Schemes of brokers' URLs, and their default ports.
MQTT_SCHEMES: Final = {"mqtts": 8883, "mqtt": 1883, "wss": 443, "ws": 80}
_GROUP: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class UnfitError(ValueError):
    """A variable does not take a value.

    The text completes "which …" and quotes no secret.
    """


@dataclass(frozen=True, slots=True)
class Kind(Generic[T_co]):
    """A kind of value."""

    #: Returns the value of a text, or raises ValueError.
    parse: Callable[[str], T_co]
    #: What to set the variable to, for messages.
    takes: str
    is_secret: bool = False


def quote(value: str) -> str:
    """Return a value for an error message: one line, without secret parts of URLs."""
    # A password before the host may hold any character, "@" and "?" included.
    upto = r".*" if re.search(r"[?#].*@", value, re.DOTALL) else r".*(?=@)"
    value = re.sub(rf"^([A-Za-z][A-Za-z0-9+.-]*://)?{upto}", r"\1…", value, count=1, flags=re.DOTALL)
    value = re.sub(r"([?#]).*", r"\1…", value, flags=re.DOTALL)
    return ascii(value[:200]).replace("\\u2026", "…")


# --- URLs and references ----------------------------------------------------------------------------------------------


def _parse_url(value: str) -> str:
    url = urlsplit(value)
    _ = url.port  # raises ValueError if it is no number
    if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise UnfitError("is not an http:// or https:// URL without credentials, query and fragment")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise UnfitError("has a character that no URL can have")
    url.hostname.encode("idna")  # raises ValueError if the resolver would
    return value


def _parse_mqtt_url(value: str) -> str:
    url = urlsplit(value)
    _ = url.port  # raises ValueError if it is no number
    if url.scheme not in MQTT_SCHEMES or not url.hostname or "@" in url.netloc or url.query or url.fragment:
        raise UnfitError("is not an mqtts://, mqtt://, wss:// or ws:// URL without credentials, query and fragment")
    if url.path not in ("", "/") and url.scheme.startswith("mqtt"):
        raise UnfitError("has a path, which only wss:// and ws:// can have")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise UnfitError("has a character that no URL can have")
    url.hostname.encode("idna")  # raises ValueError if the resolver would
    return value


def base_url(takes: str) -> Kind[str]:
    """Return the kind of URLs that paths are appended to."""
    return Kind(lambda value: _parse_url(value).rstrip("/"), takes)


def endpoint(takes: str) -> Kind[str]:
    """Return the kind of URLs that are used unchanged.

    Some servers care about a slash at the end.
    """
    return Kind(_parse_url, takes)


def _parse_overrides(value: str) -> Mapping[str, str]:
    from fleet_fn.sink.overrides import read_overrides  # few functions have a sink

    return read_overrides(value)


MQTT_URL: Final = Kind(
    _parse_mqtt_url, "the URL of the MQTT integration, e.g. mqtts://mqtt-integration.example.com:443"
)
OVERRIDES: Final = Kind(_parse_overrides, 'JSON as in {"extensions": {"team": "pumps"}}: names of a-z and 0-9, texts')


def _parse_prefix(value: str) -> str:
    """Return a valid prefix of references unchanged.

    A name follows a slash, or the place of a `*` at the end, but never the host: it would become part of that.
    The folder of image layouts has to exist when the function starts: a mistyped one would fail each event. Layouts
    below it may be added later. If `{application}` is part of the path, the folder before it has to exist, because
    applications are added later, too.
    """
    _check_placeholders(value, "application")
    stem = value.removesuffix(VERBATIM)
    is_verbatim = stem != value
    if value.startswith(LAYOUT_SCHEME):
        _check_folder(stem.removeprefix(LAYOUT_SCHEME), has_more=is_verbatim)
        return value
    if url := re.match("https?://", value, re.IGNORECASE):
        scheme = url[0].lower()
        plain = ", and set FIRMWARE_REGISTRY_INSECURE=true" if scheme == "http://" else ""
        raise UnfitError(f"is a URL: leave out {scheme}{plain}")
    host, slash, path = stem.partition("/")
    if not is_host(host):
        raise ValueError(value)
    if is_verbatim and not slash:
        raise UnfitError("has no slash between the host and the *")
    path = path.replace("{application}", "name")
    path = f"{path}name" if is_verbatim else path.removesuffix("/")
    if path and not is_name(path):
        raise ValueError(value)
    return value


def _check_folder(path: str, *, has_more: bool = False) -> None:
    """Raise ValueError unless `path` is a folder.

    Only the folders before a placeholder have to exist; and before the last slash, if the path `has_more`.
    """
    if not path:
        raise ValueError(path)
    before, placeholder, _ = path.partition("{")
    folder = Path(before[: before.rfind("/") + 1] if placeholder or has_more else path)
    try:
        mode = folder.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise UnfitError(f"names a folder that does not exist: {quote(str(folder))}") from error
    except OSError as error:
        raise UnfitError(f"names a folder that cannot be read: {quote(str(folder))} ({error.strerror})") from error
    if not stat.S_ISDIR(mode):
        raise UnfitError(f"names a file, not a folder: {quote(str(folder))}")


def _parse_image(value: str) -> str:
    _check_placeholders(value, "application", "device")
    try:
        parse_reference(re.sub(r"\{(application|device)\}", "name", value))
    except PermanentError as error:
        raise ValueError(value) from error
    return value


def _check_placeholders(value: str, *names: str) -> None:
    """Raise ValueError for placeholders other than these.

    No reference can contain braces.
    """
    known = [f"{{{name}}}" for name in names]
    if re.search(r"[{}]", re.sub("|".join(map(re.escape, known)), "", value)):
        raise UnfitError(f"has a placeholder other than {' and '.join(known)}")


PREFIX: Final = Kind(
    _parse_prefix, f"a prefix of references such as ghcr.io/acme/, or {LAYOUT_SCHEME} and an existing folder"
)
IMAGE: Final = Kind(_parse_image, "a reference: name, name:tag or name@sha256:…")


# --- Credentials ------------------------------------------------------------------------------------------------------


def _parse_credential(value: str) -> str:
    """Return a credential that a header can carry: a line break would end the header."""
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise UnfitError("contains a control character (a trailing newline?)")
    if not value.isprintable():
        raise UnfitError("contains a character that cannot be printed")
    return value


def _parse_user(value: str) -> str:
    if ":" in _parse_credential(value):
        raise UnfitError("contains a colon, which HTTP Basic allows in no user name (RFC 7617)")
    return value


def user(takes: str) -> Kind[str]:
    """Return the kind of users in HTTP Basic."""
    return Kind(_parse_user, takes)


def identifier(takes: str) -> Kind[str]:
    """Return the kind of identifiers that headers and forms carry."""
    return Kind(_parse_credential, takes)


def secret(takes: str) -> Kind[str]:
    """Return the kind of secrets."""
    return Kind(_parse_credential, takes, is_secret=True)


# --- Files and folders ------------------------------------------------------------------------------------------------


def _parse_trust_anchors(value: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except ssl.SSLError as error:
        raise UnfitError("has no certificates (PEM)") from error
    except OSError as error:
        raise UnfitError(_file_problem(error)) from error
    return value


def _parse_folder(value: str) -> str:
    folder = Path(value)
    if not folder.is_dir():
        raise UnfitError("is a file, not a folder" if folder.exists() else "does not exist")
    return value


def _file_problem(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return f"cannot be used: {error.strerror}"


def cache_folder(value: str = "") -> str:
    """Return the folder for the cache.

    The default is one in the system's temporary directory.

    Raises:
        UnfitError: another user can change what the folder holds; or the folder of `value` cannot be used.
        ValueError: the folder cannot be written, nor created.

    """
    try:
        folder = private_folder(Path(value)) if value else default_folder()
        _check_writable(folder)
    except UntrustedError as error:
        raise UnfitError(f"is not safe: {error.strerror}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        if value and isinstance(error, OSError):
            raise UnfitError("is a file, not a folder" if Path(value).is_file() else _file_problem(error)) from error
        raise ValueError(value) from error
    return str(folder)


def _check_writable(folder: Path) -> None:
    """Raise OSError unless files can be created in a folder.

    If the folder does not exist, its nearest parent counts. `UntrustedError` means that the file system gives new files
    to another user, or lets other users access them.
    """
    folder = folder.absolute()
    while not os.path.lexists(folder):
        folder = folder.parent
    with TemporaryDirectory(dir=folder) as inner:
        path = Path(inner, "file")
        path.touch(0o600)
        check_private(folder, Path(inner).lstat())
        check_private(folder, path.lstat())


def _parse_docker_config(value: str) -> str:
    try:
        from_docker_config(value, "", "")
    except PermanentError as error:
        raise ValueError(value) from error
    return value


def _parse_keys(value: str) -> str:
    """Return the path of public keys.

    Those of single applications are not read: applications may be added later.
    """
    from fleet_fn.oci.signature_keys import load_keys  # slow to import, and few functions have keys

    _check_placeholders(value, "application")
    if "{" in value:
        _check_folder(value)
    else:
        _unfit_if_refused(lambda: load_keys(Path(value)), value)
    return value


def _parse_deny_list(value: str) -> str:
    from fleet_fn.firmware.deny_list import load_deny_list

    _unfit_if_refused(lambda: load_deny_list(Path(value)), value)
    return value


def _unfit_if_refused(load: Callable[[], object], path: str) -> None:
    try:
        load()
    except PermanentError as error:
        problem = error.reason.removeprefix(f"{path}: ")
        raise UnfitError(f"cannot be used: {problem}") from error


def _parse_token_file(value: str) -> str:
    from fleet_fn.oci.token_file import read_token_file

    _unfit_if_refused(lambda: read_token_file(value), f"OCI registry credentials: {value}")
    return value


TOKEN_FILE: Final = Kind(_parse_token_file, "the path of a file that holds a token, and nothing else")
TRUST_ANCHORS: Final = Kind(_parse_trust_anchors, "the path of a readable file of certificates (PEM)")
KEYS: Final = Kind(_parse_keys, "the path of a file of public keys (PEM), or of a folder of such files")
DENY_LIST: Final = Kind(_parse_deny_list, "the path of a file with a digest, sha256:…, in each line")
FOLDER: Final = Kind(_parse_folder, "an existing folder")
CACHE_FOLDER: Final = Kind(cache_folder, "a folder that can be written or created, and that no other user owns")
DOCKER_CONFIG: Final = Kind(
    _parse_docker_config, "a folder whose config.json, if it exists, can be read and is as docker writes it"
)


# --- Numbers and words ------------------------------------------------------------------------------------------------


def _parse_boolean(value: str) -> bool:
    try:
        return {"true": True, "false": False}[value.lower()]
    except KeyError as error:
        raise ValueError(value) from error


def _check_sign(value: str, lowest: int) -> None:
    if re.fullmatch(r"-[0-9]+(\.[0-9]+)?", value):
        raise UnfitError(f"is below {lowest}")


def _parse_seconds(value: str) -> float:
    _check_sign(value, 0)
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?|\.[0-9]+", value):
        raise ValueError(value)
    return float(value)


def _parse_deadline(value: str) -> float:
    seconds = _parse_seconds(value)
    if seconds > _MAX_DEADLINE_SECONDS:
        raise ValueError(value)
    return seconds


def _parse_address(value: str) -> str:
    """Return an IP address without brackets.

    Names are refused, because one may resolve to several addresses.
    """
    if value == "localhost":
        return "127.0.0.1"
    bracketed = re.fullmatch(r"\[(.*:.*)\]", value)
    return str(ip_address(bracketed[1] if bracketed else value))


def whole(takes: str, lowest: int, highest: int) -> Kind[int]:
    """Return the kind of whole numbers in a range."""

    def parse(value: str) -> int:
        _check_sign(value, lowest)
        if not re.fullmatch(r"[0-9]{1,19}", value) or not lowest <= int(value) <= highest:
            raise ValueError(value)
        return int(value)

    return Kind(parse, takes)


def word(*words: str, fold: Callable[[str], str]) -> Kind[str]:
    """Return the kind of a few words; `fold` turns a word into the case of `words`."""

    def parse(value: str) -> str:
        if fold(value) not in words:
            raise ValueError(value)
        return fold(value)

    return Kind(parse, " or ".join(words))


def text(takes: str) -> Kind[str]:
    """Return the kind of texts with any characters."""
    return Kind(lambda value: value, takes)


def _parse_applications(value: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(filter(None, _SEPARATOR.split(value))))
    for name in names:
        if not _APPLICATION.fullmatch(name):
            raise UnfitError(f"has {quote(name)}, which is no name of an application")
    if not names:
        raise ValueError(value)
    return names


def _parse_labels(value: str) -> Mapping[str, str]:
    labels = {}
    for pair in filter(None, _SEPARATOR.split(value)):
        name, equals, labels[name] = pair.partition("=")
        if not name or not equals:
            raise UnfitError(f"has {quote(pair)}, which is not NAME=VALUE")
    if not labels:
        raise ValueError(value)
    return labels


def _parse_applications_or_all(value: str) -> tuple[str, ...]:
    return (ALL,) if ALL in filter(None, _SEPARATOR.split(value)) else _parse_applications(value)


def _parse_group(value: str) -> str:
    if not _GROUP.fullmatch(value):
        raise ValueError(value)
    return value


LABELS: Final = Kind(_parse_labels, "labels as in ring=new,site=oslo")
#: Stands for all applications that the token can see.
ALL: Final = "*"
APPLICATIONS: Final = Kind(_parse_applications, "names of applications, separated by commas")
APPLICATIONS_OR_ALL: Final = Kind(_parse_applications_or_all, "names of applications, separated by commas, or *")
GROUP: Final = Kind(_parse_group, "a name of 1 to 64 letters, digits, dots, underscores and hyphens")
CONNECTIONS: Final = whole("a number of connections from 1 to 64", 1, 64)
BOOLEAN: Final = Kind(_parse_boolean, "true or false")
SECONDS: Final = Kind(_parse_seconds, "a decimal number of seconds, e.g. 2.5")
DEADLINE_SECONDS: Final = Kind(
    _parse_deadline, f"a decimal number of seconds up to {_MAX_DEADLINE_SECONDS} (a day), e.g. 2.5"
)
WHOLE_SECONDS: Final = whole("a whole number of seconds", 0, U32_MAX)
BLOCK_BYTES: Final = whole(f"a number of bytes from 1 to {U32_MAX}", 1, U32_MAX)
CACHE_BYTES: Final = whole("a number of bytes above 0", 1, 2**63 - 1)
LOG_LEVEL: Final = word(*_LOG_LEVELS, fold=str.upper)
LOG_FORMAT: Final = word("json", "text", fold=str.lower)
ADDRESS: Final = Kind(_parse_address, "an IP address of this machine, e.g. 127.0.0.1 or ::1")
PORT: Final = whole("a TCP port from 0 to 65535", 0, 65535)
PROCESSES: Final = whole("a number of processes from 1 to 1024", 1, 1024)
THREADS: Final = whole("a number of threads from 1 to 1024", 1, 1024)
