"""The decision table, row by row."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.protocol.messages import Progress, Status, Swap, Sync
from fleet_fn.protocol.step import FLASH_WORD_BYTES, Block, Target, is_all_written, next_command

TARGET = Target(b"0.1.1", 1001, b"c" * 32)
OLD = Status(b"0.1.0")


def command(status: Status, target: Target = TARGET, mtu: int = 512) -> Sync | Swap | Block:
    return next_command(status, target, mtu=mtu, poll=300)


def at(offset: int, version: bytes = TARGET.version) -> Status:
    return replace(OLD, progress=Progress(version, offset))


def test_a_device_on_its_target_is_told_to_mark_it_good() -> None:
    assert command(Status(b"0.1.1")) == Sync(b"0.1.1", 300)


def test_a_device_on_its_target_is_in_sync_whatever_it_says_of_an_update() -> None:
    assert command(Status(b"0.1.1", progress=Progress(b"0.1.1", 512))) == Sync(b"0.1.1", 300)
    assert command(Status(b"0.1.1", progress=Progress(b"0.1.2", 5000))) == Sync(b"0.1.1", 300)


@pytest.mark.parametrize("offset", [1001, 1004, 1008, 1024])
def test_a_device_that_has_it_all_is_told_to_swap_with_or_without_padding(offset: int) -> None:
    assert command(at(offset)) == Swap(b"0.1.1", b"c" * 32)


@pytest.mark.parametrize("offset", [0, 1, 512, 1000])
def test_a_device_midway_gets_the_block_that_it_expects(offset: int) -> None:
    assert command(at(offset)) == Block(b"0.1.1", offset, min(512, 1001 - offset))


@pytest.mark.parametrize("offset", [1002, 1003, 1005, 1012, 1016, 1025, 2002, 2**32 - 1])
def test_a_device_beyond_the_end_starts_again(offset: int) -> None:
    assert command(at(offset)) == Block(b"0.1.1", 0, 512)


@pytest.mark.parametrize("status", [OLD, at(0, b"0.1.2"), at(512, b"0.1.2"), at(1001, b"0.1.2"), at(512, b"0.1.1\0")])
def test_a_device_with_other_progress_or_none_starts_at_the_beginning(status: Status) -> None:
    assert command(status) == Block(b"0.1.1", 0, 512)


def test_a_block_is_never_larger_than_the_firmware() -> None:
    assert command(OLD, replace(TARGET, size=3)) == Block(b"0.1.1", 0, 3)


@given(size=st.integers(1, 2**32 - 1), mtu=st.integers(1, 2**32 - 1), data=st.data())
def test_every_block_lies_within_the_firmware_and_brings_the_device_on(
    size: int, mtu: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, size - 1))
    block = command(at(offset), replace(TARGET, size=size), mtu)
    assert isinstance(block, Block)
    assert block.offset == offset
    assert 0 < block.size <= mtu
    assert block.offset + block.size <= size


@given(size=st.integers(1, 2**32 - 1), offset=st.integers(0, 2**32 - 1))
def test_a_swap_is_sent_only_for_the_size_or_the_size_padded_to_a_flash_word(size: int, offset: int) -> None:
    swapped = isinstance(command(at(offset), replace(TARGET, size=size)), Swap)
    padded = any(0 <= offset - size < word and offset % word == 0 for word in FLASH_WORD_BYTES)
    assert swapped == (offset == size or padded)
    assert swapped == is_all_written(offset, size)


@given(size=st.integers(1, 10_000), mtu=st.integers(1, 4096))
def test_obedient_device_reaches_target_in_fewest_blocks(size: int, mtu: int) -> None:
    target = replace(TARGET, size=size)
    status, blocks = OLD, 0
    while isinstance(block := command(status, target, mtu), Block):
        status, blocks = at(block.offset + block.size), blocks + 1
    assert isinstance(block, Swap)
    assert blocks == -(-size // mtu)
