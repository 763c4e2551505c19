"""Firmware that the real cosign signed; see `signed/README.md`."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("signed")
KEYS: Final = FOLDER / "keys"
P256: Final = KEYS / "p256.pub"


def reference(name: str, tag: str = "1.2.3") -> str:
    """The reference of a captured layout's firmware."""
    return f"oci-layout:{FOLDER / name}:{tag}"
