"""Bytes that change on disk after they were verified, while the file's times stand still."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, running
from tests.support.firmware import Published, blob_path, publish, random_bytes
from tests.support.function import Answer, Function
from tests.support.function import running as running_function
from tests.support.mappings import mapped
from tests.support.statuses import begin, blocks, midway, post

#: So many bytes that a block, and even the chunk that it lies in, is a small part of them.
SIZE = 100_000


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    with FakeRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache, the layouts and the described files, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("firmware")
    for name in ("cache", "layouts", "files"):
        (folder / name).mkdir(0o700)
    return folder


@pytest.fixture(scope="module")
def remote(drogue: Drogue, registry: FakeRegistry, folder: Path) -> Iterator[Function]:
    """A function that fetches from a registry."""
    with running(drogue, registry, folder / "cache") as function:
        yield function


@pytest.fixture(scope="module")
def local(drogue: Drogue, folder: Path) -> Iterator[Function]:
    """A function that reads layouts and described files."""
    environment = {"FIRMWARE_REGISTRY": f"oci-layout:{folder / 'layouts'}", "FIRMWARE_DIR": str(folder / "files")}
    with running_function({**drogue.environment, **environment}) as function:
        yield function


def in_layout(drogue: Drogue, folder: Path, device: str) -> Path:
    released = publish(folder / "layouts", device, "1", random_bytes(SIZE, device))
    drogue.put_image("example", device, f"{device}:1")
    return blob_path(folder / "layouts", device, released)


def in_folder(drogue: Drogue, folder: Path, device: str) -> Path:
    path, content = folder / "files" / f"{device}.bin", random_bytes(SIZE, device)
    described = {"version": "1", "size": SIZE, "checksum": hashlib.sha256(content).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(described))
    path.write_bytes(content)
    drogue.put("example", device, spec={"firmware": {"file": {"name": device}}})
    return path


def in_cache(drogue: Drogue, registry: FakeRegistry, device: str) -> Published:
    released = publish(registry.folder, device, "1", random_bytes(SIZE, device))
    drogue.put_image("example", device, f"{device}:1")
    return released


def verify(function: Function, device: str) -> None:
    """Has the function verify a file that was changed a while ago, and trust its times from now on."""
    time.sleep(3.1)
    begin(function, device)
    for _ in range(2):
        assert post(function, device, midway("1", 512)).outcome.startswith("write")


def test_a_cached_file_that_changed_without_a_trace_is_fetched_anew(
    remote: Function, drogue: Drogue, registry: FakeRegistry, folder: Path, device: str
) -> None:
    released = in_cache(drogue, registry, device)
    begin(remote, device)
    path = folder / "cache" / released.checksum.hex()
    with mapped(path) as mapping:
        verify(remote, device)
        mapping.flip(1024 + 100)
        assert post(remote, device, midway("1", 1024)).outcome.startswith("write")
    assert blocks(drogue, device)[-1] == (1024, released.content[1024:1536])
    assert path.read_bytes() == released.content, "the damaged file is replaced"
    assert sum(asked.startswith("GET blobs/") for asked in registry.asked(device)) == 2


def refused(answer: Answer) -> bool:
    return answer.status == 422 and answer.reason.startswith("digest mismatch: ")


@pytest.mark.parametrize("place", [in_layout, in_folder])
def test_an_operators_file_that_changed_without_a_trace_is_refused_until_it_is_whole(
    local: Function, drogue: Drogue, folder: Path, device: str, place: Callable[[Drogue, Path, str], Path]
) -> None:
    path, content = place(drogue, folder, device), random_bytes(SIZE, device)
    with mapped(path) as mapping:
        verify(local, device)
        mapping.flip(1024 + 100)
        assert refused(post(local, device, midway("1", 1024)))
        assert refused(post(local, device, midway("1", 1024)))
        mapping.flip(1024 + 100)
        limit = time.monotonic() + 10
        while refused(post(local, device, midway("1", 1024))):
            assert time.monotonic() < limit
    assert blocks(drogue, device)[-1] == (1024, content[1024:1536])


@pytest.mark.parametrize("place", [in_layout, in_folder])
def test_a_file_that_another_user_owns_is_served_where_the_operator_put_it(
    local: Function, drogue: Drogue, folder: Path, device: str, place: Callable[[Drogue, Path, str], Path]
) -> None:
    path = place(drogue, folder, device)
    path.chmod(0o666)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    verify(local, device)
    assert blocks(drogue, device)[-1] == (512, random_bytes(SIZE, device)[512:1024])
