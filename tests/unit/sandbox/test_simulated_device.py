"""The characters of simulated devices: the careful one's guarantees, and the faults of the others."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.protocol.messages import Command, Progress, Status, Swap, Sync, Wait, Write
from fleet_fn.sandbox.simulated_device import (
    PAGE_BYTES,
    BrickedError,
    CarefulDevice,
    CrateDevice,
    FirmwareManagerDevice,
    Outcome,
    SimulatedDevice,
    Step,
)


@dataclass(frozen=True)
class Firmware:
    version: bytes
    content: bytes

    @property
    def checksum(self) -> bytes:
        return hashlib.sha256(self.content).digest()


OLD = Firmware(b"0.1.0", bytes(range(40)))
NEW = Firmware(b"0.1.1", bytes(range(100, 164)))
NEWER = Firmware(b"0.1.2", bytes(range(200, 232)))


def answer(status: Status, target: Firmware) -> Command:
    """The server's decision table."""
    size, mtu, progress = len(target.content), status.mtu or 512, status.progress
    if status.version == target.version:
        return Sync(target.version, 300)
    offset = progress.offset if progress is not None and progress.version == target.version else 0
    if offset and offset in {size} | {size + -size % word for word in (4, 8, 16, 32)}:
        return Swap(target.version, target.checksum)
    if offset > size:
        offset = 0
    return Write(target.version, offset, target.content[offset : offset + mtu])


def ask(device: SimulatedDevice, target: Firmware) -> Step:
    """One status, answered at once."""
    status = device.status()
    return device.handle(answer(status, target), status.correlation_id)


def update(device: SimulatedDevice, target: Firmware, statuses: int = 100) -> list[Step]:
    """Statuses on a clean line until the device is in sync."""
    steps = []
    for _ in range(statuses):
        steps.append(ask(device, target))
        if steps[-1].outcome is Outcome.IN_SYNC:
            return steps
    raise AssertionError(f"not in sync after {statuses} statuses: {steps[-1]}")


def write(device: SimulatedDevice, firmware: Firmware, until: int | None = None) -> None:
    """Statuses on a clean line until so much is written."""
    while device.progress is None or device.progress.offset < (until or len(firmware.content)):
        ask(device, firmware)


CHARACTERS: list[Callable[..., SimulatedDevice]] = [CarefulDevice, FirmwareManagerDevice, CrateDevice]
#: Characters that do as they are told.
UPDATERS = CHARACTERS[1:]


def build(character: Callable[..., SimulatedDevice], **options: object) -> SimulatedDevice:
    return character(OLD.version, mtu=16, **options)


@pytest.fixture(params=CHARACTERS)
def device(request: pytest.FixtureRequest) -> SimulatedDevice:
    return build(request.param)


# All characters


def test_a_device_goes_from_its_version_to_the_target_and_marks_it_good(device: SimulatedDevice) -> None:
    steps = update(device, NEW)
    assert [step.outcome for step in steps] == [Outcome.WROTE] * 4 + [Outcome.BOOTED, Outcome.IN_SYNC]
    assert (device.version, device.image, device.marked_good) == (NEW.version, NEW.content, True)
    [boot] = device.boots
    assert (boot.version, boot.size) == (NEW.version, 64)
    assert boot.sha256 == boot.announced == NEW.checksum.hex()
    assert device.progress is None
    assert device.violations == []


def test_a_device_in_sync_asks_again_when_it_is_told_to(device: SimulatedDevice) -> None:
    assert ask(device, OLD) == Step(Outcome.IN_SYNC, 300)


def test_a_device_that_waits_asks_again_when_it_is_told_to(device: SimulatedDevice) -> None:
    status = device.status()
    assert device.handle(Wait(20), status.correlation_id) == Step(Outcome.WAITING, 20)


def test_a_wait_without_a_time_is_a_short_one(device: SimulatedDevice) -> None:
    status = device.status()
    assert 0 < device.handle(Wait(), status.correlation_id).pause <= 10


@pytest.mark.parametrize("character", CHARACTERS)
def test_an_image_that_does_not_come_up_is_rolled_back(character: Callable[..., SimulatedDevice]) -> None:
    device = build(character, bootable=lambda image, version: (image, version) != (NEW.content, NEW.version))
    write(device, NEW)
    assert ask(device, NEW).outcome is Outcome.ROLLED_BACK
    assert (device.version, device.progress, device.rollbacks) == (OLD.version, None, 1)
    assert device.boots[0].version == NEW.version
    update(device, NEWER)
    assert device.image == NEWER.content


