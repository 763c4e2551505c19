"""`spec.firmware.container.build`: how a firmware is built.

The function ignores it. Here, an unknown key is an error. No text of a build may hold what Tekton or Kubernetes would
replace before the build sees it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fleet_fn.drogue.spec_values import MalformedSpecError, describe, malformed, read_list, read_map, read_name

_KEYS: Final = ("source", "image", "args", "env", "artifact", "timeout")
_GIT_KEYS: Final = ("uri", "rev", "project")
_VARIABLE_KEYS: Final = ("name", "value")
#: Kubernetes refuses objects of more than 1.5 MB; a command line in Linux has words of 128 KiB at most.
_MAX_WORDS: Final = 200
_MAX_CHARACTERS: Final = 10_000
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What the Task `firmware-build` sets itself.
_RESERVED: Final = ("PROJECT_DIR", "BUILD_ARGS", "FIRMWARE_VERSION", "SOURCE_DATE_EPOCH")
_URL_SCHEMES: Final = ("https", "http", "ssh", "git")
#: USER@HOST:PATH, which git takes for ssh.
_SCP_ADDRESS: Final = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*@[^@:/\s]+:[^@\s]+")
#: A time as Go writes it, which Tekton reads.
_DURATION: Final = re.compile(r"(?:\d{1,6}(?:\.\d{1,6})?(?:h|m|s|ms))+")
_NONZERO: Final = re.compile(r"[1-9]")


@dataclass(frozen=True, slots=True)
class Build:
    """How a firmware is built."""

    repository: str
    #: A branch, a tag or a full commit id; None for the pipeline's default.
    revision: str | None
    #: Folder of the project in the repository; None for its root.
    project: str | None
    #: Image that the firmware is built in.
    builder: str
    arguments: tuple[str, ...]
    #: Variables of the build's environment.
    environment: Mapping[str, str]
    #: The file that the build leaves, as seen from the project.
    artifact: str
    #: A time such as `1h30m`; None for the pipeline's default.
    timeout: str | None


def read_build(section: object, path: str) -> Build:
    """Return the build that the value at `path` describes.

    Raises:
        MalformedSpecError: it is malformed. The text names the key, and what it may have.

    """
    if not isinstance(section, dict):
        raise malformed(path, section, f"a map with {', '.join(_KEYS)}")
    build = read_map(section, path, _KEYS)
    git = _read_git(build.get("source"), f"{path}.source")
    artifact = build.get("artifact")
    if artifact is None:
        raise MalformedSpecError(f"{path}.artifact is missing; it must be a map with path")
    artifact = read_map(artifact, f"{path}.artifact", ("path",))
    return Build(
        repository=_read_repository(git.get("uri"), f"{path}.source.git.uri"),
        revision=_read_revision(git.get("rev"), f"{path}.source.git.rev"),
        project=_read_path(git.get("project"), f"{path}.source.git.project"),
        builder=_read_builder(build.get("image"), f"{path}.image"),
        arguments=_read_arguments(build.get("args"), f"{path}.args"),
        environment=_read_environment(build.get("env"), f"{path}.env"),
        artifact=_read_path(
            read_name(artifact.get("path"), f"{path}.artifact.path", "the file that the build leaves"),
            f"{path}.artifact.path",
        )
        or "",
        timeout=_read_timeout(build.get("timeout"), f"{path}.timeout"),
    )


def _read_git(value: object, path: str) -> Mapping[str, Any]:
    if isinstance(value, dict) and value and "git" not in value and not any(key.startswith("x-") for key in value):
        raise malformed(path, ", ".join(map(str, value)), "git: firmware is built from no other source")
    source = read_map(value, path, ("git",))
    if source.get("git") is None:
        raise MalformedSpecError(f"{path}.git is missing; it must be a map with uri, rev and project")
    return read_map(source["git"], f"{path}.git", _GIT_KEYS)


def _read_repository(value: object, path: str) -> str:
    wanted = "the URL of a git repository (https, http, ssh, git), or USER@HOST:PATH"
    address = check_text(read_name(value, path, wanted), path)
    if _SCP_ADDRESS.fullmatch(address):
        return address
    try:
        url = urlsplit(address)
        is_url = url.scheme in _URL_SCHEMES and bool(url.hostname) and not re.search(r"\s", address)
        # A password with a slash ends what is parsed as the host, so any other @ counts, too.
        has_secret = url.password is not None or "@" in (url.path if url.scheme == "ssh" else address)
    except ValueError:
        is_url = has_secret = False
    if "@" in address and (has_secret or not is_url):
        # Not shown: it may be a password.
        raise MalformedSpecError(
            f"{path} has credentials, which each reader of the run would see; leave them out, and name a Secret with "
            "--git-secret"
        )
    if not is_url:
        raise malformed(path, address, wanted)
    return address


def _read_revision(value: object, path: str) -> str | None:
    if value is None:
        return None
    wanted = "a branch, a tag or a full commit id"
    revision = check_text(read_name(value, path, wanted), path)
    if revision.startswith("-") or re.search(r"\s", revision):
        raise malformed(path, revision, wanted)
    return revision


def _read_path(value: object, path: str) -> str | None:
    """Return a path inside the repository; None for null."""
    if value is None:
        return None
    wanted = "a path inside the repository"
    inside = check_text(read_name(value, path, wanted), path)
    if inside.startswith("/") or ".." in inside.split("/"):
        raise malformed(path, inside, wanted)
    return inside


def _read_builder(value: object, path: str) -> str:
    wanted = "the image that the firmware is built in, such as registry.example.com/acme/builder:1"
    image = check_text(read_name(value, path, wanted), path)
    if re.search(r"\s", image) or image.startswith("-"):
        raise malformed(path, image, wanted)
    return image


def _read_arguments(value: object, path: str) -> tuple[str, ...]:
    """Return the words of a list; none for null and for an empty list."""
    if value is None or value == []:
        return ()
    return tuple(_read_word(entry, where) for entry, where in _read_entries(value, path, "a list of texts"))


def _read_environment(value: object, path: str) -> dict[str, str]:
    if value is None or value == []:
        return {}
    found: dict[str, str] = {}
    for entry, where in _read_entries(value, path, "a list of maps with name and value"):
        variable = read_map(entry, where, _VARIABLE_KEYS)
        wanted = "the name of a variable: letters, digits and _"
        name = read_name(variable.get("name"), f"{where}.name", wanted)
        if not _VARIABLE.fullmatch(name):
            raise malformed(f"{where}.name", name, wanted)
        if name in _RESERVED:
            raise MalformedSpecError(f"{where}.name is {name}, which the pipeline sets")
        if name in found:
            raise MalformedSpecError(f"{where}.name is {name} again")
        if variable.get("value") is None:
            raise MalformedSpecError(f"{where}.value is missing; it must be a text")
        found[name] = _read_word(variable["value"], f"{where}.value")
    return found


def _read_entries(value: object, path: str, wanted: str) -> list[tuple[object, str]]:
    entries = list(read_list(value, path, wanted))
    if len(entries) > _MAX_WORDS:
        raise MalformedSpecError(f"{path} has {len(entries)} entries; it may have {_MAX_WORDS}")
    return entries


def _read_word(value: object, path: str) -> str:
    if not isinstance(value, str):
        hint = "a text: write it in quotes" if isinstance(value, int | float) else "a text"
        raise malformed(path, value, hint)
    return check_text(value, path, may_have_lines=True)


def check_text(text: str, path: str, *, may_have_lines: bool = False) -> str:
    """Return a text that reaches the build as it is.

    Raises:
        MalformedSpecError: Tekton or Kubernetes would change it, or it is too long.

    """
    if len(text) > _MAX_CHARACTERS:
        raise MalformedSpecError(f"{path} has {len(text)} characters; it may have {_MAX_CHARACTERS}")
    if "$(" in text or "$$" in text:
        raise MalformedSpecError(
            f"{path} is {describe(text)}; it must not contain $( or $$, which Tekton and Kubernetes replace"
        )
    allowed = "\n\t" if may_have_lines else ""
    if not all(character.isprintable() or character in allowed for character in text):
        raise MalformedSpecError(f"{path} is {describe(text)}; it contains a character that cannot be printed")
    return text


def _read_timeout(value: object, path: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _DURATION.fullmatch(value) or not _NONZERO.search(value):
        raise malformed(path, value, "a time such as 1h30m, above 0")
    return value
