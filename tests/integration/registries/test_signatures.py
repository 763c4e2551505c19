"""Only signed firmware is served: what a registry has, how it lists it, and what it does instead."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.support.drogue import Drogue
from tests.support.fake_registry import INDEX, FakeRegistry, less_host, release, running
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event
from tests.support.hostile import always
from tests.support.http import Request, Response
from tests.support.signer import BUNDLE, MANIFEST, Attacher, Signer
from tests.support.statuses import begin, blocks, in_sync, midway, post, told, update
from tests.support.timing import DEADLINE, SLACK, Gate

RELEASE: Final = Signer()
STRANGER: Final = Signer()
SIGNERS: Final = {
    "p384": Signer(ec.generate_private_key(ec.SECP384R1())),
    "ed25519": Signer(ed25519.Ed25519PrivateKey.generate()),
    "rsa": Signer(rsa.generate_private_key(65537, 2048)),
}
DENIED: Final = random_bytes(3000, "denied")
NO_SIGNATURE: Final = "not signed by a trusted key: no signature"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "release.pub").write_bytes(RELEASE.public)
    (folder / "others.pub").write_bytes(b"".join(signer.public for signer in SIGNERS.values()))
    return folder


@pytest.fixture(scope="module")
def function(
    drogue: Drogue, registry: FakeRegistry, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), FIRMWARE_VERIFY_KEYS=str(keys)) as function:
        yield function


@pytest.fixture(params=[True, False], ids=["referrers", "fallback-tag"])
def lists_referrers(registry: FakeRegistry, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the registry lists referrers itself."""
    registry.has_referrers = request.param
    yield request.param
    registry.has_referrers = True


@pytest.fixture
def attacher(registry: FakeRegistry, device: str, released: Published) -> Attacher:
    assert released
    return Attacher(registry.folder / device)


def reason(function: Function, drogue: Drogue, device: str) -> str:
    """Why a device's event fails; the device is told to wait, and gets no byte."""
    answer = post(function, device)
    assert answer.status == 422, answer.outcome
    assert {variant for variant, _ in told(drogue, device)} == {"wait"}
    return less_host(answer.reason)


def attach(attacher: Attacher, released: Published, bundle: bytes, *, listed: bool, **changes: Any) -> None:
    entry = attacher.attach(bundle, released.digest, **changes)
    if not listed:
        attacher.tag_fallback(released.digest, entry)


# --- What counts ------------------------------------------------------------------------------------------------------


def test_a_signed_firmware_is_served_whole(
    function: Function,
    drogue: Drogue,
    device: str,
    released: Published,
    attacher: Attacher,
    lists_referrers: bool,
) -> None:
    attach(attacher, released, RELEASE.bundle(released.digest), listed=lists_referrers)
    assert update(function, drogue, device) == ("1", released.content)


@pytest.mark.parametrize("kind", SIGNERS)
def test_each_kind_of_key_signs(
    function: Function, drogue: Drogue, device: str, released: Published, attacher: Attacher, kind: str
) -> None:
    attacher.sign(SIGNERS[kind], released.digest)
    assert update(function, drogue, device) == ("1", released.content)


@pytest.mark.parametrize("signed", ["index", "manifest", None])
def test_of_an_index_either_may_be_signed(
    function: Function, drogue: Drogue, device: str, released: Published, attacher: Attacher, signed: str | None
) -> None:
    entry = attacher.put(attacher.read(released.digest), MANIFEST)
    index = attacher.put(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).encode(), INDEX)
    attacher.tag("all", index)
    drogue.put_image("example", device, f"{device}:all")
    if signed is None:
        assert reason(function, drogue, device) == NO_SIGNATURE
        return
    attacher.sign(RELEASE, {"index": index["digest"], "manifest": released.digest}[signed])
    assert update(function, drogue, device) == ("1", released.content)


def test_keys_of_one_application_do_not_count_for_another(
    drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher, tmp_path: Path
) -> None:
    applications = {f"{device}-own": RELEASE, f"{device}-other": STRANGER}
    for application, signer in applications.items():
        (tmp_path / f"{application}.pub").write_bytes(signer.public)
        drogue.put_image(application, None, f"{device}:1")
        drogue.put(application, "thing", spec={})
    attacher.sign(RELEASE, released.digest)
    path = str(tmp_path / "{application}.pub")
    with running(drogue, registry, tmp_path / "cache", FIRMWARE_VERIFY_KEYS=path) as function:
        answers = [function.post(event("thing", name), b'{"version": "0"}') for name in applications]
    assert answers[0].outcome.startswith('write; version="1"')
    assert (answers[1].status, answers[1].reason) == (422, "not signed by a trusted key: signed by another key")


