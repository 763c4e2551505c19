"""Repositories of firmware, read in the background while users look at them."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.spec_source import Source
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.firmware.store import Firmware
from fleet_fn.firmware.trust import NOT_SIGNED, Trust, UntrustedFirmwareError
from fleet_fn.fleet.repository import MAX_TAGS, Tagged, order_tags, read_tag
from fleet_fn.fleet.rollout.target import Finders
from fleet_fn.observability.log import logger
from fleet_fn.oci.reference import Reference

#: Repositories, and tags of all of them, that are read at the same time.
_READERS: Final = 4
_TAG_READERS: Final = 8
#: Time for a list of tags, for a tag, and for its signature.
_LIST_SECONDS: Final = 10.0
_TAG_SECONDS: Final = 5.0
#: How long a page waits for a repository that was never read.
_WAIT_SECONDS: Final = 0.7
#: Pause between two readings: so long at least, and so many times as long as the last one took.
_PAUSE_SECONDS: Final = 15.0
_PAUSE_SHARE: Final = 4.0
_MAX_REPOSITORIES: Final = 200


class Trusted(StrEnum):
    """Whether a firmware's signature counts."""

    GOOD = "good"
    #: No keys are configured.
    UNCHECKED = "unchecked"
    #: By no trusted key.
    UNSIGNED = "unsigned"
    DENIED = "denied"
    #: It cannot be told now.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the function would make of a firmware's signature."""

    trusted: Trusted
    #: The name of the key, or the reason.
    words: str = ""

    @property
    def is_served(self) -> bool:
        """The function would serve the firmware, as far as is known."""
        return self.trusted not in (Trusted.UNSIGNED, Trusted.DENIED)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tag with its firmware, and the verdict on that; None if there is no firmware."""

    tagged: Tagged
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository, as far as it was read."""

    reference: Reference
    #: In the order of `order_tags`.
    entries: tuple[Entry, ...] = ()
    #: All tags that may name firmware; None before their list was read.
    tags: tuple[str, ...] | None = None
    #: When the last complete reading began.
    at: datetime | None = None
    is_reading: bool = False
    #: Why the last reading failed; empty if it did not.
    problem: str = ""


@dataclass(slots=True)
class _Kept:
    listing: Listing
    due: float = 0.0
    #: Is set whenever no reading goes on.
    idle: threading.Event = field(default_factory=threading.Event)


