"""Firmware that a hawkBit assigns: `spec.firmware.hawkbit`."""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fleet_fn.cli.main import main
from tests.support.ddi import Action, FakeHawkbit, module
from tests.support.ddi.fake import TOKEN, answering
from tests.support.ddi.model import File, Module
from tests.support.drogue import Drogue
from tests.support.firmware import random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.http import Request, Response, Server, closed_port
from tests.support.statuses import blocks, in_sync, midway, post, told, update

SIZE = 3200
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def hawkbit() -> Iterator[FakeHawkbit]:
    with FakeHawkbit() as hawkbit:
        yield hawkbit


@pytest.fixture(scope="module")
def settings(drogue: Drogue, hawkbit: FakeHawkbit, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Those of a function that gets all firmware from hawkBit, and remembers what it read."""
    cache = tmp_path_factory.mktemp("cache")
    return {**drogue.environment, **hawkbit.environment, "FIRMWARE_CACHE_DIR": str(cache)}


@pytest.fixture(scope="module")
def function(settings: dict[str, str]) -> Iterator[Function]:
    with running(settings) as function:
        yield function


@pytest.fixture(scope="module")
def eager(settings: dict[str, str]) -> Iterator[Function]:
    """A function that asks hawkBit, and the cloud, with each event."""
    with running(settings | {"POLL_SECONDS": "0", "SPEC_TTL_SECONDS": "0"}) as function:
        yield function


@pytest.fixture
def managed(drogue: Drogue) -> str:
    """A device that hawkBit knows by the name of application and device."""
    name = f"bit-{next(_numbers)}"
    drogue.put("example", spec={})
    drogue.put("example", name, spec={"firmware": {"hawkbit": {"controller": "{application}.{device}"}}})
    return name


def controller(device: str) -> str:
    return f"example.{device}"


def content(version: str = "1.0", size: int = SIZE) -> bytes:
    return random_bytes(size, ("hawkbit", version))


def assign(hawkbit: FakeHawkbit, device: str, version: str = "1.0", **options: Any) -> Action:
    return hawkbit.assign(controller(device), module(version, content(version)), **options)


def failed(answer: Answer) -> str:
    assert (answer.status, answer.json["outcome"]) == (422, "failed"), answer.body
    return answer.reason


def details(action: Action) -> str:
    return "\n".join(message for _, messages in action.statuses for message in messages)


# --- A whole update ---------------------------------------------------------------------------------------------------


def test_a_device_goes_through_a_whole_update(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    assert update(function, drogue, managed) == ("1.0", content())
    assert told(drogue, managed)[-1][1][2] == hashlib.sha256(content()).digest()
    assert post(function, managed, in_sync("1.0")).outcome == "sync"
    assert (action.status, action.active) == ("finished", False)
    assert action.told == ["download", *["proceeding"] * 6, "downloaded", "finished"]
    assert f"{managed} runs 1.0" in details(action)
    assert hawkbit.targets[controller(managed)].attributes == {
        "application": "example",
        "device": managed,
        "version": "0.1.0",
    }


def test_the_base_is_read_at_the_start_and_at_the_end_and_never_per_block(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    post(function, managed)
    started = len(hawkbit.asked(controller(managed)))
    for offset in range(512, SIZE, 512):
        assert post(function, managed, midway("1.0", offset)).outcome.startswith("write")
    asked = hawkbit.asked(controller(managed))[started:]
    assert set(asked) == {f"POST deploymentBase/{action.id}/feedback"}
    time.sleep(1.1)  # what was read within the last second would still do
    assert post(function, managed, midway("1.0", SIZE)).outcome.startswith("swap")
    assert post(function, managed, in_sync("1.0")).outcome == "sync"
    reads = [each for each in hawkbit.asked(controller(managed)) if each.startswith("GET")]
    bases, documents = reads.count("GET "), reads.count(f"GET deploymentBase/{action.id}")
    assert (bases, documents) == (2, 2)  # its link has changed: hawkBit counts the first reading as a change
    before = len(hawkbit.requests)
    commands = len(drogue.commands_for(managed))
    for _ in range(5):
        assert post(function, managed, in_sync("1.0")).outcome == "sync"
    assert len(hawkbit.requests) == before
    assert len(drogue.commands_for(managed)) == commands + 5


def test_another_process_goes_on_by_the_record(
    settings: dict[str, str], drogue: Drogue, hawkbit: FakeHawkbit, managed: str, tmp_path: Path
) -> None:
    action = assign(hawkbit, managed)
    with running(settings) as first:
        post(first, managed)
    hawkbits = drogue.reported(managed)["update"]["origin"]["hawkbit"]
    path = f"/DEFAULT/controller/v1/{controller(managed)}/softwaremodules/{action.modules[0].id}/artifacts/firmware.bin"
    assert hawkbits == {"controller": controller(managed), "action": action.id, "size": SIZE, "path": path}
    before = len(hawkbit.asked(controller(managed)))
    with running(settings | {"FIRMWARE_CACHE_DIR": str(tmp_path / "empty")}) as second:
        assert post(second, managed, midway("1.0", 512)).outcome.startswith('write; version="1.0"; offset=512')
    assert blocks(drogue, managed)[-1] == (512, content()[512:1024])
    asked = hawkbit.asked(controller(managed))[before:]
    assert [each for each in asked if not each.endswith("feedback")] == [
        f"GET {path.removeprefix(f'/DEFAULT/controller/v1/{controller(managed)}/')}"
    ]


def test_bytes_are_fetched_once_for_all_devices(function: Function, drogue: Drogue, hawkbit: FakeHawkbit) -> None:
    firmware = module("7.0", content("7.0"))
    for name in ("fleet-1", "fleet-2", "fleet-3"):
        drogue.put("example", name, spec={"firmware": {"hawkbit": {"controller": name}}})
        hawkbit.assign(name, firmware)
        assert post(function, name).outcome.startswith("write")
    downloads = [r for r in hawkbit.requests if f"/softwaremodules/{firmware.id}/" in r.path]
    assert len(downloads) == 1
    assert downloads[0].headers["Range"] == "bytes=0-"


def test_the_applications_spec_serves_a_fleet(function: Function, drogue: Drogue, hawkbit: FakeHawkbit) -> None:
    drogue.put("plant-1", spec={"firmware": {"hawkbit": {"controller": "{application}/{device}"}}})
    drogue.put("plant-1", "a+b", spec={})
    hawkbit.assign("plant-1/a+b", module("1", content()))
    assert function.post(event("a+b", "plant-1"), b'{"version": "0"}').outcome.startswith("write")
    paths = [request.path for request in hawkbit.requests if "plant" in request.path]
    assert paths[0] == "/DEFAULT/controller/v1/plant-1%2Fa%2Bb"


# --- What hawkBit says ------------------------------------------------------------------------------------------------


def test_a_device_without_an_assignment_is_unmanaged(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    assert post(function, managed).outcome == 'withheld; reason="unmanaged"'
    assert told(drogue, managed)[-1][0] == "sync"
    assert controller(managed) in hawkbit.targets


def test_the_installed_version_is_in_sync(settings: dict[str, str], hawkbit: FakeHawkbit, managed: str) -> None:
    action = assign(hawkbit, managed)
    with running(settings) as first:
        assert post(first, managed, in_sync("1.0")).outcome == "sync"
    assert action.told == ["finished"]
    with running(settings) as second:
        assert post(second, managed, in_sync("1.0")).outcome == "sync"
        assert post(second, managed, in_sync("0.9")).outcome == 'withheld; reason="unmanaged"'
    assert action.told == ["finished"]


def test_confirmation_is_left_to_others(eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str) -> None:
    action = assign(hawkbit, managed, status="wait_for_confirmation")
    assert post(eager, managed).outcome == 'withheld; reason="approval"'
    assert drogue.reported(managed)["target"] == "1.0"
    assert not any("confirmationBase" in each for each in hawkbit.asked(controller(managed)) if "POST" in each)
    hawkbit.confirm(action)
    assert post(eager, managed).outcome.startswith("write")


@pytest.mark.parametrize("options", [{"type": "downloadonly"}, {"window": "unavailable"}])
def test_only_swap_waits_for_the_window(
    eager: Function, hawkbit: FakeHawkbit, managed: str, options: dict[str, str]
) -> None:
    action = assign(hawkbit, managed, **options)
    assert post(eager, managed).outcome.startswith("write")
    assert post(eager, managed, midway("1.0", 512)).outcome.startswith("write")
    assert post(eager, managed, midway("1.0", SIZE)).outcome == 'withheld; reason="window"'
    assert action.told[-1] == "downloaded"
    if action.window:
        hawkbit.set_window(action, "available")
        assert post(eager, managed, midway("1.0", SIZE)).outcome.startswith("swap")
    else:
        assert not action.active


def test_our_own_policy_still_holds(eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str) -> None:
    spec = {"firmware": {"hawkbit": {"controller": controller(managed)}, "rollout": {"paused": True}}}
    drogue.put("example", managed, spec=spec)
    action = assign(hawkbit, managed)
    assert post(eager, managed).outcome == 'withheld; reason="paused"'
    assert action.told == ["scheduled"]
    assert "updates are paused" in details(action)


def test_an_assignment_that_moves_midway_restarts(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    first = assign(hawkbit, managed)
    post(eager, managed)
    second = assign(hawkbit, managed, "2.0")
    assert post(eager, managed, midway("1.0", 512)).outcome == 'withheld; reason="unmanaged"'
    assert (first.status, first.active) == ("canceled", False)
    assert post(eager, managed, midway("1.0", 512)).outcome.startswith('write; version="2.0"; offset=0')
    assert drogue.reported(managed)["update"]["origin"]["hawkbit"]["action"] == second.id


# --- Cancellation -----------------------------------------------------------------------------------------------------


def test_a_cancellation_before_swap_is_accepted(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    post(eager, managed)
    hawkbit.cancel(action)
    assert post(eager, managed, midway("1.0", SIZE)).outcome == 'withheld; reason="unmanaged"'
    assert (action.status, action.active) == ("canceled", False)
    assert told(drogue, managed)[-1][1][0] == b"0.1.0"


def test_swap_rests_on_what_hawkbit_says_now(function: Function, hawkbit: FakeHawkbit, managed: str) -> None:
    action = assign(hawkbit, managed)
    post(function, managed)
    hawkbit.cancel(action)
    assert post(function, managed, midway("1.0", 512)).outcome.startswith("write"), "POLL_SECONDS have not passed"
    time.sleep(1.1)  # what was read within the last second would still do
    assert post(function, managed, midway("1.0", SIZE)).outcome == 'withheld; reason="unmanaged"'
    assert (action.status, action.active) == ("canceled", False)


def test_a_cancellation_after_swap_is_rejected(eager: Function, hawkbit: FakeHawkbit, managed: str) -> None:
    action = assign(hawkbit, managed)
    post(eager, managed)
    assert post(eager, managed, midway("1.0", SIZE)).outcome.startswith("swap")
    hawkbit.cancel(action)
    assert post(eager, managed, midway("1.0", SIZE)).outcome.startswith("swap")
    assert action.status in ("running", "retrieved")
    assert "cancel_rejected" in action.told
    assert post(eager, managed, in_sync("1.0")).outcome == "sync"
    assert (action.status, action.active) == ("finished", False)


def test_a_device_that_comes_up_during_a_cancellation_closes_the_action(
    eager: Function, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    post(eager, managed)
    post(eager, managed, midway("1.0", SIZE))
    hawkbit.cancel(action)
    assert post(eager, managed, in_sync("1.0")).outcome == "sync"
    assert action.told[-2:] == ["cancel_rejected", "finished"]


def test_a_device_that_comes_back_during_a_cancellation_accepts_it(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    post(eager, managed)
    post(eager, managed, midway("1.0", SIZE))
    hawkbit.cancel(action)
    assert post(eager, managed).outcome == 'withheld; reason="backoff"'
    assert drogue.reported(managed)["update"]["attempts"] == 1
    assert (action.status, action.active) == ("canceled", False)
    assert post(eager, managed).outcome == 'withheld; reason="unmanaged"'


# --- Failed updates ---------------------------------------------------------------------------------------------------


def fail_once(function: Function, device: str) -> Answer:
    """Has a device swap, and come back with its old version."""
    assert post(function, device).outcome.startswith("write")
    assert post(function, device, midway("1.0", SIZE)).outcome.startswith("swap")
    return post(function, device)


def test_attempts_that_run_out_close_the_action(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    spec = {"firmware": {"hawkbit": {"controller": controller(managed)}, "maxAttempts": 2}}
    drogue.put("example", managed, spec=spec)
    action = assign(hawkbit, managed)
    assert fail_once(eager, managed).outcome == 'withheld; reason="backoff"'
    assert "attempts: 1" in details(action)
    assert action.active
    assert fail_once(eager, managed).outcome == 'withheld; reason="attempts"'
    assert (action.status, action.active) == ("error", False)
    assert "1.0 did not come up, attempts: 2" in details(action)
    assert post(eager, managed).outcome == 'withheld; reason="unmanaged"'
    again = assign(hawkbit, managed)
    assert post(eager, managed).outcome.startswith("write"), "an assignment made anew starts afresh"
    assert again.told == ["download"]


# --- Feedback ---------------------------------------------------------------------------------------------------------


def test_success_is_told_again_as_long_as_the_action_is_open(
    eager: Function, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    with answering(hawkbit, f"deploymentBase/{action.id}/feedback", lambda _: Response(422)):
        assert post(eager, managed, in_sync("1.0")).outcome == "sync"
    assert action.active
    assert post(eager, managed, in_sync("1.0")).outcome == "sync"
    assert not action.active


@pytest.mark.parametrize("status", [429, 403, 404, 410])
def test_refused_feedback_is_not_repeated(function: Function, hawkbit: FakeHawkbit, managed: str, status: int) -> None:
    action = assign(hawkbit, managed)
    path = f"deploymentBase/{action.id}/feedback"
    with answering(hawkbit, path, lambda _: Response(status, headers={"Retry-After": "600"})):
        for offset in range(0, SIZE, 512):
            answer = post(function, managed, midway("1.0", offset))
            assert (answer.status, answer.outcome[:5]) == (204, "write")
    assert hawkbit.asked(controller(managed)).count(f"POST {path}") == 1
    assert len(function.logged("takes no more feedback", managed)) == 1


def test_a_device_that_begins_for_ever_stays_far_below_the_quota(
    function: Function, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)
    for _ in range(60):
        post(function, managed)
        for offset in (512, 1024, 1536, 2048):
            post(function, managed, midway("1.0", offset))
    assert len(action.statuses) < 150
    post(function, managed, midway("1.0", SIZE))
    assert post(function, managed, in_sync("1.0")).outcome == "sync"
    assert not action.active


def test_a_hanging_feedback_changes_no_answer(
    settings: dict[str, str], drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed)

    def hang(request: Request) -> None:
        request.connection.recv(1)

    with answering(hawkbit, "feedback", hang), running(settings) as function:
        assert post(function, managed).outcome.startswith("write")
        assert post(function, managed, midway("1.0", 1024)).outcome.startswith("write")
        assert hawkbit.asked(controller(managed)).count(f"POST deploymentBase/{action.id}/feedback") == 1
    assert len(drogue.commands_for(managed)) == 2


# --- Artifacts --------------------------------------------------------------------------------------------------------


def test_an_artifact_without_sha256_is_refused(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = hawkbit.assign(controller(managed), Module("os", "1", (File("f", content(), has_sha256=False),)))
    reason = f"DDI server: action {action.id}: artifact os/f has no SHA-256, so it is not verifiable"
    assert failed(post(function, managed)) == reason
    assert not blocks(drogue, managed)


def test_several_artifacts_have_to_be_chosen_from(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    files = (File("firmware.bin", content()), File("firmware.sig", b"s"))
    action = hawkbit.assign(controller(managed), Module("os", "1.0", files), module("9", b"app", part="application"))
    assert failed(post(eager, managed)) == (
        f"DDI server: action {action.id} has 3 artifacts, os/firmware.bin, os/firmware.sig, bApp/firmware.bin: choose "
        "one by spec.firmware.hawkbit.part and file"
    )
    chosen = {"controller": controller(managed), "part": "os", "file": "firmware.bin"}
    drogue.put("example", managed, spec={"firmware": {"hawkbit": chosen}})
    assert post(eager, managed).outcome.startswith('write; version="1.0"')
    drogue.put("example", managed, spec={"firmware": {"hawkbit": {**chosen, "part": "jvm"}}})
    assert "has no artifact jvm/firmware.bin, only os/firmware.bin, " in failed(post(eager, managed))


def test_other_bytes_than_announced_are_never_served(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    action = assign(hawkbit, managed, "damaged")
    wrong = content("another")
    with answering(hawkbit, "softwaremodules", lambda _: Response(200, wrong)):
        assert failed(post(function, managed)).startswith("digest mismatch")
    with answering(hawkbit, "softwaremodules", lambda _: Response(200, wrong[:-1])):
        assert "size mismatch" in failed(post(function, managed))
    assert not blocks(drogue, managed)
    assert action.active


def test_metadata_of_the_module_guards_hardware(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    firmware = module("1.0", content(), metadata={"io.drogue.firmware.hardware": "rev-b"})
    hawkbit.assign(controller(managed), firmware)
    assert failed(post(eager, managed)).startswith("hardware")
    spec = {"firmware": {"hawkbit": {"controller": controller(managed)}, "hardware": "rev-b"}}
    drogue.put("example", managed, spec=spec)
    assert post(eager, managed).outcome.startswith("write")


# --- Where requests go ------------------------------------------------------------------------------------------------


def test_the_token_is_not_sent_elsewhere(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    bytes_of = content("elsewhere")
    with Server(lambda _: Response(200, bytes_of)) as cdn:
        file = File("f", bytes_of, link=f"{cdn.url}/blob?signature=s3cr3t")
        hawkbit.assign(controller(managed), Module("os", "1.0", (file,)))
        assert post(function, managed).outcome.startswith("write")
        assert [request.headers.get("Authorization") for request in cdn.requests] == [None]
    assert "path" not in drogue.reported(managed)["update"]["origin"]["hawkbit"]
    assert "s3cr3t" not in "".join(function.log)


def test_an_artifact_elsewhere_is_found_again_by_another_process(
    settings: dict[str, str], hawkbit: FakeHawkbit, managed: str, tmp_path: Path
) -> None:
    bytes_of = content("elsewhere again")
    with Server(lambda _: Response(200, bytes_of)) as cdn:
        hawkbit.assign(controller(managed), Module("os", "1.0", (File("f", bytes_of, link=f"{cdn.url}/blob"),)))
        with running(settings) as first:
            assert post(first, managed).outcome.startswith("write")
        with running(settings | {"FIRMWARE_CACHE_DIR": str(tmp_path / "empty")}) as second:
            assert post(second, managed, midway("1.0", 512)).outcome.startswith('write; version="1.0"; offset=512')


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/DEFAULT/controller/v1/other", "DDI server, sent to 127.0.0.1: answered 401 for an artifact"),
        ("http://169.254.169.254/a", "DDI server, sent to 169.254.169.254: no address that requests may go to"),
    ],
)
def test_redirects_get_no_token(
    function: Function, hawkbit: FakeHawkbit, managed: str, location: str, reason: str
) -> None:
    assign(hawkbit, managed, f"r{len(location)}")
    before = len(hawkbit.requests)
    with answering(hawkbit, "softwaremodules", lambda _: Response(302, headers={"Location": location})):
        assert failed(post(function, managed)) == reason
    without = [request.path for request in hawkbit.requests[before:] if "Authorization" not in request.headers]
    assert set(without) <= {location}


@pytest.mark.parametrize("address", ["http://hawkbit.internal:8080", "https://hawkbit.example.com"])
def test_a_server_behind_a_proxy_may_have_another_address_in_its_links(
    settings: dict[str, str], hawkbit: FakeHawkbit, managed: str, tmp_path: Path, address: str
) -> None:
    hawkbit.assign(controller(managed), module("1.0", content(address)))
    hawkbit.links_to = address
    try:
        with running(settings | {"FIRMWARE_CACHE_DIR": str(tmp_path)}) as function:
            assert post(function, managed).outcome.startswith("write")
    finally:
        hawkbit.links_to = ""


def test_links_of_another_server_are_named(eager: Function, hawkbit: FakeHawkbit, managed: str) -> None:
    base = b'{"_links": {"deploymentBase": {"href": "http://hawkbit.example.com/other/deploymentBase/1"}}}'
    with answering(hawkbit, "", lambda _: Response(200, base)):
        assert failed(post(eager, managed)) == (
            "DDI server: its links lead to hawkbit.example.com, where the token is not sent; "
            "set HAWKBIT_URL to the URL that the server has in its links"
        )


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_a_wrong_token_is_named(settings: dict[str, str], managed: str) -> None:
    with running(settings | {"HAWKBIT_GATEWAY_TOKEN": "an0ther"}) as function:
        reason = failed(post(function, managed))
        assert reason == (
            "DDI server: 401 (wrong HAWKBIT_GATEWAY_TOKEN, or gateway tokens are off for the tenant, or wrong "
            "HAWKBIT_TENANT)"
        )
        assert "an0ther" not in "".join(function.log)


def test_a_wrong_tenant_is_named(settings: dict[str, str], managed: str) -> None:
    with running(settings | {"HAWKBIT_TENANT": "other"}) as function:
        assert "wrong HAWKBIT_TENANT" in failed(post(function, managed))


def test_a_server_that_is_down_is_tried_again(settings: dict[str, str], hawkbit: FakeHawkbit, managed: str) -> None:
    with closed_port() as port, running(settings | {"HAWKBIT_URL": f"http://127.0.0.1:{port}"}) as function:
        answer = post(function, managed)
        assert (answer.status, answer.reason) == (503, "DDI server: connection refused")
    with answering(hawkbit, "", lambda _: Response(502)), running(settings) as function:
        assert post(function, managed).status == 503


def test_blocks_go_on_while_the_server_is_down(
    settings: dict[str, str], drogue: Drogue, hawkbit: FakeHawkbit, managed: str
) -> None:
    assign(hawkbit, managed)
    with running(settings | {"POLL_SECONDS": "0"}) as function:
        post(function, managed)
        with answering(hawkbit, "", lambda _: Response(503)):
            assert post(function, managed, midway("1.0", 512)).outcome.startswith('write; version="1.0"; offset=512')
            time.sleep(1.1)  # what was read within the last second would still do
            assert post(function, managed, midway("1.0", SIZE)).status == 503, "SWAP asks the server"
    assert [variant for variant, _ in told(drogue, managed)] == ["write", "write"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"_links": []}',
        b'{"_links": {"deploymentBase": {"href": 1}}}',
        b'{"_links": {"deploymentBase": {"href": "http://[::1/"}}}',
        b'{"_links": {"deploymentBase": {"href": "file:///etc/passwd"}}}',
        b'{"_links": {"deploymentBase": {"href": "http://169.254.169.254/latest"}}}',
    ],
)
def test_a_malformed_base_fails(eager: Function, hawkbit: FakeHawkbit, managed: str, body: bytes) -> None:
    with answering(hawkbit, "", lambda _: Response(200, body)):
        assert failed(post(eager, managed)).startswith("DDI server: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("download", "maybe"),
        ("update", None),
        ("maintenanceWindow", "ajar"),
        ("chunks", None),
        ("chunks", [{"part": "os", "version": "", "name": "x", "artifacts": []}]),
        ("chunks", [{"part": "os", "version": "1", "name": "x", "artifacts": [{"filename": "f", "size": -1}]}]),
        ("chunks", [{"part": "os", "version": "1", "name": "x", "artifacts": [{"filename": "f", "size": "3"}]}]),
        ("chunks", []),
    ],
)
def test_a_malformed_deployment_fails(
    eager: Function, drogue: Drogue, hawkbit: FakeHawkbit, managed: str, key: str, value: object
) -> None:
    action = assign(hawkbit, managed)
    document = {"id": action.id, "deployment": {**action.document("http://x"), key: value}}
    with answering(hawkbit, "deploymentBase", lambda _: Response(200, json.dumps(document).encode())):
        assert failed(post(eager, managed)).startswith("DDI server: ")
    assert not blocks(drogue, managed)


def test_without_a_server_the_source_is_unsupported(environment: dict[str, str], managed: str) -> None:
    with running(environment) as function:
        answer = post(function, managed)
        assert answer.json["detail"].startswith("unsupported-source")
        assert "HAWKBIT_URL is not set" in answer.json["detail"]


def test_previews_change_nothing(function: Function, hawkbit: FakeHawkbit, managed: str) -> None:
    action = assign(hawkbit, managed)
    status = b'{"version": "0.1.0"}'
    preview = function.post(event(managed), status, path="/preview").json
    assert (preview["outcome"], preview["command"]["version"]) == ("write", "1.0")
    assert action.told == []
    assert all(each.startswith("GET") for each in hawkbit.asked(controller(managed)))


def test_requests_are_counted(function: Function, hawkbit: FakeHawkbit, managed: str) -> None:
    assign(hawkbit, managed)
    post(function, managed)
    metrics = function.request("GET", "/metrics").body.decode()
    assert 'fleet_upstream_requests_total{status="200",upstream="hawkbit"}' in metrics
    assert TOKEN not in metrics


# --- inspect ----------------------------------------------------------------------------------------------------------


def inspect(hawkbit: FakeHawkbit, name: str, **environment: str) -> tuple[int, str]:
    """Exit code and output of `inspect hawkbit:NAME`."""
    found = CliRunner().invoke(main, ["inspect", f"hawkbit:{name}"], env={**hawkbit.environment, **environment})
    return found.exit_code, found.output


def test_inspect_shows_what_a_controller_is_assigned(hawkbit: FakeHawkbit, managed: str) -> None:
    name = controller(managed)
    assert inspect(hawkbit, name) == (0, "assigned   nothing\n")
    action = assign(hawkbit, managed, window="unavailable")
    code, output = inspect(hawkbit, name)
    assert code == 0
    assert f"assigned   deployment, action {action.id}\n" in output
    assert "held       window: hawkBit does not allow the installation yet\n" in output
    assert f"sha256     {hashlib.sha256(content()).hexdigest()} (verified)\n" in output
    hawkbit.cancel(action)
    assert inspect(hawkbit, name) == (0, f"assigned   cancellation, action {action.id}\n")


def test_inspect_fails_as_the_function_does(hawkbit: FakeHawkbit, managed: str) -> None:
    hawkbit.assign(controller(managed), Module("os", "1", (File("f", content(), has_sha256=False),)))
    code, output = inspect(hawkbit, controller(managed))
    assert code == 1
    assert "has no SHA-256" in output
    assert inspect(hawkbit, controller(managed), HAWKBIT_GATEWAY_TOKEN="wr0ng")[0] == 1
    code, output = inspect(hawkbit, controller(managed), HAWKBIT_URL="", HAWKBIT_GATEWAY_TOKEN="")
    assert (code, output) == (
        2,
        "inspect: HAWKBIT_URL is not set. Set it to the base URL of hawkBit, e.g. https://hawkbit.example.com\n",
    )