def test_look_ups_of_signatures_are_counted(
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    attacher: Attacher,
    keys: Path,
    tmp_path: Path,
) -> None:
    attacher.sign(RELEASE, released.digest)
    with running(drogue, registry, tmp_path / "cache", FIRMWARE_VERIFY_KEYS=str(keys)) as function:
        update(function, drogue, device)
        shown = function.request("GET", "/metrics").body.decode()
    counts = {
        result: float(line.rpartition(" ")[2])
        for result in ("hit", "miss")
        for line in shown.splitlines()
        if line.startswith(f'fleet_cache_requests_total{{cache="signature",result="{result}"}}')
    }
    assert counts["miss"] == 1
    assert counts["hit"] >= len(released.content) // 512


def test_the_older_form_counts_too(
    function: Function,
    drogue: Drogue,
    device: str,
    released: Published,
    attacher: Attacher,
    lists_referrers: bool,
) -> None:
    assert lists_referrers in (True, False)
    attacher.tag_signature(released.digest, STRANGER.text(released.digest), RELEASE.text(released.digest))
    assert update(function, drogue, device) == ("1", released.content)


def test_a_signature_is_searched_for_once(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    attacher.sign(RELEASE, released.digest)
    update(function, drogue, device)
    asked = registry.asked(device)
    assert [request for request in asked if "referrers" in request] == [
        f"GET referrers/{released.digest}?artifactType={BUNDLE.replace('/', '%2F').replace('+', '%2B')}"
    ]
    post(function, device, in_sync("1"))
    assert sum("referrers" in request for request in registry.asked(device)) == 1


def test_a_thousand_referrers_do_not_hide_a_signature(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    good = attacher.sign(RELEASE, released.digest)
    other = {"mediaType": MANIFEST, "size": 500, "artifactType": "application/spdx+json"}
    entries = [{**other, "digest": f"sha256:{number:064x}"} for number in range(1000)]

    def page(request: Request) -> Response:
        last = "last=" in request.path
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [good] if last else entries}
        link = {} if last else {"Link": f'</v2/{device}/referrers/{released.digest}?last=x>; rel="next"'}
        return Response(200, json.dumps(index).encode(), {"Content-Type": INDEX, **link})

    registry.answers[f"{device}/referrers"] = page
    assert update(function, drogue, device) == ("1", released.content)


def test_a_list_of_huge_annotations_is_not_kept(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    numbers = count(1)

    def page(_: Request) -> Response:
        number = next(numbers)
        entry = {"mediaType": MANIFEST, "size": 500, "artifactType": BUNDLE, "digest": f"sha256:{number:064x}"}
        index = {"mediaType": INDEX, "manifests": [{**entry, "annotations": {"filler": "x" * 4_000_000}}]}
        link = f'</v2/{device}/referrers/{released.digest}?last={number}>; rel="next"'
        return Response(200, json.dumps(index).encode(), {"Content-Type": INDEX, "Link": link})

    registry.answers[f"{device}/referrers"] = page
    assert "a list of more than 8388608 bytes" in reason(function, drogue, device)
    assert next(numbers) == 4, "three pages are enough"


# --- What does not ----------------------------------------------------------------------------------------------------


def test_an_unsigned_firmware_is_not_served(
    function: Function, drogue: Drogue, device: str, released: Published, lists_referrers: bool
) -> None:
    assert lists_referrers in (True, False)
    assert released
    assert reason(function, drogue, device) == NO_SIGNATURE


def test_not_even_a_device_that_runs_it_hears_sync(
    function: Function, drogue: Drogue, device: str, released: Published
) -> None:
    answer = post(function, device, in_sync(released.version))
    assert (answer.status, answer.reason) == (422, NO_SIGNATURE)
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]


def test_an_object_tells_why(function: Function, drogue: Drogue, device: str, released: Published) -> None:
    assert released
    post(function, device)
    (condition,) = [c for c in drogue.reported(device)["conditions"] if c["type"] == "InSync"]
    assert (condition["status"], condition["reason"]) == ("False", NO_SIGNATURE)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda digest: STRANGER.bundle(digest), "signed by another key"),
        (lambda _: RELEASE.bundle(f"sha256:{'ab' * 32}"), "signature of another digest"),
        (lambda digest: RELEASE.bundle(digest, payload_type="text/plain"), "envelope of another payload type"),
        (lambda digest: RELEASE.bundle(digest)[:-20], "not JSON"),
        (lambda digest: RELEASE.bundle(digest) + b" " * 140_000, "bytes long; at most 131072 are read"),
        (lambda digest: RELEASE.bundle(digest).replace(b"{", b'{"mediaType": 1, ', 1), "a key stands twice"),
    ],
    ids=["other-key", "other-digest", "other-payload", "truncated", "oversized", "twice"],
)
def test_a_bad_bundle_does_not_count(
    function: Function,
    drogue: Drogue,
    device: str,
    released: Published,
    attacher: Attacher,
    lists_referrers: bool,
    make: Callable[[str], bytes],
    problem: str,
) -> None:
    attach(attacher, released, make(released.digest), listed=lists_referrers)
    assert problem in reason(function, drogue, device)


