"""Ranges of versions, hardware, requirements and downgrades, over sockets, by what devices are told."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.firmware.trust import NOT_SIGNED
from fleet_fn.oci.manifest import MANIFEST
from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, running
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event
from tests.support.function import running as running_function
from tests.support.http import Request, Response
from tests.support.registry import DockerRegistry
from tests.support.signer import Attacher, Signer
from tests.support.statuses import STATUS, blocks, in_sync, midway, post, told, update

SIZE = 1300
#: Seconds after which nothing is fresh any more.
MOMENT = 1.05


class Repository:
    """A repository of one device's, named after it, and what the device is to run."""

    def __init__(self, registry: FakeRegistry, drogue: Drogue, device: str) -> None:
        self.registry, self.drogue, self.device = registry, drogue, device

    def publish(self, *versions: str, tag: str | None = None, **annotations: str) -> Published:
        for version in versions:
            published = publish(
                self.registry.folder,
                self.device,
                version,
                random_bytes(SIZE, (self.device, version)),
                tag,
                **annotations,
            )
        return published

    def unpublish(self, version: str) -> None:
        index = self.registry.folder / self.device / "index.json"
        content = json.loads(index.read_bytes())
        content["manifests"] = [
            entry
            for entry in content["manifests"]
            if entry["annotations"]["org.opencontainers.image.ref.name"] != version
        ]
        index.write_text(json.dumps(content))

    def want(self, version: str | None, image: str | None = None, **spec: Any) -> None:
        container = {"image": image or self.device, **({"version": version} if version else {})}
        self.drogue.put("example", self.device, spec={"firmware": {"container": container, **spec}})

    @property
    def condition(self) -> dict[str, str]:
        reported = self.drogue.reported(self.device)
        found: dict[str, str] = next(entry for entry in reported["conditions"] if entry["type"] == "InSync")
        return found

    def asked(self) -> list[str]:
        return self.registry.asked(self.device)

    def lists(self) -> int:
        return len([line for line in self.asked() if "tags/list" in line])


@pytest.fixture
def repository(registry: FakeRegistry, drogue: Drogue, device: str) -> Repository:
    return Repository(registry, drogue, device)


