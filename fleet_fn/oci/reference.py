"""References to firmware: what stands in a spec, below a prefix that it can never leave.

The grammar is that of the OCI distribution specification 1.1 ("Pulling manifests") for names, tags and digests.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fleet_fn.errors import PermanentError

#: Begins the text that names an image layout in a folder, instead of a repository in a registry.
LAYOUT_SCHEME: Final = "oci-layout:"
#: Names that mean Docker Hub in references, and the host where its registry is.
_DOCKER_HUB: Final = ("docker.io", "index.docker.io")
_DOCKER_HUB_HOST: Final = "registry-1.docker.io"
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[a-f0-9]{64}")
#: Characters of a name, as the specification advises clients for host and name together.
_MAX_NAME: Final = 255


def api_host(host: str) -> str:
    """Return the host, perhaps with a port, where the registry answers that references call `host`."""
    return _DOCKER_HUB_HOST if host.lower() in _DOCKER_HUB else host


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository below the configured prefix, and which of its manifests is meant."""

    #: What stands before the repository's name, with `{application}` replaced, ending in `/`.
    prefix: str
    name: str
    tag: str | None
    #: `sha256:…`; says which manifest is meant even where there is a tag.
    digest: str | None
    #: Which of an index's manifests is meant: a platform, or an annotation.
    platform: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse_reference(text: str, prefix: str = "") -> Reference:
    """The reference that `text` spells: `name`, `name:tag` or `name@digest`; with neither, the tag is `latest`.

    Raises:
        PermanentError: it is none, or tries to leave `prefix`.

    """
    rest, at, digest = text.partition("@")
    name, colon, tag = rest.partition(":")
    if not is_name(name):
        raise PermanentError(f"invalid reference {_quoted(text)}: the name is not a path of lower-case components")
    if colon and not is_tag(tag):
        raise PermanentError(f"invalid reference {_quoted(text)}: not a tag after the colon")
    if at and not is_digest(digest):
        raise PermanentError(f"invalid reference {_quoted(text)}: not a sha256 digest after the @")
    return Reference(prefix, name, tag or (None if at else "latest"), digest or None)


def image_reference(text: str, prefix: str, application: str, platform: str | None = None) -> Reference:
    """The reference that `text` spells below `prefix`, in which `{application}` is replaced.

    Raises:
        PermanentError: it spells none, or the application's name cannot stand there.

    """
    reference = parse_reference(text, fill_in(prefix, {"application": application}))
    return replace(reference, platform=platform)


def is_name(text: str) -> bool:
    """Whether a repository can be called `text`."""
    return _NAME.fullmatch(text) is not None and len(text) <= _MAX_NAME


def is_tag(text: str) -> bool:
    """Whether a manifest can be tagged `text`."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether `text` is the digest of a blob or a manifest: a SHA-256, which is all that is read here."""
    return _DIGEST.fullmatch(text) is not None


def fill_in(template: str, names: Mapping[str, str]) -> str:
    """`template` with `{application}` and such replaced by the names of that application and such.

    Raises:
        PermanentError: a name that is not one valid path component would be put in.

    """
    for placeholder, name in names.items():
        if f"{{{placeholder}}}" in template:
            if not re.fullmatch(_COMPONENT, name) or len(name) > _MAX_NAME:
                raise PermanentError(
                    f"{placeholder} name {_quoted(name)} is not one valid path component of a reference"
                )
            template = template.replace(f"{{{placeholder}}}", name)
    return template


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:100] + "…")