def test_a_signature_from_another_repository_does_not_count(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    other = publish(registry.folder, f"{device}-other", "1", random_bytes(100, device))
    elsewhere = Attacher(registry.folder / f"{device}-other")
    entry = elsewhere.sign(RELEASE, other.digest)
    for digest in (entry["digest"], json.loads(elsewhere.read(entry["digest"]))["layers"][0]["digest"]):
        attacher.put(elsewhere.read(digest), MANIFEST)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    registry.answers[f"{device}/referrers"] = lambda _: Response(200, json.dumps(index).encode())
    assert released
    assert reason(function, drogue, device) == "not signed by a trusted key: attached to another manifest"


def test_the_fallback_tag_may_be_the_manifest_itself(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    described = attacher.put(attacher.read(released.digest), MANIFEST)
    attacher.tag(released.digest.replace(":", "-"), described)
    registry.answers[f"{device}/referrers"] = lambda _: Response(404)
    assert reason(function, drogue, device) == NO_SIGNATURE


def test_a_tag_that_moves_to_unsigned_firmware_stops_a_device_midway(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    drogue.put_image("example", device, f"{device}:1", imagePullPolicy="Always")
    attacher.sign(RELEASE, released.digest)
    begin(function, device)
    publish(registry.folder, device, "1", random_bytes(3000, "other"), tag="1")
    answer = post(function, device, midway("1", 512))
    assert (answer.status, answer.reason) == (422, NO_SIGNATURE)
    assert blocks(drogue, device) == [(0, released.content[:512])]


# --- What a registry does instead -------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["referrers", "blobs"])
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_registry_without_an_answer_is_asked_again(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    attacher: Attacher,
    of: str,
    status: int,
) -> None:
    attacher.sign(RELEASE, released.digest)
    registry.answers[f"{device}/{of}"] = lambda _: Response(status)
    answer = post(function, device)
    assert (answer.status, told(drogue, device)) == (503, [])
    assert f"answered {status}" in answer.reason


def test_a_registry_that_hangs_takes_no_longer_than_the_deadline(
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    attacher: Attacher,
    keys: Path,
    tmp_path: Path,
) -> None:
    attacher.sign(RELEASE, released.digest)
    gate = Gate(Response(500))
    registry.answers[f"{device}/referrers"] = gate
    settings = {"FIRMWARE_VERIFY_KEYS": str(keys), "EVENT_DEADLINE_SECONDS": str(DEADLINE)}
    with running(drogue, registry, tmp_path / "cache", **settings) as function:
        began = time.monotonic()
        answer = post(function, device)
        assert time.monotonic() - began < DEADLINE + SLACK
        gate.opened.set()
    assert (answer.status, told(drogue, device)) == (503, [])
    assert less_host(answer.reason) == "OCI registry HOST: no answer in time"


@pytest.mark.parametrize("status", [400, 403, 405])
def test_a_refused_list_is_told(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, status: int
) -> None:
    assert released
    registry.answers[f"{device}/referrers"] = lambda _: Response(status)
    beginning, _, problem = reason(function, drogue, device).partition(": OCI registry ")
    assert (beginning, bool(problem)) == ("not signed by a trusted key", True)


@pytest.mark.parametrize("status", [400, 403, 405])
def test_the_fallback_tag_counts_where_the_list_is_refused(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    attacher: Attacher,
    status: int,
) -> None:
    registry.answers[f"{device}/referrers"] = lambda _: Response(status)
    attach(attacher, released, RELEASE.bundle(released.digest), listed=False)
    assert update(function, drogue, device) == ("1", released.content)


def test_a_registry_that_answers_differently_each_time_serves_only_what_is_signed(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    good = attacher.sign(RELEASE, released.digest)
    lies = [
        b"<html>",
        b'{"manifests": 7}',
        json.dumps({"manifests": [{**good, "digest": f"sha256:{'cd' * 32}"}]}).encode(),
        json.dumps({"manifests": [None, {}, {**good, "size": -1}, {**good, "mediaType": 3}]}).encode(),
        json.dumps({"manifests": [good]}).encode(),  # of another manifest
        b"",
    ]
    for number, lie in enumerate(lies):
        for is_signed in (False, True):
            name = f"{device}-{number}-{'signed' if is_signed else 'bare'}"
            drogue.put("example", name, spec={})
            other = release(registry, drogue, name)
            own = Attacher(registry.folder / name)
            if is_signed:
                own.tag_signature(other.digest, RELEASE.text(other.digest))
            registry.answers[f"{name}/referrers"] = always(Response(200, lie))
            answer = post(function, name)
            assert answer.status == (204 if is_signed else 422), answer.outcome
            assert blocks(drogue, name) == ([(0, other.content[:512])] if is_signed else [])


def test_a_large_manifest_that_is_listed_as_small_is_not_read(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, attacher: Attacher
) -> None:
    entries = []
    for number in range(2):
        lists = b"[]," * 1_300_000
        content = attacher.put(b'{"number": %d, "lists": [%b0]}' % (number, lists), MANIFEST)
        entries.append({**content, "size": 500, "artifactType": BUNDLE})
    registry.answers[f"{device}/referrers"] = always(Response(200, json.dumps({"manifests": entries}).encode()))
    assert released
    assert "bytes, and its descriptor says 500" in reason(function, drogue, device)


# --- The deny list ----------------------------------------------------------------------------------------------------


def test_denied_bytes_are_not_served(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    drogue.put_image("example", device, f"{device}:1")
    denied = publish(registry.folder, device, "1", DENIED)
    digest = f"sha256:{denied.checksum.hex()}"
    (tmp_path / "denied").write_text(f"{digest} # never comes back\n")
    settings = {"FIRMWARE_DENY": str(tmp_path / "denied")}
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **settings) as function:
        assert reason(function, drogue, device) == f"denied: {digest} is in FIRMWARE_DENY"


def test_a_device_that_came_up_with_denied_firmware_hears_no_sync(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    attacher: Attacher,
    tmp_path: Path,
) -> None:
    attacher.sign(RELEASE, released.digest)
    assert update(function, drogue, device) == ("1", released.content)
    (tmp_path / "denied").write_text(released.digest)
    with running(drogue, registry, tmp_path / "cache", FIRMWARE_DENY=str(tmp_path / "denied")) as strict:
        answer = post(strict, device, in_sync("1"))
        assert (answer.status, answer.reason) == (422, f"denied: {released.digest} is in FIRMWARE_DENY")
        assert told(drogue, device)[-1][0] == "wait"
        # It runs the denied firmware still, and takes another only once it has heard SYNC.
        publish(registry.folder, device, "2", random_bytes(3000, "mended"))
        drogue.put_image("example", device, f"{device}:2")
        strict.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")
        assert post(strict, device, in_sync("1")).outcome == "sync"
    assert told(drogue, device)[-1][0] == "sync"


def test_an_unsigned_push_of_the_same_bytes_withholds_no_sync(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    attacher: Attacher,
    keys: Path,
    tmp_path: Path,
) -> None:
    """Without SYNC, the bootloader would go back to the version before, and a token for pushing would be enough."""
    attacher.sign(RELEASE, released.digest)
    assert update(function, drogue, device) == ("1", released.content)
    manifest = json.loads(attacher.read(released.digest))
    manifest["annotations"]["pushed"] = "again"
    index = json.loads((attacher.layout / "index.json").read_bytes())
    kept = [entry for entry in index["manifests"] if entry["digest"] != released.digest]
    (attacher.layout / "index.json").write_text(json.dumps({**index, "manifests": kept}))
    attacher.tag("1", attacher.put(json.dumps(manifest).encode(), MANIFEST))
    with running(drogue, registry, tmp_path / "cache", FIRMWARE_VERIFY_KEYS=str(keys)) as fresh:
        assert post(fresh, device, in_sync("1")).outcome == "sync"
        assert told(drogue, device)[-1][0] == "sync"
