"""Updates from a registry, and the number of requests that they send to it."""

import base64
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, changed, running
from tests.support.firmware import publish, random_bytes
from tests.support.function import Function, event
from tests.support.statuses import STATUS, ago, blocks, in_sync, midway, post, told, update


@pytest.mark.parametrize("image", ["{name}:{tag}", "{name}@{digest}", "{name}", "{name}:{tag}@{digest}"])
def test_a_device_goes_through_a_whole_update(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, image: str
) -> None:
    tag = "latest" if image == "{name}" else "stable"
    released = publish(registry.folder, device, "0.2.0", random_bytes(3000, device), tag=tag)
    drogue.put_image("example", device, image.format(name=device, tag=tag, digest=released.digest))
    assert update(function, drogue, device) == ("0.2.0", released.content)
    assert told(drogue, device)[-1] == ("swap", {0: b"0.2.0", 1: None, 2: released.checksum})
    assert post(function, device, in_sync("0.2.0")).outcome == "sync"
    gets = [asked for asked in registry.asked(device) if asked.startswith("GET")]
    manifest = released.digest if "@" in image else tag
    assert gets == [f"GET manifests/{manifest}", f"GET blobs/sha256:{released.checksum.hex()}"]


@pytest.mark.parametrize("image", ["{name}:1", "{name}@{digest}"])
def test_the_first_event_costs_a_manifest_and_a_blob_and_those_midway_nothing(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, image: str
) -> None:
    released = publish(registry.folder, device, "1", random_bytes(3000, device))
    drogue.put_image("example", device, image.format(name=device, digest=released.digest))
    assert post(function, device).outcome == 'write; version="1"; offset=0; size=512'
    first = [f"GET manifests/{image.format(name='', digest=released.digest)[1:]}"]
    first.append(f"GET blobs/sha256:{released.checksum.hex()}")
    assert registry.asked(device) == first
    for offset in range(512, 3000, 512):
        assert post(function, device, midway("1", offset)).outcome.startswith("write")
    assert post(function, device, in_sync("1")).outcome == "sync"
    assert registry.asked(device) == first


def test_two_devices_with_the_same_firmware_cost_no_more_than_one(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    publish(registry.folder, device, "1", random_bytes(3000, device))
    drogue.put(device, spec={"firmware": {"container": {"image": f"{device}:1"}}})
    for thing in ("one", "two"):
        drogue.put(device, thing, spec={})
        assert function.post(event(thing, device), b'{"version": "0"}').outcome.startswith("write")
    assert len(registry.asked(device)) == 2


def test_an_image_to_be_pulled_always_costs_a_head_for_each_status_until_its_tag_moves(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    old = publish(registry.folder, device, "1", random_bytes(3000, 1), tag="stable")
    drogue.put_image("example", device, f"{device}:stable", imagePullPolicy="Always")
    assert post(function, device, time=ago(2)).outcome.startswith('write; version="1"; offset=0')
    asked = ["GET manifests/stable", f"GET blobs/sha256:{old.checksum.hex()}"]
    assert registry.asked(device) == asked
    for status, outcome in (
        (STATUS, "write"),
        (midway("1", 512), "write"),
        (midway("1", 3000), "swap"),
        (in_sync("1"), "sync"),
    ):
        assert post(function, device, status).outcome.partition(";")[0] == outcome
        asked.append("HEAD manifests/stable")
        assert registry.asked(device) == asked
    new = publish(registry.folder, device, "2", random_bytes(3000, 2), tag="stable")
    assert post(function, device, midway("1", 512)).outcome.startswith('write; version="2"; offset=0')
    assert blocks(drogue, device)[-1] == (0, new.content[:512])
    asked += [
        "HEAD manifests/stable",
        f"GET manifests/{new.digest}",
        f"GET blobs/sha256:{new.checksum.hex()}",
    ]
    assert registry.asked(device) == asked


@pytest.mark.parametrize("policy", ["Always", "IfNotPresent"])
def test_a_registry_that_tells_no_digest_is_asked_for_the_manifest_itself(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, policy: str
) -> None:
    registry.answers[device] = lambda request: changed(registry.honest(request), docker_content_digest=None)
    released = publish(registry.folder, device, "1", random_bytes(3000, 1), tag="stable")
    drogue.put_image("example", device, f"{device}:stable", imagePullPolicy=policy)
    assert update(function, drogue, device) == ("1", released.content)
    if policy == "Always":
        assert post(function, device, in_sync("1")).outcome == "sync"
        publish(registry.folder, device, "2", random_bytes(3000, 2), tag="stable")
        assert post(function, device, midway("1", 512)).outcome.startswith('write; version="2"; offset=0')


def test_a_digest_of_another_algorithm_tells_nothing_and_does_no_harm(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    other = f"sha512:{'0' * 128}"
    registry.answers[device] = lambda request: changed(registry.honest(request), docker_content_digest=other)
    publish(registry.folder, device, "1", random_bytes(3000, 1))
    drogue.put_image("example", device, f"{device}:1", imagePullPolicy="Always")
    for status in (STATUS, midway("1", 512)):
        assert post(function, device, status).outcome.startswith("write")


def test_a_tag_or_a_repository_that_is_not_there_fails(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    publish(registry.folder, device, "1", b"x" * 32)
    for image, reason in (
        (f"{device}:2", f"no tag 2 in {device}"),
        (f"{device}-other", f"no tag latest in {device}-other"),
        (f"{device}@sha256:{'0' * 64}", f"no manifest sha256:{'0' * 64} in {device}"),
    ):
        drogue.put_image("example", device, image)
        function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")
        answer = post(function, device)
        assert (answer.status, answer.reason) == (422, f"OCI registry {registry.host}: {reason}")
        assert told(drogue, device)[-1] == ("wait", {0: None, 1: 300})


def test_a_preview_shows_the_block_and_sends_nothing(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    released = publish(registry.folder, device, "1", random_bytes(3000, device))
    drogue.put_image("example", device, f"{device}:1")
    for _ in range(2):
        shown = function.post(event(device), b'{"version": "0", "mtu": 16}', path="/preview").json
        assert shown["outcome"] == "write"
        assert base64.b64decode(shown["command"]["data"]) == released.content[:16]
    assert not drogue.commands_for(device)
    assert registry.asked(device).count(f"GET blobs/sha256:{released.checksum.hex()}") == 1


def test_a_preview_tells_why_there_is_no_block(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    released = publish(registry.folder, device, "1", random_bytes(3000, device))
    (registry.folder / device / "blobs" / "sha256" / released.checksum.hex()).unlink()
    drogue.put_image("example", device, f"{device}:1")
    shown = function.post(event(device), b'{"version": "0"}', path="/preview").json
    assert (shown["outcome"], shown["command"]) == ("failed", None)
    assert shown["reason"] == f"OCI registry {registry.host}: no blob sha256:{released.checksum.hex()} in {device}"


def test_a_prefix_before_an_asterisk_is_part_of_the_repositorys_name(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path
) -> None:
    released = publish(registry.folder, f"fw-{device}", "1", random_bytes(64, device))
    drogue.put_image("example", device, f"{device}:1")
    with running(drogue, registry, tmp_path, FIRMWARE_REGISTRY=f"{registry.host}/fw-*") as function:
        assert post(function, device).outcome == 'write; version="1"; offset=0; size=64'
    assert blocks(drogue, device) == [(0, released.content)]
    assert registry.asked(f"fw-{device}")[0] == "GET manifests/1"