@pytest.fixture(scope="module")
def patient(drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """A function whose memory outlives each test, so that only what must be fresh is read again."""
    environment = {"MANIFEST_TTL_SECONDS": "3600", "SPEC_TTL_SECONDS": "3600"}
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


@pytest.fixture(scope="module")
def hasty(drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """A function that remembers nothing for long."""
    environment = {"MANIFEST_TTL_SECONDS": "0.5", "SPEC_TTL_SECONDS": "0"}
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


def refusal(function: Function, repository: Repository, status: dict[int, Any] = STATUS) -> tuple[str, str]:
    """Return the outcome of a status for which nothing is sent but WAIT, and the detail."""
    sent = len(blocks(repository.drogue, repository.device))
    answer = post(function, repository.device, status)
    assert answer.status == 422, answer
    assert len(blocks(repository.drogue, repository.device)) == sent
    assert told(repository.drogue, repository.device)[-1][0] == "wait"
    return answer.outcome, answer.reason


# --- Ranges -----------------------------------------------------------------------------------------------------------


def test_the_highest_version_in_a_range_is_sent(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, repository: Repository
) -> None:
    repository.publish("1.2.0", "1.10.0", "1.9.0", "2.0.0", "1.11.0-rc.1")
    repository.publish("0.5", tag="stable")
    repository.want(">=1.2 <2")
    registry.page_tags = 2
    try:
        assert update(hasty, drogue, repository.device) == (
            "1.10.0",
            random_bytes(SIZE, (repository.device, "1.10.0")),
        )
    finally:
        registry.page_tags = 1000
    assert "GET tags/list?n=1000" in repository.asked()
    assert "GET tags/list?last=1.11.0-rc.1&n=2" in repository.asked()
    assert post(hasty, repository.device, in_sync("1.10.0")).outcome == "sync"


@pytest.mark.parametrize(
    ("wanted", "version"),
    [
        ("*", "2.0.0"),
        ("1.x", "1.10.0"),
        ("~1.2", "1.2.0"),
        (">=1.11.0-rc.0 <2", "1.11.0-rc.1"),
        ("1.9.0 || 0.x", "1.9.0"),
    ],
)
def test_a_range_takes_prereleases_only_if_it_names_one(
    hasty: Function, repository: Repository, wanted: str, version: str
) -> None:
    repository.publish("1.2.0", "1.10.0", "1.9.0", "2.0.0", "1.11.0-rc.1", "1.11.0-beta")
    repository.want(wanted)
    assert post(hasty, repository.device).outcome.startswith(f'write; version="{version}"')


def test_a_range_costs_no_request_midway_and_is_read_afresh_for_a_start_and_a_swap(
    patient: Function, repository: Repository
) -> None:
    repository.publish("1.0.0", "1.1.0")
    repository.want("1.x")
    device = repository.device
    assert post(patient, device).outcome.startswith('write; version="1.1.0"; offset=0')
    known = len(repository.asked())
    time.sleep(MOMENT)
    for offset in (512, 1024):
        assert post(patient, device, midway("1.1.0", offset)).outcome.startswith(f'write; version="1.1.0"; {offset=}')
    assert len(repository.asked()) == known
    assert post(patient, device, midway("1.1.0", SIZE)).outcome == 'swap; version="1.1.0"'
    assert repository.asked()[known:] == ["GET tags/list?n=1000", "HEAD manifests/1.1.0"]
    assert post(patient, device, in_sync("1.1.0")).outcome == "sync"
    known = len(repository.asked())
    time.sleep(MOMENT)
    for _ in range(3):
        assert post(patient, device, in_sync("1.1.0")).outcome == "sync"
    assert len(repository.asked()) == known
    # Another device of the range starts: what is known may be old by now.
    repository.publish("1.2.0")
    other = f"{device}-other"
    repository.drogue.put("example", other, spec={"firmware": {"container": {"image": device, "version": "1.x"}}})
    assert post(patient, other).outcome.startswith('write; version="1.2.0"; offset=0')
    assert repository.asked()[known] == "GET tags/list?n=1000"


def test_a_device_is_led_through_the_versions_that_it_must_pass(
    hasty: Function, drogue: Drogue, repository: Repository
) -> None:
    repository.publish("1.1.0", "1.2.0")
    repository.publish("1.3.0", requires=">=1.2")
    repository.publish("1.4.0", "1.5.0", requires=">=1.3")
    repository.want("1.x", downgrades="refuse")
    device, current, course = repository.device, "1.0.0", []
    for _ in range(4):
        answer = post(hasty, device, in_sync(current))
        if answer.outcome == "sync":
            break
        version = answer.outcome.split('"')[1]
        for offset in (512, 1024):
            assert post(hasty, device, {**in_sync(current), 3: {0: version.encode(), 1: offset}}).status == 204
        swap = post(hasty, device, {**in_sync(current), 3: {0: version.encode(), 1: SIZE}})
        assert swap.outcome == f'swap; version="{version}"'
        checksum = Published(version, random_bytes(SIZE, (device, version)), "").checksum
        assert checksum in told(drogue, device)[-1][1].values()
        course.append(version)
        current = version
        # It came up, and has to hear so before its next update.
        for _ in range(3):
            answer = post(hasty, device, in_sync(current))
            if answer.outcome != "sync" or version == "1.5.0":
                break
    assert course == ["1.2.0", "1.3.0", "1.5.0"]
    assert post(hasty, device, in_sync("1.5.0")).outcome == "sync"
    assert drogue.reported(device)["target"] == "1.5.0"


def test_nothing_below_its_version_takes_the_place_of_what_a_device_may_not_take(
    hasty: Function, repository: Repository
) -> None:
    repository.publish("1.1.0")
    repository.publish("2.0.0", requires="<1 || >=1.5")
    repository.want("*")
    outcome, detail = refusal(hasty, repository, in_sync("1.2.0"))
    assert outcome == 'failed; reason="requires"'
    assert detail == (
        "requires: 2.0.0 requires <1 || >=1.5, and the device runs 1.2.0; the next lower, 1.1.0, is below 1.2.0"
    )
    assert repository.condition["reason"] == "requires"
    assert repository.condition["message"] in detail
    assert post(hasty, repository.device, in_sync("1.1.0")).outcome == "sync"
    assert post(hasty, repository.device, in_sync("1.0.0")).outcome.startswith('write; version="1.1.0"')
    assert refusal(hasty, repository, in_sync("blue"))[0] == (
        'failed; reason="2.0.0 requires <1 || >=1.5, but the device\'s version is no semantic version: blue"'
    )


def test_a_tag_in_a_range_names_its_own_version(hasty: Function, repository: Repository) -> None:
    repository.publish("1.0.0", "1.1.0")
    repository.publish("0.9.0", tag="1.2.0")
    repository.want("1.x")
    assert refusal(hasty, repository)[0].startswith('failed; reason="tag 1.2.0 names a firmware of version 0.9.0: ')


def test_a_version_that_is_taken_back_is_not_sent_any_more(hasty: Function, repository: Repository) -> None:
    repository.publish("1.0.0", "1.1.0")
    repository.want("1.x")
    assert post(hasty, repository.device).outcome.startswith('write; version="1.1.0"')
    repository.unpublish("1.1.0")
    time.sleep(MOMENT)
    assert post(hasty, repository.device).outcome.startswith('write; version="1.0.0"')


@pytest.mark.parametrize(("wanted", "reason"), [(">=3", "no tag is a semantic version in >=3")])
def test_a_range_that_nothing_is_in(hasty: Function, repository: Repository, wanted: str, reason: str) -> None:
    repository.publish("1.0.0")
    repository.publish("3.0", tag="v3.0.0")
    repository.want(wanted)
    assert refusal(hasty, repository)[0] == f'failed; reason="{reason}"'


# --- Midway -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_device_that_cannot_begin_anew_finishes_what_was_the_highest(
    hasty: Function, drogue: Drogue, repository: Repository, is_gone: bool
) -> None:
    repository.publish("1.1.0")
    repository.want("1.x", rollout={"midway": "finish"})
    device = repository.device
    assert post(hasty, device).outcome.startswith('write; version="1.1.0"; offset=0')
    repository.publish("1.2.0", requires=">=1.1" if is_gone else "*")
    if is_gone:
        repository.publish("1.3.0")
        repository.unpublish("1.1.0")
    time.sleep(MOMENT)
    assert post(hasty, device, midway("1.1.0", 512)).outcome.startswith('write; version="1.1.0"; offset=512')
    assert drogue.reported(device)["target"] == ("1.3.0" if is_gone else "1.2.0")
    assert repository.condition["reason"] == "finishing"
    assert post(hasty, device, midway("1.1.0", SIZE)).outcome == 'swap; version="1.1.0"'


def test_a_device_that_can_begin_anew_does_so(hasty: Function, repository: Repository) -> None:
    repository.publish("1.1.0")
    repository.want("1.x", rollout={"midway": "restart"})
    assert post(hasty, repository.device).outcome.startswith('write; version="1.1.0"; offset=0')
    repository.publish("1.2.0")
    time.sleep(MOMENT)
    answer = post(hasty, repository.device, midway("1.1.0", 512))
    assert answer.outcome.startswith('write; version="1.2.0"; offset=0')


def test_what_a_device_has_begun_is_not_finished_if_it_does_not_fit_any_more(
    hasty: Function, repository: Repository
) -> None:
    repository.publish("1.1.0", hardware="rev-a")
    repository.want("1.x", hardware="rev-a", rollout={"midway": "finish"})
    assert post(hasty, repository.device).outcome.startswith('write; version="1.1.0"; offset=0')
    repository.publish("1.2.0")
    repository.want("1.x", hardware="rev-b", rollout={"midway": "finish"})
    time.sleep(MOMENT)
    answer = post(hasty, repository.device, midway("1.1.0", 512))
    assert answer.outcome.startswith('write; version="1.2.0"; offset=0')


# --- Rollouts ---------------------------------------------------------------------------------------------------------


def test_a_halt_is_of_the_version_that_devices_are_led_to(
    hasty: Function, drogue: Drogue, repository: Repository
) -> None:
    repository.publish("1.1.0")
    repository.publish("1.2.0", requires=">=1.1")
    drogue.put("example", spec={})
    rollout = {"failed": {"1.1.0": {"count": 1, "devices": ["x"]}}}
    drogue.put("example", spec={}, status={"firmware": {"rollout": rollout}})
    try:
        repository.want("1.x", rollout={"maxFailed": 1})
        assert post(hasty, repository.device, in_sync("1.0.0")).outcome == 'withheld; reason="halted"'
        assert post(hasty, repository.device, in_sync("1.1.0")).outcome.startswith('write; version="1.2.0"')
    finally:
        drogue.put("example", spec={}, status={})


def test_the_highest_version_draws_the_devices_that_are_led_through_others(
    hasty: Function, drogue: Drogue, repository: Repository
) -> None:
    repository.publish("1.1.0")
    repository.publish("1.2.0", requires=">=1.1")
    stages = {"stages": [{"percent": 0}, {"percent": 100}]}
    repository.want("1.x", rollout=stages)
    try:
        drogue.put("example", spec={}, status={"firmware": {"rollout": {"version": "1.1.0", "stage": 1}}})
        assert post(hasty, repository.device, in_sync("1.0.0")).outcome == 'withheld; reason="rollout"'
        drogue.put("example", spec={}, status={"firmware": {"rollout": {"version": "1.2.0", "stage": 1}}})
        assert post(hasty, repository.device, in_sync("1.0.0")).outcome.startswith('write; version="1.1.0"')
    finally:
        drogue.put("example", spec={}, status={})


# --- Fit --------------------------------------------------------------------------------------------------------------


def test_firmware_for_other_hardware_is_not_sent(
    hasty: Function, drogue: Drogue, repository: Repository, device: str
) -> None:
    repository.publish("1.1.0", hardware="rev-a, rev-b")
    repository.want(None, f"{device}:1.1.0")
    assert refusal(hasty, repository) == (
        'failed; reason="hardware"',
        "hardware: 1.1.0 is built for rev-a or rev-b, and the device's hardware is unknown (spec.firmware.hardware is "
        "not set)",
    )
    repository.want(None, f"{device}:1.1.0", hardware="rev-c")
    outcome, detail = refusal(hasty, repository)
    message = "1.1.0 is built for rev-a or rev-b, and the device's hardware is rev-c"
    assert (outcome, detail) == ('failed; reason="hardware"', f"hardware: {message}")
    assert (repository.condition["reason"], repository.condition["message"]) == ("hardware", message)
    assert drogue.reported(device)["target"] == "Unknown"
    line = json.loads(hasty.logged(f'"{device}"', '"outcome": "failed"', message)[-1])
    assert (line["outcome"], line["reason"], line["detail"]) == ("failed", "hardware", message)
    preview = hasty.post(event(device), cbor2.dumps(STATUS), path="/preview").json
    assert (preview["outcome"], preview["reason"], preview["message"]) == ("failed", "hardware", message)
    assert post(hasty, device, in_sync("1.1.0")).outcome == "sync"  # it runs it: nothing is sent
    drogue.put("example", spec={"firmware": {"hardware": "rev-b"}})
    try:
        repository.want(None, f"{device}:1.1.0")
        assert post(hasty, device).outcome.startswith('write; version="1.1.0"')
    finally:
        drogue.put("example", spec={})


def test_a_required_version_counts_without_a_range_too(hasty: Function, repository: Repository, device: str) -> None:
    repository.publish("2.0.0", requires=">=1.5")
    repository.want(None, f"{device}:2.0.0")
    assert refusal(hasty, repository) == (
        'failed; reason="requires"',
        "requires: 2.0.0 requires >=1.5, and the device runs 0.1.0",
    )
    assert post(hasty, device, in_sync("1.5.1")).outcome.startswith('write; version="2.0.0"')


@pytest.mark.parametrize("wanted", [None, "<1.5"])
def test_a_downgrade_may_be_refused(
    hasty: Function, drogue: Drogue, repository: Repository, device: str, wanted: str | None
) -> None:
    repository.publish("1.4.0")
    image = device if wanted else f"{device}:1.4.0"
    drogue.put("example", spec={"firmware": {"downgrades": "refuse"}})
    try:
        repository.want(wanted, image)
        assert refusal(hasty, repository, in_sync("1.10.0")) == (
            'failed; reason="downgrade"',
            "downgrade: 1.4.0 is below 1.10.0, which the device runs, and downgrades is refuse",
        )
        assert refusal(hasty, repository, in_sync("blue"))[0] == (
            'failed; reason="downgrades is refuse, but the device\'s version is no semantic version: blue"'
        )
        assert post(hasty, device, in_sync("1.4.0")).outcome == "sync"
        repository.want(wanted, image, downgrades="allow")
        assert post(hasty, device, in_sync("1.10.0")).outcome.startswith('write; version="1.4.0"')
    finally:
        drogue.put("example", spec={})


def test_a_malformed_range_names_the_key(hasty: Function, repository: Repository) -> None:
    repository.want(">=1.2,<2")
    assert 'spec.firmware.container.version is ">=1.2,<2"; it contains' in refusal(hasty, repository)[1]


def test_a_device_that_came_up_hears_so_although_what_follows_does_not_fit(
    hasty: Function, drogue: Drogue, repository: Repository, device: str
) -> None:
    repository.publish("1.1.0")
    repository.want("1.x")
    for status in (STATUS, midway("1.1.0", 512), midway("1.1.0", 1024), midway("1.1.0", SIZE)):
        assert post(hasty, device, status).status == 204
    repository.publish("1.2.0", hardware="rev-a")
    repository.want(None, f"{device}:1.2.0")
    time.sleep(MOMENT)
    assert post(hasty, device, in_sync("1.1.0")).outcome == "sync"
    assert told(drogue, device)[-1][0] == "sync"
    assert repository.condition["reason"] == "hardware"
    assert repository.condition["message"].startswith("1.2.0 is built for rev-a, and the device's hardware is unknown")


# --- Signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def release() -> Signer:
    return Signer()


@pytest.fixture(scope="module")
def trusting(
    drogue: Drogue, registry: FakeRegistry, release: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    folder = tmp_path_factory.mktemp("trusting")
    (folder / "release.pub").write_bytes(release.public)
    environment = {"FIRMWARE_VERIFY_KEYS": str(folder / "release.pub"), "SPEC_TTL_SECONDS": "0"}
    with running(drogue, registry, folder / "cache", **environment) as function:
        yield function


def test_a_tag_that_nobody_signed_is_an_error_and_not_passed_over(
    trusting: Function, repository: Repository, release: Signer, device: str
) -> None:
    signed = repository.publish("1.1.0")
    Attacher(repository.registry.folder / device).sign(release, signed.digest)
    repository.publish("1.2.0", hardware="another")
    repository.want("<1.2")
    assert post(trusting, device).outcome.startswith('write; version="1.1.0"; offset=0')
    repository.want("<=1.2")
    assert refusal(trusting, repository)[1] == f"{NOT_SIGNED}: no signature"
    assert refusal(trusting, repository, in_sync("1.1.0"))[1] == f"{NOT_SIGNED}: no signature"


def test_a_signed_firmware_does_not_come_back_under_a_higher_tag(
    trusting: Function, repository: Repository, release: Signer, device: str
) -> None:
    signed = repository.publish("1.1.0")
    Attacher(repository.registry.folder / device).sign(release, signed.digest)
    index = repository.registry.folder / device / "index.json"
    index.write_text(index.read_text().replace('"1.1.0"', '"1.9.0"'))
    repository.want("1.x")
    assert refusal(trusting, repository, in_sync("1.2.0"))[1].startswith("tag 1.9.0 names a firmware of version 1.1.0")


@pytest.mark.parametrize("wanted", [None, "1.x"])
def test_a_version_that_only_a_tag_tells_is_none_to_go_by(
    trusting: Function, repository: Repository, release: Signer, device: str, wanted: str | None
) -> None:
    layout = repository.registry.folder / device
    repository.publish("1.9.0")
    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = index["manifests"]
    manifest = json.loads((layout / "blobs" / entry["digest"].replace(":", "/")).read_bytes())
    del manifest["annotations"]["org.opencontainers.image.version"]
    content = json.dumps(manifest).encode()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    (layout / "blobs" / digest.replace(":", "/")).write_bytes(content)
    index["manifests"] = [{**entry, "digest": digest, "size": len(content)}]
    (layout / "index.json").write_text(json.dumps(index))
    Attacher(layout).sign(release, digest)
    repository.want(wanted, device if wanted else f"{device}:1.9.0", downgrades="refuse")
    assert "only its tag gives" in refusal(trusting, repository)[1]
    if wanted is None:
        repository.want(None, f"{device}:1.9.0")
        assert post(trusting, device).outcome.startswith('write; version="1.9.0"')


# --- A real registry --------------------------------------------------------------------------------------------------


def test_a_real_registry_lists_its_tags_by_pages(
    docker_registry: DockerRegistry, drogue: Drogue, device: str, tmp_path: Path
) -> None:
    file, content = tmp_path / "fw.bin", random_bytes(SIZE, device)
    file.write_bytes(content)
    place = f"{docker_registry.host}/{device}"
    for version, requires in (("1.1.0", "*"), ("1.2.0", ">=1.1")):
        words = ["publish", str(file), f"{place}:{version}", "--version", version, "--requires", requires, "--insecure"]
        assert CliRunner().invoke(main, words).exit_code == 0
    manifest = docker_registry.manifest(device, "1.1.0").body
    for number in range(1050):
        docker_registry.put_manifest(device, f"0.{number}.0", MANIFEST, manifest)
    drogue.put("example", device, spec={"firmware": {"container": {"image": device, "version": ">=0.5"}}})
    environment = {**drogue.environment, **docker_registry.environment, "FIRMWARE_CACHE_DIR": str(tmp_path / "cache")}
    with running_function(environment) as function:
        assert update(function, drogue, device) == ("1.1.0", content)
        assert post(function, device, in_sync("1.1.0")).outcome == "sync"
    assert docker_registry.log.count(f'"GET /v2/{device}/tags/list?') >= 2


# --- Hostile and absent lists -----------------------------------------------------------------------------------------


def listing(tags: list[Any], following: str | None = None) -> Response:
    headers = {"Content-Type": "application/json", **({"Link": f'<{following}>; rel="next"'} if following else {})}
    return Response(200, json.dumps({"tags": tags}).encode(), headers)


def test_of_ten_thousand_tags_the_highest_is_sent(hasty: Function, repository: Repository) -> None:
    repository.publish("1.9.0")
    numbers = [f"0.{number}.0" for number in range(9_998)]

    def answer(request: Request) -> Response:
        start = int(request.path.partition("start=")[2] or 0)
        page = [*numbers, "1.9.0", f"2.0.{'9' * 100}"][start : start + 1000]
        following = f"/v2/{repository.device}/tags/list?start={start + 1000}" if start < 9_000 else None
        return listing(page, following)

    repository.registry.answers[f"{repository.device}/tags/list"] = answer
    repository.want("<2")
    assert post(hasty, repository.device).outcome.startswith('write; version="1.9.0"; offset=0')


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda request: listing(["1.0.0"], request.path), "lists them on more than 100 pages"),
        (lambda request: listing([f"1.0.{n}" for n in range(1000)], request.path), "has more than 10000 tags"),
        (lambda _: listing(["1.0.0"], "/v2/other/tags/list"), "the next page of a list is elsewhere"),
        (lambda _: listing(["latest", "v1.0.0", "1.0", 7, None, "1.0.0\n"]), "no tag is a semantic version in *"),
        (lambda _: Response(200, b'{"tags": "1.0.0"}'), "list of tags is no list"),
        (lambda _: Response(200, b"<html>"), "list of tags: not JSON"),
        (lambda _: Response(404), "no repository"),
    ],
    ids=["endless", "too many", "elsewhere", "no versions", "no list", "no JSON", "none"],
)
def test_a_list_that_cannot_be_trusted_chooses_nothing(
    hasty: Function, repository: Repository, answer: Callable[[Request], Response], reason: str
) -> None:
    repository.publish("1.0.0")
    repository.registry.answers[f"{repository.device}/tags/list"] = answer
    repository.want("*")
    assert reason in refusal(hasty, repository)[1]
    asked = repository.lists()
    assert reason in refusal(hasty, repository)[1]
    assert repository.lists() == asked, "a failure is remembered"