def test_power_lost_before_the_new_image_is_marked_good_brings_the_old_one_back(device: SimulatedDevice) -> None:
    write(device, NEW)
    assert ask(device, NEW).outcome is Outcome.BOOTED
    assert (device.version, device.marked_good) == (NEW.version, False)
    device.power_cycle()
    assert (device.version, device.progress, device.rollbacks) == (OLD.version, None, 1)


def test_power_lost_after_the_new_image_is_marked_good_changes_nothing(device: SimulatedDevice) -> None:
    update(device, NEW)
    device.power_cycle()
    assert (device.version, device.image, device.rollbacks) == (NEW.version, NEW.content, 0)


def test_a_careful_device_keeps_its_image_once_the_next_update_has_begun() -> None:
    device = build(CarefulDevice)
    write(device, NEW)
    assert ask(device, NEW).outcome is Outcome.BOOTED
    write(device, NEWER, until=16)
    device.power_cycle()
    assert (device.version, device.image, device.rollbacks) == (NEW.version, NEW.content, 0)
    update(device, NEWER)
    assert device.image == NEWER.content


def test_a_sync_for_what_the_device_does_not_run_is_noted(device: SimulatedDevice) -> None:
    status = device.status()
    assert device.handle(Sync(NEW.version), status.correlation_id).outcome is not Outcome.IN_SYNC
    assert device.violations == ["SYNC for b'0.1.1' to a device that runs b'0.1.0'"]


# The careful device


def test_a_careful_device_goes_on_where_it_was_after_a_loss_of_power() -> None:
    device = build(CarefulDevice)
    write(device, NEW, until=32)
    device.power_cycle()
    assert device.status().progress == Progress(NEW.version, 32)
    assert [step.outcome for step in update(device, NEW)].count(Outcome.WROTE) == 2


def test_a_careful_device_counts_its_statuses_and_takes_only_the_answer_to_the_last() -> None:
    device = build(CarefulDevice)
    first, second = device.status(), device.status()
    assert (first.correlation_id, second.correlation_id) == (0, 1)
    for stale in (first.correlation_id, None):
        step = device.handle(answer(first, NEW), stale)
        assert (step.outcome, device.progress) == (Outcome.IGNORED, None)
        assert "correlation id" in step.reason
    assert device.handle(answer(second, NEW), 1).outcome is Outcome.WROTE


def test_the_count_of_statuses_survives_a_loss_of_power() -> None:
    device = build(CarefulDevice)
    device.status()
    device.power_cycle()
    assert device.status().correlation_id == 1


def test_a_careful_device_of_the_documented_dialect_has_no_correlation_id() -> None:
    device = build(CarefulDevice, correlate=False)
    assert device.status().correlation_id is None
    assert device.handle(Write(NEW.version, 0, b"abcd")).outcome is Outcome.WROTE


def test_a_careful_device_ignores_a_block_that_is_not_the_next() -> None:
    device = build(CarefulDevice, correlate=False)
    write(device, NEW, until=32)
    for block in (
        Write(NEW.version, 16, b"again"),
        Write(NEW.version, 48, b"ahead"),
        Write(NEWER.version, 32, b"other"),
    ):
        assert device.handle(block).outcome is Outcome.IGNORED
    assert device.flash == NEW.content[:32]


def test_a_careful_device_starts_again_when_a_block_at_zero_says_so() -> None:
    device = build(CarefulDevice, correlate=False)
    write(device, NEW, until=32)
    assert device.handle(Write(NEWER.version, 0, b"abcd")).outcome is Outcome.WROTE
    assert (device.progress, device.flash) == (Progress(NEWER.version, 4), b"abcd")


def test_a_careful_device_does_not_overwrite_its_other_image_with_the_version_that_it_runs() -> None:
    device = build(CarefulDevice, correlate=False)
    assert device.handle(Write(OLD.version, 0, b"abcd")).outcome is Outcome.IGNORED
    assert device.progress is None


