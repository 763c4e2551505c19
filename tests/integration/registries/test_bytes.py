"""Registries that send wrong bytes: no device gets one of them."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, changed, digest_of, release
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Answer, Function, event
from tests.support.hostile import always, chunked, cut, endless, flooding, hang_up, head, raw
from tests.support.http import Answer as Hook
from tests.support.http import Response
from tests.support.images import EMPTY, OCTETS, ImageLayout
from tests.support.processes import descriptors
from tests.support.statuses import blocks, midway, post, told

CONTENT = random_bytes(20_000)
OTHER = random_bytes(20_000, "other")
PAGE = b"<!DOCTYPE html><title>Log in</title>"
HTML = {"Content-Type": "text/html"}
CHUNKS = head(200, {"Transfer-Encoding": "chunked"})


def failed(answer: Answer) -> str:
    assert (answer.status, answer.json["outcome"]) == (422, "failed"), answer.body
    return answer.reason


def retried(answer: Answer) -> str:
    assert (answer.status, answer.json["outcome"]) == (503, "retry"), answer.body
    return answer.reason


# --- Blobs


@pytest.fixture
def released(registry: FakeRegistry, drogue: Drogue, device: str) -> Published:
    """What the device should run."""
    return release(registry, drogue, device, 20_000)


BLOBS: dict[str, tuple[Callable[[bytes], Hook], str]] = {
    "other bytes": (lambda _: always(Response(200, OTHER)), "digest mismatch"),
    "one bit flipped": (lambda b: always(Response(200, bytes([b[0] ^ 1]) + b[1:])), "digest mismatch"),
    "announced longer": (lambda b: always(Response(200, b + b"x")), "size mismatch"),
    "announced shorter": (lambda b: always(Response(200, b[:-1])), "size mismatch"),
    "empty": (lambda _: always(Response(200)), "size mismatch"),
    "shorter in chunks": (lambda b: chunked(b[:5000], b[5000:-1]), "size mismatch"),
    "other bytes in chunks": (lambda _: chunked(OTHER), "digest mismatch"),
    "shorter and closed": (lambda b: raw(b"HTTP/1.1 200 OK\r\n\r\n", b[:-1]), "size mismatch"),
    "longer and closed": (lambda b: raw(b"HTTP/1.1 200 OK\r\n\r\n", OTHER + b), "digest mismatch"),
    "without end": (lambda _: endless(b"x" * 8192), "digest mismatch"),
    "a page": (lambda _: always(Response(200, PAGE, HTML)), "size mismatch"),
    "a page of the same size": (lambda b: always(Response(200, PAGE.ljust(len(b)), HTML)), "digest mismatch"),
    "no HTTP": (lambda b: raw(b), "not HTTP"),
    "a chunk of a negative size": (
        lambda b: raw(CHUNKS, b"-1\r\n", b + OTHER),
        "not HTTP",
    ),
    "no content": (lambda _: always(Response(204)), "answered 204"),
    "a part": (lambda b: always(Response(206, b)), "answered 206"),
    "not found": (lambda _: always(Response(404, PAGE, HTML)), "no blob sha256:"),
    "gone": (lambda _: always(Response(410)), "answered 410"),
    "forbidden": (lambda _: always(Response(403)), "access denied"),
    "a redirect to nowhere": (lambda _: always(Response(307)), "answered 307"),
    "not modified": (lambda _: always(Response(304)), "answered 304"),
}
BROKEN_BLOBS: dict[str, tuple[Callable[[bytes], Hook], str]] = {
    "cut short": (lambda b: cut(Response(200, b), 15_000), "cut short"),
    "cut short in chunks": (lambda b: chunked(b[:15_000], ends=False), "cut short"),
    "cut short within a chunk": (lambda b: raw(CHUNKS, b"4e20\r\n", b[:9]), "cut"),
    "never begun": (lambda _: hang_up, "closed without an answer"),
    "unavailable": (lambda _: always(Response(503)), "answered 503"),
}


@pytest.mark.parametrize("how", BLOBS)
def test_a_blob_that_is_something_else_fails_until_the_registry_is_mended(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, how: str
) -> None:
    answer, reason = BLOBS[how]
    registry.answers[f"{device}/blobs"] = answer(released.content)
    assert reason in failed(post(function, device))
    assert reason in failed(post(function, device, midway("1", 512)))
    assert told(drogue, device) == [("wait", {0: None, 1: 300})] * 2
    del registry.answers[f"{device}/blobs"]
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, released.content[:512])]


def test_a_blob_that_does_not_come_whole_is_to_be_retried_and_is_served_when_it_does(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    contents = {}
    for number, (how, (answer, reason)) in enumerate(BROKEN_BLOBS.items()):
        broken = f"{device}-{number}"
        content = contents[broken] = publish(registry.folder, broken, "1", random_bytes(20_000, broken)).content
        drogue.put_image("example", broken, f"{broken}:1")
        registry.answers[f"{broken}/blobs"] = answer(content)
        told_why = retried(post(function, broken))
        assert reason in told_why, how
        del registry.answers[f"{broken}/blobs"]
        assert retried(post(function, broken)) == told_why, "a moment later it is not asked for again"
    time.sleep(1.05)
    for broken, content in contents.items():
        assert post(function, broken).outcome.startswith("write")
        assert blocks(drogue, broken) == [(0, content[:512])]


@pytest.mark.parametrize("rest", [b"x", b"x" * 100_000])
def test_of_a_blob_that_goes_on_no_more_is_read_than_its_size(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, rest: bytes
) -> None:
    registry.answers[f"{device}/blobs"] = chunked(released.content + rest)
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, released.content[:512])]


# --- Manifests


MANIFESTS: dict[str, tuple[Hook, str]] = {
    "a page": (always(Response(200, PAGE, HTML)), "manifest: not JSON"),
    "empty": (always(Response(200)), "manifest: not JSON"),
    "a list": (always(Response(200, b"[]")), "manifest is not a JSON object"),
    "an empty object": (always(Response(200, b"{}")), "manifest has no list of layers"),
    "no UTF-8": (always(Response(200, b"\xff")), "manifest: text that is not UTF-8"),
    "nested too deeply": (always(Response(200, b'{"a":' + b"[" * 100_000)), "manifest: nested too deeply"),
    "a key that stands twice": (always(Response(200, b'{"layers": [], "layers": []}')), "stands twice"),
    "of an older schema": (
        always(Response(200, b'{"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"}')),
        "prettyjws is not supported",
    ),
    "too large": (always(Response(200, b" " * (4 * 1024 * 1024 + 1))), "larger than 4194304 bytes"),
    "too large in chunks": (chunked(*[b" " * 65536] * 65), "larger than 4194304 bytes"),
    "without end": (endless(b" " * 65536), "larger than 4194304 bytes"),
    "a head without end": (flooding(b"X: y\r\n", b"HTTP/1.1 200 OK\r\n"), "not HTTP"),
    "a line without end": (flooding(b"x" * 8192), "not HTTP"),
    "promises without end": (flooding(b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "not HTTP"),
    "trailers without end": (flooding(b"X: y\r\n" * 100, CHUNKS + b"0\r\n"), "not HTTP"),
    "no HTTP": (raw(b"\x15\x03\x01\x00\x02\x02\x50"), "not HTTP"),
    "another protocol": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "not HTTP"),
    "elsewhere": (always(Response(302, headers={"Location": "/login"})), "answered 302"),
    "forbidden": (always(Response(403)), "access denied"),
    "unauthorized for nothing": (always(Response(401)), "answered 401 without asking for "),
    "a teapot": (always(Response(418)), "answered 418"),
    "not found": (always(Response(404, PAGE, HTML)), "no tag 1 in"),
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_a_manifest_that_makes_no_sense_fails_and_says_why(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, how: str
) -> None:
    registry.answers[f"{device}/manifests"], reason = MANIFESTS[how]
    assert reason in failed(post(function, device))
    assert told(drogue, device) == [("wait", {0: None, 1: 300})]
    del registry.answers[f"{device}/manifests"]
    drogue.put_image("example", device, f"{device}@{released.digest}")
    function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, released.content[:512])]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hang_up, "closed without an answer"),
        (cut(Response(200, b"{}" + b" " * 100), 50), "cut short"),
        (chunked(b"{}", ends=False), "cut short"),
        *((always(Response(status)), f"answered {status}") for status in (429, 500, 502, 503, 504, 599)),
    ],
)
@pytest.mark.usefixtures("released")
def test_a_manifest_that_does_not_come_is_to_be_retried(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, answer: Hook, reason: str
) -> None:
    registry.answers[f"{device}/manifests"] = answer
    assert reason in retried(post(function, device))
    assert not told(drogue, device)


def test_a_manifest_that_is_not_the_one_asked_for_by_its_digest_fails(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    other = publish(registry.folder, device, "2", OTHER)
    registry.answers[f"{device}/manifests"] = lambda request: registry.honest(
        # What it is asked for in the one's name is the other.
        type(request)(request.method, f"/v2/{device}/manifests/2", request.headers, b"", request.connection)
    )
    drogue.put_image("example", device, f"{device}@{released.digest}")
    reason = f"OCI registry {registry.host}: digest mismatch: sends {other.digest} for {released.digest}"
    assert failed(post(function, device)) == reason
    assert not blocks(drogue, device)


@pytest.mark.usefixtures("released")
def test_manifest_with_another_digest_than_announced_fails(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    told_digest = f"sha256:{'0' * 64}"
    registry.answers[device] = lambda request: changed(registry.honest(request), docker_content_digest=told_digest)
    reason = failed(post(function, device))
    told = f"OCI registry {registry.host}: digest mismatch: says that tag 1 is {told_digest}, but sends sha256:"
    assert reason.startswith(told)
    assert not blocks(drogue, device)


def test_a_head_that_lies_does_not_move_a_tag(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    drogue.put_image("example", device, f"{device}:1", imagePullPolicy="Always")
    assert post(function, device).outcome.startswith("write")
    lie = f"sha256:{'0' * 64}"
    registry.answers[f"{device}/manifests/1"] = lambda request: changed(
        registry.honest(request), docker_content_digest=lie
    )
    assert failed(post(function, device)) == f"OCI registry {registry.host}: no manifest {lie} in {device}"
    assert blocks(drogue, device) == [(0, released.content[:512])]


def test_no_answer_leaves_anything_open(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    assert post(function, device).outcome.startswith("withheld")
    before = descriptors(function)
    hooks = {f"{device}-{n}/blobs": answer(CONTENT) for n, (answer, _) in enumerate((BLOBS | BROKEN_BLOBS).values())}
    hooks |= {f"{device}-{n}/manifests": answer for n, (answer, _) in enumerate(MANIFESTS.values(), len(hooks))}
    registry.answers.update(hooks)
    for name in (key.partition("/")[0] for key in hooks):
        publish(registry.folder, name, "1", random_bytes(20_000, name))
        drogue.put_image("example", name, f"{name}:1")
        assert post(function, name).status in (422, 503)
    limit = time.monotonic() + 10
    while descriptors(function) > before + 5 and time.monotonic() < limit:
        time.sleep(0.05)
    assert descriptors(function) <= before + 5, "more than connections that are kept for the next event"


# --- What manifests say


def layer(content: bytes = CONTENT, **fields: Any) -> dict[str, Any]:
    return {"mediaType": OCTETS, "digest": digest_of(content), "size": len(content), **fields}


def title(text: str) -> dict[str, Any]:
    return {"annotations": {"org.opencontainers.image.title": text}}


TWO = [layer(CONTENT, **title("a.bin")), layer(OTHER, **title("b.bin"))]
TWO_NAMED = [layer(CONTENT, **title("firmware.bin")), layer(OTHER, **title("firmware.bin"))]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([layer(size=0)], "a firmware of 0 bytes: from 1 to 4294967295 can be sent"),
        ([layer(size=2**32)], "a firmware of 4294967296 bytes: from 1 to 4294967295 can be sent"),
        ([layer(size=2**64)], "a firmware of 18446744073709551616 bytes: from 1 to 4294967295 can be sent"),
        ([layer(size=2**32 - 1)], "larger than the cache"),
        ([layer(size=-1)], "layer 0 has no media type, digest or size"),
        ([layer(size=20_000.0)], "layer 0 has no media type, digest or size"),
        ([layer(size="20000")], "layer 0 has no media type, digest or size"),
        ([layer(size=True)], "layer 0 has no media type, digest or size"),
        ([layer(size=None)], "layer 0 has no media type, digest or size"),
        ([layer(size=19_999)], "size mismatch"),
        ([layer(size=20_001)], "size mismatch"),
        ([layer(digest=digest_of(OTHER))], "no blob"),
        ([layer(digest="sha512:" + "0" * 128)], "layer 0 has a digest that is not a sha256"),
        ([layer(digest="sha256:../../../../etc/passwd")], "layer 0 has a digest that is not a sha256"),
        ([layer(digest="sha256:" + "A" * 64)], "layer 0 has a digest that is not a sha256"),
        ([layer(annotations=[])], "layer 0 has annotations that are no map of strings"),
        ([], "no firmware"),
        ([5, None, {}, {"mediaType": []}], "no firmware"),
        (TWO, "two firmware layers: a.bin, b.bin"),
        (TWO_NAMED, "two firmware layers: firmware.bin, firmware.bin"),
    ],
)
def test_a_manifest_that_describes_no_firmware_fails_and_says_why(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, layers: list[Any], reason: str
) -> None:
    layout = ImageLayout(registry.folder / device)
    layout.blob(CONTENT, OCTETS)
    layout.tag(layout.manifest(layout.blob(b"{}", EMPTY), layers), "1")
    drogue.put_image("example", device, f"{device}:1")
    assert reason in failed(post(function, device))
    assert told(drogue, device) == [("wait", {0: None, 1: 300})]


def test_the_layer_that_is_called_firmware_is_the_one(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    layout = ImageLayout(registry.folder / device)
    layers = [layout.blob(OTHER, OCTETS, **title("notes.txt")), layout.blob(CONTENT, OCTETS, **title("firmware.bin"))]
    layout.tag(layout.manifest(layout.blob(b"{}", EMPTY), layers), "1")
    drogue.put_image("example", device, f"{device}:1")
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, CONTENT[:512])]


@pytest.mark.parametrize("described", ["version", "title"])
def test_long_values_of_a_manifest_are_cut_in_reasons(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, described: str
) -> None:
    layout = ImageLayout(registry.folder / device)
    text = "x" * 1_000_000
    if described == "version":
        layers, annotations = [layout.blob(CONTENT, OCTETS)], {"org.opencontainers.image.version": text}
    else:
        layers, annotations = [layer(CONTENT, **title(text)), layer(OTHER, **title(text))], {}
    layout.tag(layout.manifest(layout.blob(b"{}", EMPTY), layers, annotations=annotations), "1")
    drogue.put_image("example", device, f"{device}:1")
    answer = function.post(event(device), b'{"version": "0"}')
    assert failed(answer)
    assert len(json.dumps(dict(answer.headers))) + len(answer.body) < 10_000
    assert all(len(line) < 10_000 for line in function.logged(device))
    assert not drogue.commands_for(device)
