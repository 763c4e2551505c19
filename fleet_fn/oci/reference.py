"""References to firmware in a spec, below a configured prefix.

No reference can leave the prefix. Names, tags and digests follow the grammar of the OCI distribution specification 1.1
("Pulling manifests").
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from fleet_fn.errors import PermanentError

#: Prefix of references to image layouts in folders, as opposed to repositories in registries.
LAYOUT_SCHEME: Final = "oci-layout:"
#: Ends a prefix that stands before the name as it is; any other prefix ends at a slash.
VERBATIM: Final = "*"
#: Names of Docker Hub in references, and the host of its registry.
_DOCKER_HUB: Final = ("docker.io", "index.docker.io")
_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
#: A host name, an IPv4 address or a bracketed IPv6 address, with or without a port.
_HOST: Final = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?")
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
MAX_TAG_CHARACTERS: Final = 128
_TAG: Final = re.compile(rf"[a-zA-Z0-9_][a-zA-Z0-9._-]{{0,{MAX_TAG_CHARACTERS - 1}}}")
_DIGEST: Final = re.compile(r"sha256:[a-f0-9]{64}")
#: Upper bound for a name; the specification advises it for host and name together.
_MAX_NAME_CHARACTERS: Final = 255


def is_host(text: str) -> bool:
    """Return whether `text` can be the host of a registry, with or without a port."""
    if not _HOST.fullmatch(text):
        return False
    try:
        parts = urlsplit(f"//{text}")
        _ = parts.port  # raises ValueError if the port is above 65535
        (parts.hostname or "").encode("idna")  # raises UnicodeError, a ValueError, if the resolver would
    except ValueError:
        return False
    return True


def api_host(host: str) -> str:
    """Return the API's host, with any port, for a registry's `host` in references."""
    return _DOCKER_HUB_HOST if host.lower() in _DOCKER_HUB else host


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository below the configured prefix, and one of its manifests."""

    #: The prefix with `{application}` replaced, to put before the name as it is.
    prefix: str
    name: str
    tag: str | None
    #: `sha256:…`; takes precedence over the tag.
    digest: str | None
    #: Selects one of an index's manifests, by platform or by annotation.
    platform: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


@lru_cache(maxsize=1024)  # each event of a device has it parsed, and texts with more than 500 characters raise
def parse_reference(text: str, prefix: str = "") -> Reference:
    """Parse `name`, `name:tag` or `name@digest`; the default is the tag `latest`.

    Raises:
        PermanentError: `text` has another form, or would leave `prefix`.

    """
    rest, at, digest = text.partition("@")
    name, colon, tag = rest.partition(":")
    if not is_name(name):
        raise PermanentError(f"invalid reference {_quote(text)}: the name is not a path of lower-case components")
    if colon and not is_tag(tag):
        raise PermanentError(f"invalid reference {_quote(text)}: not a tag after the colon")
    if at and not is_digest(digest):
        raise PermanentError(f"invalid reference {_quote(text)}: not a sha256 digest after the @")
    return Reference(prefix, name, tag or (None if at else "latest"), digest or None)


def image_reference(text: str, prefix: str, application: str, platform: str | None = None) -> Reference:
    """Parse a reference below `prefix`, after replacing `{application}` in the prefix.

    Raises:
        PermanentError: `text` is no reference, or the application's name cannot be part of one.

    """
    reference = parse_reference(text, fill_in(prefix, {"application": application}))
    return reference if platform is None else replace(reference, platform=platform)


def is_name(text: str) -> bool:
    """Return whether `text` is a valid repository name."""
    return _NAME.fullmatch(text) is not None and len(text) <= _MAX_NAME_CHARACTERS


def is_tag(text: str) -> bool:
    """Return whether `text` is a valid tag."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Return whether `text` is a digest of the only supported algorithm, SHA-256."""
    return _DIGEST.fullmatch(text) is not None


def fill_in(template: str, names: Mapping[str, str]) -> str:
    """Replace placeholders such as `{application}` in `template`.

    Args:
        template: a reference or a prefix.
        names: the value for each placeholder, e.g. `{"application": "acme"}`.

    Raises:
        PermanentError: a value to be inserted is not one valid path component.

    """
    for placeholder, name in names.items():
        if f"{{{placeholder}}}" in template:
            if not re.fullmatch(_COMPONENT, name) or len(name) > _MAX_NAME_CHARACTERS:
                raise PermanentError(
                    f"{placeholder} name {_quote(name)} is not one valid path component of a reference"
                )
            template = template.replace(f"{{{placeholder}}}", name)
    return template


def _quote(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
