"""Resolve the firmware that an application names, by the function's own code."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.spec_source import File, HawkBit, Image, Source
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.firmware.file_store import FileStore, file_reference
from fleet_fn.firmware.no_images import NO_REGISTRY
from fleet_fn.firmware.store import Firmware, ImageStore, NotReadyError, Store
from fleet_fn.firmware.tag_list import TagList
from fleet_fn.firmware.trust import Trust, as_signed
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.fleet.rollout.actions import Target
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.oci.reference import Reference, fill_in, image_reference
from fleet_fn.oci.signature_search import Signature
from fleet_fn.parts import Stores, make_image_store, make_trust
from fleet_fn.protocol.dialects import MAX_VERSION_BYTES
from fleet_fn.settings import Settings
from fleet_fn.update.choice import check_tag
from fleet_fn.version_range import parse_range

#: The problem of an application whose devices get what a DDI server assigns to each.
ASSIGNED: Final = (
    "hawkBit assigns the application's firmware, to each device its own: roll out there. "
    "rollout start --replace-source names an image in its place"
)
#: How long the registry may take to answer, and how long downloading and hashing may take.
ANSWER_SECONDS: Final = 15.0
_VERIFY_SECONDS: Final = 3600.0
#: Pause between two looks at whether that is done.
_PAUSE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class FirmwareFinder:
    """Finds firmware as the function would, with a cache of its own."""

    settings: Settings
    application: str
    _images: ImageStore
    _files: FileStore | None
    _trust: Trust
    #: Seconds for finding a firmware, the search of an image's layers included.
    patience: float = _VERIFY_SECONDS

    def resolve(self, source: Source | None) -> Firmware:
        """Return the firmware that a source names; None stands for the configured default.

        Raises:
            NotReadyError, PermanentError, TransientError: it cannot be had, and neither could the function have it.

        """
        store, reference = self.place(source)
        wanted = source.version if isinstance(source, Image) else None
        tag = self._highest(reference, wanted) if wanted is not None else None
        firmware = resolve(store, replace(reference, tag=tag) if tag else reference, self.patience)
        signature = self.signature_of(firmware)
        refuse_long_version(firmware)
        firmware = as_signed(firmware, signature) if signature else firmware
        if tag is not None:
            check_tag(firmware, tag, trusts_no_tag=self._trust.wants_signatures)
        return firmware

    def signature_of(self, firmware: Firmware) -> Signature | None:
        """Return the signature for which the function would serve a firmware.

        None if it needs none: FIRMWARE_VERIFY_KEYS is not set.

        Raises:
            PermanentError, TransientError: see `Trust.check`.

        """
        return self._trust.check(firmware, self.application, self._deadline)

    def _highest(self, reference: Reference, wanted: str) -> str:
        """Return the highest tag in a range, which the function leads devices to."""
        tags = TagList.of(self._images.tags(reference, self._deadline, whole=True))
        found = tags.within(parse_range(wanted))
        if not found:
            raise PermanentError(f"no tag is a semantic version in {wanted}")
        return found[0]

    def can_find(self, source: Source | None) -> bool:
        """Return whether the settings say where the firmware of a source is."""
        return self.settings.has_images or isinstance(source, File)

    @property
    def _deadline(self) -> Deadline:
        return Deadline(min(ANSWER_SECONDS, self.patience))

    def target(self, source: Source | None) -> Target:
        """Return the version that a source names; see `resolve`."""
        return self.target_of(source, self.resolve(source))

    def target_of(self, source: Source | None, firmware: Firmware) -> Target:
        """Return the target that a source makes of its firmware."""
        image = self.place(source)[1].name if isinstance(source, Image) and firmware.manifest else None
        pinned = f"{image}@{firmware.manifest}" if image else None
        return Target(firmware.version, pinned, firmware.hardware, firmware.requires)

    def place(self, source: Source | None) -> tuple[Store, Reference]:
        """Return the store and the reference that a source names.

        Raises:
            PermanentError: it names none.

        """
        if source is None and self.settings.firmware_default_image:
            source = self._default()
        if isinstance(source, Image) and not self.settings.has_images:
            raise PermanentError(NO_REGISTRY)
        if isinstance(source, Image):
            prefix = self.settings.firmware_prefix
            return self._images, image_reference(source.reference, prefix, self.application, source.platform)
        if isinstance(source, File) and self._files:
            return self._files, file_reference(source.name)
        if isinstance(source, HawkBit):
            raise PermanentError(ASSIGNED)
        if isinstance(source, File):
            raise PermanentError(f"the application's firmware is the file {source.name}: set FIRMWARE_DIR")
        raise PermanentError("the application names no firmware")

    def _default(self) -> Image:
        template = self.settings.firmware_default_image or ""
        if "{device}" in template:
            raise PermanentError("FIRMWARE_DEFAULT_IMAGE names another firmware for each device")
        return Image(fill_in(template, {"application": self.application}))


class Finders:
    """Finders of the firmware of several applications, with one cache."""

    def __init__(self, settings: Settings, folder: str) -> None:
        """Cache firmware in `folder`."""
        self._settings = settings
        single_flight = SingleFlight()
        files = VerifiedFiles(single_flight)
        #: The parts that resolve sources.
        self.images: Final = make_image_store(replace(settings, firmware_cache_dir=folder), files, single_flight)
        self.files: Final = FileStore(settings.firmware_dir, files) if settings.firmware_dir else None
        self.trust: Final = make_trust(settings)

    def of(self, application: str) -> FirmwareFinder:
        """Return the finder of an application's firmware."""
        return FirmwareFinder(self._settings, application, self.images, self.files, self.trust)

    @property
    def stores(self) -> Stores:
        """The parts, for a handler of previews."""
        return Stores(self.images, self.files, self.trust)

    def close(self) -> None:
        """Close idle connections."""
        self.images.close()


