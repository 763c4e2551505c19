"""Files whose bytes are served only after their size and SHA-256 were verified."""

from fleet_fn.firmware.verified.checks import MismatchError, UnreadableError, check_digest, check_size
from fleet_fn.firmware.verified.files import VerifiedFiles
from fleet_fn.firmware.verified.hashing import hash_file

__all__ = ["MismatchError", "UnreadableError", "VerifiedFiles", "check_digest", "check_size", "hash_file"]
