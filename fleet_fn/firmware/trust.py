"""Decide whether a firmware may be served: it is signed, and it is not denied.

Without keys, each token that can push to the repository decides what devices boot. With keys, the holders of the
private keys do. Everything here fails closed: unreadable keys, a malformed list and a registry without an answer stop
an update.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from fleet_fn.concurrency.ttl_cache import Bounded, Count, TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, negative_ttl
from fleet_fn.firmware.deny_list import load_deny_list
from fleet_fn.firmware.store import Firmware
from fleet_fn.oci.reference import fill_in
from fleet_fn.oci.signature_keys import PublicKey, load_keys
from fleet_fn.oci.signature_search import Signature

#: Begins the reason of a firmware without a good signature.
NOT_SIGNED: Final = "not signed by a trusted key"
#: Keys and the deny list are read again after this time, so a removed key counts no longer.
REREAD_SECONDS: Final = 10.0
#: Bounds of what is remembered: signatures, and folders of keys, which are the applications'.
_MAX_SIGNATURES: Final = 4096
_MAX_FOLDERS: Final = 1024
#: Different problems of signatures that a reason names.
_MAX_PROBLEMS: Final = 3


class UntrustedFirmwareError(PermanentError):
    """A firmware is denied, or no trusted key has signed it."""

    def __init__(self, reason: str, checksum: bytes = b"") -> None:
        super().__init__(reason)
        #: SHA-256 of the firmware's bytes.
        self.checksum = checksum


class Trust:
    """Trusted keys, denied digests, and the signatures that were verified so far.

    Safe to use from several threads.
    """

    def __init__(
        self,
        keys: str | None,
        deny: str | None,
        *,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create it; nothing is read yet.

        Args:
            keys: PEM file of public keys, or a folder of such; `{application}` is replaced. None: no signature is
                needed.
            deny: the deny list; None: nothing is denied.
            count: is called for each firmware that needs a signature with whether one was known already.
            clock: monotonic seconds.

        """
        self._keys_path, self._deny_path = keys, deny
        self._keys: TTLCache[str, tuple[PublicKey, ...]] = TTLCache(_MAX_FOLDERS, clock=clock)
        self._denied: TTLCache[str, frozenset[str]] = TTLCache(1, clock=clock)
        self._searches: TTLCache[tuple[object, ...], Signature] = TTLCache(
            _MAX_SIGNATURES, negative_ttl=negative_ttl, count=count, clock=clock
        )
        #: Good signatures by what they cover and by their keys. That a key signed a digest stays true for ever.
        self._proven: Bounded[tuple[str, str], Signature] = Bounded(_MAX_SIGNATURES)
        self._lock = threading.Lock()

    @property
    def wants_signatures(self) -> bool:
        """Only signed firmware is served."""
        return self._keys_path is not None

    def check(self, firmware: Firmware, application: str, deadline: Deadline) -> Signature | None:
        """Return the signature of a firmware; None if none is needed.

        Args:
            firmware: the firmware.
            application: the application of the device that it is for.
            deadline: bounds the search for a signature.

        Raises:
            UntrustedFirmwareError: no trusted key has signed it, or it is denied.
            PermanentError: keys or list cannot be used.
            TransientError: where the signatures are is unavailable.

        """
        self._refuse_denied(firmware, deadline)
        if self._keys_path is None:
            return None
        keys = self.keys(application, deadline)
        if firmware.signed is None:
            raise UntrustedFirmwareError(f"{NOT_SIGNED}: its source has no signatures", firmware.checksum)
        signed, fingerprints = firmware.signed, tuple(key.fingerprint for key in keys)

        def search() -> Signature:
            return self._find_proven(signed.digests, fingerprints) or self._search(firmware, keys, deadline)

        key = (signed.place, firmware.checksum, signed.digests, fingerprints)
        return self._searches.get(key, math.inf, search, deadline)

    def keys(self, application: str, deadline: Deadline) -> tuple[PublicKey, ...]:
        """Return the keys that are trusted for an application's devices.

        Raises:
            PermanentError: they cannot be read, or there are none.

        """
        try:
            path = fill_in(self._keys_path or "", {"application": application})
            return self._keys.get(path, REREAD_SECONDS, lambda: load_keys(Path(path)), deadline)
        except PermanentError as error:
            raise PermanentError(f"FIRMWARE_VERIFY_KEYS: {error.reason}") from error

    def _refuse_denied(self, firmware: Firmware, deadline: Deadline) -> None:
        if self._deny_path is None:
            return
        path = self._deny_path
        try:
            denied = self._denied.get(path, REREAD_SECONDS, lambda: load_deny_list(Path(path)), deadline)
        except PermanentError as error:
            raise PermanentError(f"FIRMWARE_DENY: {error.reason}") from error
        own = (*(firmware.signed.digests if firmware.signed else ()), f"sha256:{firmware.checksum.hex()}")
        if digest := next((digest for digest in own if digest in denied), None):
            raise UntrustedFirmwareError(f"denied: {digest} is in FIRMWARE_DENY", firmware.checksum)

    def _find_proven(self, digests: tuple[str, ...], fingerprints: tuple[str, ...]) -> Signature | None:
        with self._lock:
            for digest in digests:
                for fingerprint in fingerprints:
                    if known := self._proven.get((digest, fingerprint)):
                        return known[1]
        return None

    def _search(self, firmware: Firmware, keys: tuple[PublicKey, ...], deadline: Deadline) -> Signature:
        assert firmware.signed is not None  # noqa: S101 - see `check`
        problems: dict[str, None] = {}
        for signature in firmware.signed.search(keys, deadline):
            if signature.key is not None:
                with self._lock:
                    self._proven.put((signature.covers, signature.key.fingerprint), 0.0, signature)
                return signature
            problems[signature.problem] = None
        told = list(problems)[:_MAX_PROBLEMS] or ["no signature"]
        raise UntrustedFirmwareError(f"{NOT_SIGNED}: {'; '.join(told)}", firmware.checksum)


def as_signed(firmware: Firmware, signature: Signature) -> Firmware:
    """Return a firmware whose version counts as its own only if it is signed.

    A signature of a file's bytes covers no version.
    """
    if firmware.signed and signature.covers in firmware.signed.digests:
        return firmware
    return replace(firmware, has_own_version=False)
