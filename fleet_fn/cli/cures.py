"""Cures of upstreams' failures, for people at a command line.

A reason states facts: devices' reports and logs have it, too. A cure names a command's options and its environment.
"""

from typing import Final

from fleet_fn.fleet.cures import Means, cure_of_registry
from fleet_fn.oci.access import Access, credential_helper
from fleet_fn.oci.publication import WANTS_CREDENTIALS
from fleet_fn.oci.token_realm import NONE_CONFIGURED

#: What a command line can set about an OCI registry.
_OPTIONS: Final = Means(
    "--ca-file or FIRMWARE_REGISTRY_CA_FILE",
    "--insecure (FIRMWARE_REGISTRY_INSECURE=true)",
    "--insecure (FIRMWARE_REGISTRY_INSECURE)",
    "log in as docker does",
)


def cure_of_access(reason: str, host: str, access: Access) -> str:
    """Return the cure that follows a reason of the OCI registry at `host`, or ""."""
    cure = cure_of_registry(reason, host, _OPTIONS, is_insecure=access.insecure)
    return f"{cure}{_note_on_helper()}" if NONE_CONFIGURED in reason else cure


def cure_of_publishing(reason: str) -> str:
    """Return the cure that follows a reason of `publish`, or "".

    Many of its reasons have theirs already.
    """
    if WANTS_CREDENTIALS in reason:
        return _note_on_helper()
    if "answered 405 to a P" in reason:
        return "; the registry is read-only, or a mirror: publish to another"
    return ""


def _note_on_helper() -> str:
    """Return the name of a helper that is not run, to follow a reason; or ""."""
    helper = credential_helper()
    return f"; {helper} names a credential helper, which is not run" if helper else ""