class Repositories:
    """Keeps a listing of each repository that users look at.

    A look waits a moment for a repository that was never read, and not for any other. It is safe to use from several
    threads. The caller checks that the user may see the application.
    """

    def __init__(
        self,
        finders: Finders,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._finders = finders
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Reference], _Kept] = OrderedDict()
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="repository")
        self._tag_pool = ThreadPoolExecutor(_TAG_READERS, thread_name_prefix="tag")
        self._is_closed = False

    def look(self, application: str, source: Source | None, *, waits: bool = True) -> Listing:
        """Return the repository that an application's source names.

        Args:
            application: the application's name.
            source: its source.
            waits: wait a moment if the repository was never read.

        Raises:
            PermanentError: it names none.

        """
        _, reference = self._finders.of(application).place(source)
        repository = replace(reference, tag=None, digest=None)
        named = (reference.tag,) if reference.tag else ()
        with self._lock:
            kept = self._kept.setdefault((application, repository), _Kept(Listing(repository)))
            self._kept.move_to_end((application, repository))
            while len(self._kept) > _MAX_REPOSITORIES:
                self._kept.popitem(last=False)
            if not kept.listing.is_reading and self._clock() >= kept.due and not self._is_closed:
                kept.listing = replace(kept.listing, is_reading=True)
                kept.idle.clear()
                self._pool.submit(self._refresh, application, kept, named)
            is_new = kept.listing.at is None and not kept.listing.problem
        if is_new and waits:
            kept.idle.wait(_WAIT_SECONDS)
        return kept.listing

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._tag_pool.shutdown(wait=False, cancel_futures=True)

    # In the background.

    def _refresh(self, application: str, kept: _Kept, named: tuple[str, ...]) -> None:
        began, at, problem = self._clock(), self._now(), ""
        try:
            problem = self._read(application, kept, named)
        except UpstreamError as error:
            problem = error.reason
        except Exception:  # noqa: BLE001 - the one boundary of this thread
            logger.exception("unexpected error")
            problem = "internal error; the console's log has it"
        seconds = self._clock() - began
        with self._lock:
            kept.due = self._clock() + max(_PAUSE_SECONDS, _PAUSE_SHARE * seconds)
            kept.listing = replace(
                kept.listing, is_reading=False, problem=problem, at=kept.listing.at if problem else at
            )
            kept.idle.set()

    def _read(self, application: str, kept: _Kept, named: tuple[str, ...]) -> str:
        """Read a repository, or only the tags `named` if the registry lists none.

        Returns:
            Why the tags could not be listed; empty if they could.

        Raises:
            PermanentError: the repository cannot be read.
            TransientError: the registry is unavailable.

        """
        repository = kept.listing.reference
        try:
            tags = tuple(order_tags(self._finders.images.tags(repository, Deadline(_LIST_SECONDS))))
        except PermanentError as error:
            if kept.listing.entries:
                raise  # what was read before says more
            found = [_read_entry(self._finders, application, repository, tag) for tag in named]
            if not any(entry.verdict for entry in found):
                raise
            self._show(kept, named, {entry.tagged.tag: entry for entry in found})
            return f"the tags cannot be listed: {error.reason}"
        self._read_tags(application, kept, tags)
        return ""

    def _read_tags(self, application: str, kept: _Kept, tags: tuple[str, ...]) -> None:
        """Read a repository tag by tag, and show each as soon as it is there.

        Raises:
            TransientError: the registry is unavailable.

        """
        known = {entry.tagged.tag: entry for entry in kept.listing.entries}
        self._show(kept, tags, known)
        read_entry = partial(_read_entry, self._finders, application, kept.listing.reference)
        read: list[Future[Entry]] = []
        try:
            for tag in tags[:MAX_TAGS]:
                before = known[tag].tagged.firmware if tag in known else None
                read.append(self._tag_pool.submit(read_entry, tag, before))
            for each in as_completed(read):
                entry = each.result()
                known[entry.tagged.tag] = entry
                self._show(kept, tags, known)
        finally:
            for each in read:
                each.cancel()

    def _show(self, kept: _Kept, tags: tuple[str, ...], known: dict[str, Entry]) -> None:
        entries = tuple(known[tag] for tag in tags[:MAX_TAGS] if tag in known)
        with self._lock:
            kept.listing = replace(kept.listing, tags=tags, entries=entries)


def _read_entry(
    finders: Finders, application: str, repository: Reference, tag: str, known: Firmware | None = None
) -> Entry:
    """Return a tag with the verdict on its firmware.

    Raises:
        TransientError: the registry is unavailable.

    """
    tagged = read_tag(finders.images, repository, tag, Deadline(_TAG_SECONDS), known)
    return Entry(tagged, judge(finders.trust, tagged.firmware, application) if tagged.firmware else None)


def judge(trust: Trust, firmware: Firmware, application: str) -> Verdict:
    """Return what the function would make of a firmware's signature."""
    try:
        signature = trust.check(firmware, application, Deadline(_TAG_SECONDS))
    except UntrustedFirmwareError as error:
        if error.reason.startswith(NOT_SIGNED):
            return Verdict(Trusted.UNSIGNED, error.reason.removeprefix(f"{NOT_SIGNED}: "))
        return Verdict(Trusted.DENIED, "FIRMWARE_DENY lists it")
    except (PermanentError, TransientError) as error:
        return Verdict(Trusted.UNKNOWN, error.reason)
    if signature is None or signature.key is None:
        return Verdict(Trusted.UNCHECKED)
    return Verdict(Trusted.GOOD, signature.key.name)