def test_a_careful_device_does_not_swap_to_a_version_that_it_has_not_written() -> None:
    device = build(CarefulDevice, correlate=False)
    assert device.handle(Swap(NEW.version, NEW.checksum)).outcome is Outcome.IGNORED
    write(device, NEW)
    assert device.handle(Swap(NEWER.version, NEW.checksum)).outcome is Outcome.IGNORED
    assert (device.boots, device.progress) == ([], Progress(NEW.version, 64))


def test_a_careful_device_drops_what_does_not_have_the_checksum_and_starts_again() -> None:
    device = build(CarefulDevice, correlate=False)
    write(device, NEW)
    step = device.handle(Swap(NEW.version, NEWER.checksum))
    assert (step.outcome, step.reason) == (Outcome.FAILED, "the written bytes have another checksum")
    assert (device.boots, device.progress) == ([], None)
    update(device, NEW)
    assert device.image == NEW.content


events = st.one_of(
    st.just("answered"),
    st.just("lost"),
    st.just("power"),
    st.integers(0, 30),  # an old answer comes, or comes again
    st.sampled_from([OLD, NEW, NEWER]),  # another firmware is desired
)


@given(st.lists(events, max_size=60), st.booleans())
def test_whatever_the_line_does_a_careful_device_boots_only_genuine_firmware_and_ends_on_the_target(
    story: list[str | int | Firmware], correlate: bool
) -> None:
    device = build(CarefulDevice, correlate=correlate)
    target, answers = NEW, list[tuple[Command, int | None]]()
    for event in story:
        if isinstance(event, Firmware):
            target = event
        elif event == "power":
            device.power_cycle()
        elif isinstance(event, int):
            device.status()
            if event < len(answers):
                device.handle(*answers[event])
        else:
            status = device.status()
            answers.append((answer(status, target), status.correlation_id))
            if event == "answered":
                device.handle(*answers[-1])
    update(device, target)

    assert device.version == target.version
    assert device.marked_good
    genuine = {firmware.version: firmware.checksum.hex() for firmware in (OLD, NEW, NEWER)}
    for boot in device.boots:
        assert boot.sha256 == boot.announced == genuine[boot.version]
    if correlate:
        assert device.violations == []


# The firmware manager


def test_a_firmware_manager_has_no_progress_after_a_loss_of_power() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW, until=32)
    device.power_cycle()
    assert device.status() == Status(OLD.version, 16)
    update(device, NEW)
    assert device.image == NEW.content


def test_a_firmware_manager_takes_a_block_only_at_its_offset_and_is_silent_for_ten_seconds_otherwise() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW, until=16)
    step = device.handle(Write(NEW.version, 32, bytes(16)))
    assert (step.outcome, step.pause) == (Outcome.FAILED, 10)
    assert device.progress == Progress(NEW.version, 16)


def test_a_firmware_manager_that_is_restarted_midway_erases_but_keeps_its_offset() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW, until=16)
    step = ask(device, NEWER)
    assert step == Step(Outcome.FAILED, 10, "WRITE at 0, expected 16")
    assert device.status().progress == Progress(NEWER.version, 16)
    assert device.flash == b""


def test_a_firmware_manager_that_was_restarted_midway_boots_an_image_without_a_beginning_and_rolls_back() -> None:
    device = build(FirmwareManagerDevice, bootable=lambda image, _: image in (NEW.content, NEWER.content))
    write(device, NEW, until=16)
    for _ in range(3):  # restarted, the second block, and the swap
        step = ask(device, NEWER)
    assert step.outcome is Outcome.ROLLED_BACK
    [boot] = device.boots
    assert boot.sha256 == hashlib.sha256(b"\xff" * 16 + NEWER.content[16:]).hexdigest()
    assert boot.announced == NEWER.checksum.hex()
    assert (device.version, device.progress) == (OLD.version, None)


def test_a_firmware_manager_boots_wrong_bytes_whatever_the_checksum() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW)
    assert device.handle(Swap(NEW.version, NEWER.checksum)).outcome is Outcome.BOOTED
    assert device.boots[0].announced == NEWER.checksum.hex()
    assert device.image == NEW.content


def test_a_firmware_manager_swaps_to_an_erased_partition_and_comes_back() -> None:
    device = build(FirmwareManagerDevice)
    assert device.handle(Swap(NEW.version, NEW.checksum)).outcome is Outcome.ROLLED_BACK
    assert device.version == OLD.version