def test_without_an_answer_devices_midway_go_on_and_none_starts(hasty: Function, repository: Repository) -> None:
    repository.publish("1.1.0")
    repository.want("1.x")
    assert post(hasty, repository.device).outcome.startswith('write; version="1.1.0"; offset=0')
    time.sleep(MOMENT)
    repository.registry.answers[f"{repository.device}/tags/list"] = lambda _: Response(503)
    answer = post(hasty, repository.device, midway("1.1.0", 512))
    assert answer.outcome.startswith('write; version="1.1.0"; offset=512')
    swap = post(hasty, repository.device, midway("1.1.0", SIZE))
    assert (swap.status, swap.headers["retry-after"]) == (503, "1")
    assert post(hasty, repository.device).status == 503
    del repository.registry.answers[f"{repository.device}/tags/list"]
    time.sleep(MOMENT)
    assert post(hasty, repository.device, midway("1.1.0", SIZE)).outcome == 'swap; version="1.1.0"'


def test_look_ups_of_lists_are_counted(drogue: Drogue, repository: Repository, tmp_path: Path) -> None:
    repository.publish("1.1.0")
    repository.want("1.x")
    with running(drogue, repository.registry, tmp_path, MANIFEST_TTL_SECONDS="3600") as function:
        for status in (STATUS, midway("1.1.0", 512)):
            assert post(function, repository.device, status).outcome.startswith("write")
        text = function.request("GET", "/metrics").body.decode()
    counts = {
        line.split('result="')[1].split('"')[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith('fleet_cache_requests_total{cache="manifest"')
    }
    assert counts["miss"] == 2  # the list, and the manifest
    assert counts["hit"] >= 2
