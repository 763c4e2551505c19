"""What `inspect` prints of a firmware, its signatures and what is attached to it."""

from collections.abc import Callable, Sequence
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, one_line
from fleet_fn.firmware.store import Firmware, Signed
from fleet_fn.fleet.rollout.target import ANSWER_SECONDS
from fleet_fn.oci.attached import MAX_ATTACHED
from fleet_fn.oci.manifest import CREATED_ANNOTATION, REVISION_ANNOTATION, SOURCE_ANNOTATION
from fleet_fn.oci.publication import firmware_warnings
from fleet_fn.oci.signature_keys import PublicKey
from fleet_fn.oci.signature_search import Signature
from fleet_fn.oci.signatures import ANOTHER_KEY

Echo = Callable[[str], object]

_ORIGIN: Final = {"source": SOURCE_ANNOTATION, "revision": REVISION_ANNOTATION, "created": CREATED_ANNOTATION}


def print_firmware(firmware: Firmware, echo: Echo, warn: Echo) -> None:
    """Print a firmware whose bytes were verified, a line for each fact."""
    for warning in firmware_warnings(firmware.version, firmware.size):
        warn(one_line(warning))
    facts = {
        "shape": firmware.shape,
        "digest": firmware.manifest or "",
        "manifest": _chosen(firmware),
        "version": firmware.version,
        "size": str(firmware.size),
        "sha256": f"{firmware.checksum.hex()} (verified)",
        "authors": firmware.authors,
        "hardware": ", ".join(firmware.hardware),
        "requires": firmware.requires,
        **{name: firmware.origin.get(annotation, "") for name, annotation in _ORIGIN.items()},
    }
    for name, value in facts.items():
        if value:
            echo(_line(name, value))


def print_fact(name: str, value: str, echo: Echo) -> None:
    """Print a fact, in a line like those of a firmware."""
    echo(_line(name, value))


def print_signatures(signed: Signed, keys: Sequence[PublicKey], echo: Echo, warn: Echo) -> None:
    """Print each signature: form, coverage, and its key or why it does not count."""
    found = False
    try:
        for signature in signed.search(keys, Deadline(ANSWER_SECONDS)):
            found = True
            echo(_line("signature", _describe(signature, signed, has_keys=bool(keys))))
    except TransientError as error:
        warn(f"not all signatures could be looked at: {error.reason}")
        return
    if not found:
        echo(_line("signature", "none"))


def print_attached(signed: Signed, echo: Echo, warn: Echo) -> None:
    """Print each attached document: kind, size and type, and its digest below."""
    try:
        attached = signed.attached(Deadline(ANSWER_SECONDS))
    except (PermanentError, TransientError) as error:
        warn(f"what is attached cannot be listed: {error.reason}")
        return
    for entry in attached:
        echo(_line("attached", f"{entry.kind:<11}  {entry.size:>6}  {entry.media_type[:100]}".rstrip()))
        echo(f"  {entry.digest}")
    if len(attached) >= MAX_ATTACHED:
        echo(f"and more; only the first {MAX_ATTACHED} are listed")


def _chosen(firmware: Firmware) -> str:
    """Return the digest of the manifest chosen in an index; empty without one."""
    digests = firmware.signed.digests if firmware.signed else ()
    return digests[-1] if len(digests) > 1 else ""


def _describe(signature: Signature, signed: Signed, *, has_keys: bool) -> str:
    index, *chosen = signed.digests
    covered = "manifest" if signature.covers in chosen or not chosen else "index"
    if signature.covers not in (index, *chosen):
        covered = signature.covers
    if signature.key:
        verdict = f"good, by {signature.key.name}"
    elif signature.problem == ANOTHER_KEY and not has_keys:
        verdict = "not checked; name its key with --key"
    else:
        verdict = f"does not count: {signature.problem}"
    return f"{signature.form} of the {covered}: {verdict}"


def _line(name: str, value: str) -> str:
    return f"{name:<9}  {one_line(value)}"