def test_a_second_swap_boots_a_mixture_of_two_images() -> None:
    device = build(FirmwareManagerDevice)
    update(device, NEW)
    update(device, NEWER)
    assert device.handle(Swap(NEWER.version, NEWER.checksum)).outcome is Outcome.BOOTED
    assert device.image == NEWER.content.ljust(PAGE_BYTES, b"\xff") + NEW.content
    assert device.boots[-1].sha256 not in {firmware.checksum.hex() for firmware in (NEW, NEWER)}


@pytest.mark.parametrize(("length", "outcome"), [(15, Outcome.FAILED), (16, Outcome.WROTE), (3, Outcome.WROTE)])
def test_a_firmware_manager_takes_blocks_in_flash_words(length: int, outcome: Outcome) -> None:
    device = build(FirmwareManagerDevice)
    for _ in range(3):
        device.power_cycle()
        assert device.handle(Write(NEW.version, 0, bytes(length))).outcome is outcome


def test_a_firmware_manager_pads_a_short_last_block_and_counts_the_padding_outside_the_loop() -> None:
    odd = Firmware(b"0.1.1", bytes(range(1, 19)))
    device = build(FirmwareManagerDevice, flash_word=8)
    write(device, odd)
    assert device.status().progress == Progress(odd.version, 18)
    device.handle(Sync(OLD.version))  # ends the loop
    assert device.status().progress == Progress(odd.version, 24)
    update(device, odd)
    assert device.image == odd.content


def test_the_padding_of_a_short_block_in_the_middle_is_zeros() -> None:
    device = build(FirmwareManagerDevice)
    device.handle(Write(NEW.version, 0, b"abc"))
    device.handle(Write(NEW.version, 4, b"efgh"))
    assert device.flash == b"abc\x00efgh"


def test_a_version_of_more_than_sixteen_bytes_panics_a_firmware_manager() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW, until=16)
    step = device.handle(Write(b"0.1.1-much-too-long", 0, bytes(16)))
    assert step.outcome is Outcome.RESET
    assert device.status() == Status(OLD.version, 16)


def test_a_sync_for_another_version_marks_a_firmware_managers_new_image_good() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW)
    ask(device, NEW)
    device.handle(Sync(OLD.version))
    assert device.marked_good
    assert len(device.violations) == 1


# The updater, over a firmware manager or a device that writes wherever it is told


@pytest.mark.parametrize("character", UPDATERS)
@given(story=st.lists(st.sampled_from(["answered", "lost", "power", "wait", "sync"]), max_size=40))
def test_on_one_target_an_updater_takes_no_harm(character: Callable[..., SimulatedDevice], story: list[str]) -> None:
    """Lost answers, power, a WAIT and a SYNC with the device's own version, at any moment."""
    device = build(character)
    for event in story:
        match event:
            case "power":
                device.power_cycle()
            case "lost":
                device.status()
            case "answered":
                ask(device, NEW)
            case "wait":
                device.status()
                device.handle(Wait())
            case _:
                device.handle(Sync(device.status().version))
    update(device, NEW)
    assert device.image == NEW.content
    assert all(boot.sha256 == NEW.checksum.hex() for boot in device.boots)
    assert not device.violations


@pytest.mark.parametrize("character", UPDATERS)
@given(early=st.integers(0, 5), late=st.sampled_from(["power", "swap"]))
def test_an_updater_is_bricked_by_an_update_that_begins_before_its_firmware_was_marked_good(
    character: Callable[..., SimulatedDevice], early: int, late: str
) -> None:
    device = build(character, bootable=lambda image, _: image in (NEW.content, NEWER.content))
    write(device, NEW)
    assert ask(device, NEW).outcome is Outcome.BOOTED
    ask(device, NEWER)  # not even a SYNC
    assert (device.fallback_erased, device.marked_good, device.is_bricked) == (True, False, False)
    for _ in range(early):
        if device.progress != Progress(NEWER.version, 32):
            ask(device, NEWER)
    if late == "power":
        device.power_cycle()
    else:
        write(device, NEWER)
        assert ask(device, NEWER).outcome is Outcome.BRICKED
    assert device.is_bricked
    assert [boot.version for boot in device.boots] == [NEW.version]
    device.power_cycle()
    assert device.handle(Sync(NEW.version)).outcome is Outcome.BRICKED
    with pytest.raises(BrickedError, match="no old image"):
        device.status()