@contextmanager
def open_finders(settings: Settings) -> Iterator[Finders]:
    """Yield finders with a temporary cache."""
    with (
        tempfile.TemporaryDirectory(prefix="fleet-rollout-", ignore_cleanup_errors=True) as folder,
        closing(Finders(settings, folder)) as finders,
    ):
        yield finders


@contextmanager
def open_finder(settings: Settings, application: str) -> Iterator[FirmwareFinder]:
    """Yield the finder of one application's firmware, with a temporary cache."""
    with open_finders(settings) as finders:
        yield finders.of(application)


class FoundTarget(NamedTuple):
    """An application's firmware, as far as is known."""

    target: Target
    #: Why it may be another by now; empty if it is this one.
    problem: str = ""


def find_target(application: Application, finder: FirmwareFinder | None, *, strictly: bool = False) -> FoundTarget:
    """Return the firmware that an application names now, as far as is known.

    Without a finder, it is the one that the application's object names; and also without an answer of the registry,
    unless `strictly` is true.

    Args:
        application: the application.
        finder: finds its firmware; None without FIRMWARE_REGISTRY and FIRMWARE_DIR.
        strictly: do not go by the object.

    Raises:
        RefusedError: the object names none, and there is no FIRMWARE_REGISTRY; or hawkBit assigns it.
        NotReadyError, PermanentError, TransientError: the object names none, and the registry has none.

    """
    if isinstance(application.source, HawkBit):
        raise RefusedError(ASSIGNED)
    known = application.rollout.version
    recorded = Target(known, application.image) if known is not None else None
    if finder is None or not finder.can_find(application.source):
        if recorded is None:
            _ = application.source  # if it is malformed, that is the reason
            raise RefusedError(
                "the application's object does not tell the version of its firmware: set FIRMWARE_REGISTRY as the "
                "function has it, e.g. ghcr.io/acme/"
            )
        return FoundTarget(recorded)
    try:
        return FoundTarget(finder.target(application.source))
    except (UpstreamError, NotReadyError) as error:
        if strictly or recorded is None or isinstance(error, RefusedError):
            raise
        return FoundTarget(recorded, error.reason)


def resolve(store: Store, reference: Reference, patience: float = _VERIFY_SECONDS) -> Firmware:
    """Return the firmware that a reference names.

    An image's layers may have to be searched for it, which takes as long as it takes.

    Args:
        store: finds it.
        reference: names it.
        patience: seconds.

    Raises:
        NotReadyError, PermanentError, TransientError: see `Store.resolve`.

    """
    limit = Deadline(patience)
    while True:
        try:
            return store.resolve(reference, limit.within(ANSWER_SECONDS))
        except NotReadyError:  # the store still searches the image's layers
            if limit.remaining <= _PAUSE_SECONDS:
                raise
        time.sleep(_PAUSE_SECONDS)


def refuse_long_version(firmware: Firmware) -> None:
    """Refuse a firmware whose version fits no command.

    Raises:
        PermanentError: it does not.

    """
    if len(firmware.version.encode(errors="replace")) > MAX_VERSION_BYTES:
        raise PermanentError(f"the version has more than {MAX_VERSION_BYTES} bytes, so no device can be sent it")


def verify(firmware: Firmware) -> None:
    """Verify the bytes of a firmware.

    Raises:
        NotReadyError, PermanentError, TransientError: see `Firmware.open`.

    """
    with firmware.open(Deadline(_VERIFY_SECONDS)) as reader:
        reader.read(0, 1)
