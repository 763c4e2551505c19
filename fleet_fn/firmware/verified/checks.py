"""Checks of sizes and digests, and the errors that they raise."""

from fleet_fn.errors import PermanentError


class MismatchError(PermanentError):
    """A file has another size or other bytes than it should."""


class UnreadableError(MismatchError):
    """The disk fails to read a file's bytes."""


def check_size(actual: int, size: int) -> None:
    """Raise `MismatchError` if the actual size differs from the expected `size`."""
    if actual != size:
        raise MismatchError(f"size mismatch: {actual} bytes, expected {size}")


def check_digest(digest: bytes, checksum: bytes) -> None:
    """Raise `MismatchError` if a SHA-256 differs from the expected `checksum`."""
    if digest != checksum:
        raise MismatchError("digest mismatch: the bytes have another SHA-256 than they should")


def check_block(block: bytes, offset: int, size: int) -> bytes:
    """Return `block`; raise `PermanentError` if the file ends before `size` bytes."""
    if len(block) != size:
        raise PermanentError(f"firmware: {size} bytes from {offset} on are not all there")
    return block