@pytest.mark.parametrize("character", UPDATERS)
def test_a_version_too_long_bricks_an_updater_whose_fallback_was_erased(
    character: Callable[..., SimulatedDevice],
) -> None:
    device = build(character)
    write(device, NEW)
    ask(device, NEW)
    ask(device, NEWER)
    device.handle(Write(b"0.1.1-much-too-long", 0, bytes(16)))
    device.power_cycle()
    assert device.is_bricked


@pytest.mark.parametrize("character", UPDATERS)
def test_a_sync_in_time_saves_an_updater(character: Callable[..., SimulatedDevice]) -> None:
    device = build(character)
    write(device, NEW)
    ask(device, NEW)
    device.handle(Sync(NEW.version))
    write(device, NEWER, until=16)
    assert not device.fallback_erased
    device.power_cycle()
    assert (device.version, device.is_bricked, device.rollbacks) == (NEW.version, False, 0)
    update(device, NEWER)
    assert device.image == NEWER.content


@pytest.mark.parametrize("character", UPDATERS)
def test_a_sync_that_comes_late_saves_an_updater_still(character: Callable[..., SimulatedDevice]) -> None:
    device = build(character)
    write(device, NEW)
    ask(device, NEW)
    ask(device, NEWER)
    device.handle(Sync(NEW.version))
    assert (device.marked_good, device.fallback_erased) == (True, False)
    update(device, NEWER)
    assert device.image == NEWER.content


@pytest.mark.parametrize("character", UPDATERS)
def test_a_newer_bootloader_refuses_an_update_before_the_firmware_was_marked_good(
    character: Callable[..., SimulatedDevice],
) -> None:
    device = build(character, refuses_early_writes=True)
    write(device, NEW)
    ask(device, NEW)
    assert ask(device, NEWER).outcome is Outcome.FAILED
    assert (device.flash, device.fallback_erased) == (b"", False)
    device.power_cycle()
    assert (device.version, device.is_bricked, device.rollbacks) == (OLD.version, False, 1)


@pytest.mark.parametrize("character", UPDATERS)
def test_a_swap_before_the_firmware_was_marked_good_reverts(character: Callable[..., SimulatedDevice]) -> None:
    device = build(character)
    write(device, NEW)
    ask(device, NEW)
    assert device.handle(Swap(NEW.version, NEW.checksum)).outcome is Outcome.ROLLED_BACK
    assert (device.version, device.marked_good, device.rollbacks) == (OLD.version, True, 1)


def test_a_crate_device_restarted_midway_adds_what_is_sent_to_what_it_had() -> None:
    device = build(CrateDevice)
    write(device, NEW, until=32)
    assert ask(device, NEWER).outcome is Outcome.WROTE
    assert device.status().progress == Progress(NEWER.version, 48)
    assert device.flash == NEWER.content[:16]


def test_a_wait_keeps_a_crate_device_with_its_wrong_counter_and_a_sync_frees_it() -> None:
    device = build(CrateDevice)
    write(device, NEW, until=32)
    ask(device, NEWER)
    device.handle(Wait())
    assert device.status().progress == Progress(NEWER.version, 48)
    device.handle(Sync(OLD.version))
    assert device.status() == Status(OLD.version, 16)
    update(device, NEWER)
    assert device.image == NEWER.content


def test_a_sync_does_not_free_a_firmware_manager_restarted_midway_but_a_loss_of_power_does() -> None:
    device = build(FirmwareManagerDevice)
    write(device, NEW, until=16)
    ask(device, NEWER)
    device.handle(Sync(OLD.version))
    assert device.handle(Write(NEWER.version, 0, NEWER.content[:16])).outcome is Outcome.FAILED
    device.power_cycle()
    update(device, NEWER)
    assert device.image == NEWER.content


@pytest.mark.parametrize("character", UPDATERS)
def test_an_updater_takes_any_answer_and_sends_no_correlation_id(character: Callable[..., SimulatedDevice]) -> None:
    device = build(character)
    assert device.status().correlation_id is None
    assert device.handle(Write(NEW.version, 0, bytes(16)), 99).outcome is Outcome.WROTE
