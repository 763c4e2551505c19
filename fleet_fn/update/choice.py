"""Choose the version in a range that a device gets."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.store import Firmware
from fleet_fn.firmware.tag_list import TagList
from fleet_fn.update.fitness import Fitting, UnfitError, choose

if TYPE_CHECKING:
    from fleet_fn.version_range import Range

#: A list of tags that led to a failure is read again after this time: one of the tags may be gone.
_RELIST_SECONDS: Final = 10.0
#: How often a choice is made anew because a tag has moved meanwhile.
_MAX_ROUNDS: Final = 3


class Repository(NamedTuple):
    """The versions of a repository, each as old as a caller lets it be, in seconds."""

    versions: Callable[[float], TagList]
    #: Takes a tag. Raises an error for a firmware that must not be served.
    firmware: Callable[[str, float], Firmware]


class Choice(NamedTuple):
    """The firmware for a device, and the version that it leads to."""

    firmware: Firmware
    #: The highest version in the range, which the rollout is of.
    highest: str


def choose_in_range(
    repository: Repository, wanted: "Range", device: Fitting, max_age: Callable[[], float], glance_seconds: float
) -> Choice:
    """Return the highest firmware in a range that a device may take.

    Args:
        repository: where it is.
        wanted: the range.
        device: what it has to fit.
        max_age: age up to which facts about the firmware that is taken, and the list, count.
        glance_seconds: the same of the firmwares above it, which the device may not take.

    Raises:
        UnfitError: none fits.
        NotReadyError, PermanentError, TransientError: it cannot be had.

    """
    for _ in range(_MAX_ROUNDS):
        tags = repository.versions(max_age()).within(wanted)
        candidates = _candidates(repository, tags, device, lambda: max(max_age(), glance_seconds))
        try:
            firmware = choose(candidates, device, wanted.text)
            # Nothing is asked again if what was glanced at is young enough.
            if max_age() >= glance_seconds or repository.firmware(firmware.version, max_age()) == firmware:
                return Choice(firmware, tags[0])
        except UnfitError:
            raise
        except PermanentError:
            if repository.versions(min(max_age(), _RELIST_SECONDS)).within(wanted) == tags:
                raise
    raise TransientError(f"the tags in {wanted} keep moving")


def _candidates(
    repository: Repository, tags: Iterable[str], device: Fitting, age: Callable[[], float]
) -> Iterator[Firmware]:
    """Yield the firmware of each tag.

    Raises:
        PermanentError: one has another version than its tag. The range chooses tags, which no signature covers.

    """
    for tag in tags:
        firmware = repository.firmware(tag, age())
        check_tag(firmware, tag, trusts_no_tag=device.trusts_no_tag)
        yield firmware


def check_tag(firmware: Firmware, tag: str, *, trusts_no_tag: bool) -> None:
    """Refuse a firmware in a range whose version is not that of its tag.

    Raises:
        PermanentError: it is another; or nothing but the tag tells it, and `trusts_no_tag`.

    """
    if firmware.version != tag:
        raise PermanentError(
            f"tag {tag} names a firmware of version {firmware.version}: to choose in a range, both have to be equal"
        )
    if trusts_no_tag and not firmware.has_own_version:
        raise PermanentError(f"only its tag gives {tag} a version, and no signature covers a tag")
