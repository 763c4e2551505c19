"""The firmware source that a `spec.firmware` names."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.spec_policy import OUTER_PATHS
from fleet_fn.drogue.spec_values import (
    MalformedSpecError,
    check_keys,
    describe,
    malformed,
    read_choice,
    read_name,
    read_text,
)

#: The kinds of sources that name an image; `oci` is an alias of `container`.
IMAGE_SOURCES: Final = ("container", "oci")
_IMAGE_KEYS: Final = ("image", "version", "imagePullPolicy", "platform", "build")
#: The keys of each kind of source.
_KEYS: Final = {
    **dict.fromkeys(IMAGE_SOURCES, _IMAGE_KEYS),
    "file": ("name",),
    "hawkbit": ("controller", "part", "file"),
}
#: The kinds of sources.
SOURCES: Final = tuple(_KEYS)
#: hawkBit's bound.
_MAX_CONTROLLER_CHARS: Final = 256
_PULL_POLICIES: Final = ("IfNotPresent", "Always")


class Image(NamedTuple):
    """Firmware in an OCI repository, named by `container` or its alias `oci`."""

    #: Relative to `FIRMWARE_REGISTRY`: `name`, `name:tag` or `name@digest`.
    reference: str
    #: Resolve the tag for each status (`imagePullPolicy: Always`).
    always: bool = False
    #: Selects one of an index's manifests by platform, or by annotation.
    platform: str | None = None
    #: Range of semantic versions. Then the tags in it are the versions to choose from, and `reference` has no tag.
    version: str | None = None


class File(NamedTuple):
    """Firmware in `FIRMWARE_DIR`."""

    name: str


class HawkBit(NamedTuple):
    """Firmware that a DDI server such as Eclipse hawkBit assigns."""

    #: The device's id in the server; `{application}` and `{device}` stand for its names here.
    controller: str
    #: Choose one of several artifacts: by the type of its software module, and by the name of its file.
    part: str | None = None
    file: str | None = None


Source = Image | File | HawkBit


def read_source(section: Mapping[str, Any]) -> Source | None:
    """Return the source that a `spec.firmware` names; None if it names none.

    Raises:
        MalformedSpecError: the source is malformed, or there are several.

    """
    kinds = [kind for kind in SOURCES if section.get(kind) is not None]
    if not kinds:
        return None
    kind, *others = kinds
    if others:
        raise MalformedSpecError(f"{kind} is set beside {', '.join(others)}; only one source may be set")
    source = section[kind]
    if not isinstance(source, dict):
        raise malformed(kind, source, "a map")
    check_keys(source, kind, _KEYS[kind], OUTER_PATHS)
    if kind == "hawkbit":
        return _read_hawkbit(source)
    if kind == "file":
        return File(read_name(source.get("name"), "file.name", "the name of a firmware in FIRMWARE_DIR"))
    return _read_image(source, kind)


def _read_hawkbit(source: Mapping[str, Any]) -> HawkBit:
    wanted = "the id of a controller; {application} and {device} are replaced"
    controller = read_name(source.get("controller"), "hawkbit.controller", wanted)
    rest = controller.replace("{application}", "").replace("{device}", "")
    if not controller.isprintable() or len(controller) > _MAX_CONTROLLER_CHARS or "{" in rest or "}" in rest:
        raise malformed("hawkbit.controller", controller, wanted)
    part, file = (read_text(source.get(key), f"hawkbit.{key}") for key in ("part", "file"))
    return HawkBit(controller, part or None, file or None)


def _read_image(source: Mapping[str, Any], kind: str) -> Image:
    reference = read_name(source.get("image"), f"{kind}.image", "name, name:tag or name@sha256:…")
    pull_policy = read_choice(source.get("imagePullPolicy"), f"{kind}.imagePullPolicy", _PULL_POLICIES)
    platform, version = source.get("platform"), source.get("version")
    if platform is not None:
        platform = read_name(platform, f"{kind}.platform", "a platform, such as linux/arm64")
    if version is not None:
        version = _read_range(version, f"{kind}.version")
        if ":" in reference or "@" in reference:
            raise MalformedSpecError(
                f"{kind}.version is set beside the tag or the digest of {kind}.image; only one of them may be set"
            )
    return Image(reference, always=pull_policy == "Always", platform=platform, version=version)


def _read_range(value: object, path: str) -> str:
    if not isinstance(value, str):
        hint = ": YAML makes a number of 1.2 without quotes" if isinstance(value, int | float) else ""
        raise malformed(path, value, f'a range of semantic versions in quotes, such as ">=1.2 <2"{hint}')
    from fleet_fn.version_range import MalformedRangeError, parse_range  # imported when needed: most specs name a tag

    try:
        return parse_range(value).text
    except MalformedRangeError as error:
        raise MalformedSpecError(f"{path} is {describe(value)}; it {error}") from error
