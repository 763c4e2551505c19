"""Labels and annotations of builds, by which they are found.

A label's value has few characters and few kinds of them, so names that are none are hashed. The whole name stands in an
annotation of the same key.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

#: Of every run that builds firmware, whatever created it.
PART_OF: Final = {"app.kubernetes.io/part-of": "fleet-function"}
APPLICATION: Final = "io.drogue.firmware/application"
DEVICE: Final = "io.drogue.firmware/device"
_CREATOR: Final = {"app.kubernetes.io/managed-by": "fleet-fn"}
_VALUE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
#: What `label_value` makes of a name that is no value.
_HASHED: Final = re.compile(r"sha256-[0-9a-f]{40}")


def label_value(name: str) -> str:
    """Return a name as a label's value.

    It is the name itself, or its hash if it can be no value. A name that looks like a hash is hashed, too, so that no
    two names have the same value.
    """
    if _VALUE.fullmatch(name) and not _HASHED.fullmatch(name):
        return name
    return f"sha256-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:40]}"


def labels_of(application: str, device: str | None) -> dict[str, str]:
    """Return the labels of a run."""
    return {**PART_OF, **_CREATOR, **{key: label_value(name) for key, name in _names(application, device).items()}}


def annotations_of(application: str, device: str | None) -> dict[str, str]:
    """Return the annotations of a run: the whole names."""
    return _names(application, device)


def selector(application: str | None, device: str | None) -> dict[str, str]:
    """Return the labels by which runs are found; None stands for any."""
    names = {APPLICATION: application, DEVICE: device}
    return {**PART_OF, **{key: label_value(name) for key, name in names.items() if name is not None}}


def read_name(metadata: Mapping[str, Any], key: str) -> str:
    """Return a name: the annotation at `key`, else the label, else nothing."""
    for kind in ("annotations", "labels"):
        found = metadata.get(kind)
        if isinstance(found, dict) and isinstance(found.get(key), str):
            return str(found[key])
    return ""


def _names(application: str, device: str | None) -> dict[str, str]:
    return {APPLICATION: application, **({DEVICE: device} if device is not None else {})}
