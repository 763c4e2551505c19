"""Changes that would not be those that the user was shown: nothing is written then."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet_fn.console import checks
from fleet_fn.errors import TransientError
from fleet_fn.fleet.rollout.devices import edit_devices
from fleet_fn.fleet.rollout.starting import check_firmware
from tests.support.console import Form, browsing, environment_of
from tests.support.firmware import publish, random_bytes
from tests.support.shop import Shop, wait_for_job

ROLLOUT = "/applications/shop/rollout"
SELECTED = f"{ROLLOUT}/start?image=pump:1.1.0&state=failed"


def labels(shop: Shop, device: str) -> Any:
    return shop.read(device)["metadata"].get("labels") or {}


def test_no_device_is_labeled_for_a_change_that_was_not_shown(shop: Shop) -> None:
    form = Form(shop.browser.wait(SELECTED)).fields
    found = shop.read()
    found["spec"]["firmware"]["container"]["image"] = "pump:0.9.0"
    shop.write(found)
    response = shop.browser.post(SELECTED, form)
    assert response.status_code == 409
    assert "Nothing was changed" in response.text
    assert labels(shop, "broken1") == {}
    assert shop.browser.parts.jobs.last("shop") is None


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("state=broken", "no state"),
        ("mode=everyone", "mode"),
        ("mode=stages&stage.0.percent=1&stage.0.approval=true&stage.1.percent=100", "approval"),
        ("mode=stages&stage.0.percent=1&stage.100.percent=100", "100 stages"),
    ],
)
def test_a_choice_that_is_not_known_does_not_count_as_none(shop: Shop, query: str, problem: str) -> None:
    response = shop.browser.get(f"{ROLLOUT}/start?image=pump:1.1.0&{query}")
    assert response.status_code == 400
    assert problem in response.text


def test_a_tag_that_moves_after_the_preview_is_a_conflict(shop: Shop, tmp_path: Path) -> None:
    path = f"{ROLLOUT}/start?image=pump:1.1.0"
    form = Form(shop.browser.wait(path)).fields
    moved = publish(tmp_path, "pump", "1.1.0", random_bytes(4096, "another"))
    response = shop.browser.post(path, form)
    assert response.status_code == 409
    assert moved.checksum.hex() in response.text
    assert shop.firmware == {"container": {"image": "pump:1.0.0"}}
    assert shop.browser.post(path, Form(response.text).fields).status_code == 303


def test_a_retry_to_another_version_than_shown_is_a_conflict(shop: Shop) -> None:
    path = f"{ROLLOUT}/retry?device=broken1"
    form = Form(shop.browser.get(path).text).fields
    found = shop.read("broken1")
    found["status"]["firmware"]["target"] = "2.0.0"
    shop.write(found, "broken1")
    response = shop.browser.post(path, form)
    assert response.status_code == 409
    assert "will try 2.0.0 again" in response.text
    assert "firmware" not in shop.read("broken1").get("spec", {})
    assert shop.browser.post(path, Form(response.text).fields).status_code == 303


def test_a_retry_of_all_to_other_versions_than_shown_is_a_conflict(shop: Shop) -> None:
    form = Form(shop.browser.wait(f"{ROLLOUT}/retry")).fields
    snapshot = shop.browser.parts.snapshots
    found = shop.read("broken2")
    found["status"]["firmware"]["target"] = "2.0.0"
    shop.write(found, "broken2")
    snapshot.put("shop", shop.read())  # has the devices read soon
    shop.browser.wait("/applications/shop", lambda html: "2.0.0" in html)
    assert shop.browser.post(f"{ROLLOUT}/retry", form).status_code == 409
    assert "firmware" not in shop.read("broken1").get("spec", {})


def test_a_form_that_is_sent_twice_is_one_change(shop: Shop) -> None:
    path = f"{ROLLOUT}/retry?device=broken1"
    form = Form(shop.browser.get(path).text).fields
    assert shop.browser.post(path, form).status_code == 303
    version = shop.read("broken1")["metadata"]["resourceVersion"]
    assert shop.browser.post(path, form).status_code == 409
    assert shop.read("broken1")["metadata"]["resourceVersion"] == version
    assert shop.event()["action"] == "retry"  # one, and no other


def test_devices_that_were_changed_before_an_outage_are_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*arguments: Any) -> Iterator[Any]:
        yield next(iter(edit_devices(*arguments)))
        raise TransientError("device registry: no answer in time")

    form = Form(shop.browser.wait(f"{ROLLOUT}/retry")).fields
    monkeypatch.setattr("fleet_fn.console.views.retry.edit_devices", break_off)
    assert shop.browser.post(f"{ROLLOUT}/retry", form).status_code == 303
    job = shop.browser.parts.jobs.last("shop")
    assert job is not None
    shop.browser.wait("/applications/shop", lambda _: job.ended is not None)
    assert job.has_failed
    assert job.result == "device registry: no answer in time; 1 of 2 devices will try again"
    assert shop.event()["change"]["devices"] == ["broken1"]


def test_a_confirmed_change_that_cannot_be_checked_yet_is_shown_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{ROLLOUT}/start?image=pump:1.1.0"
    form = Form(shop.browser.wait(path)).fields
    release = threading.Event()

    def check_slowly(*arguments: Any) -> Any:
        release.wait(20)
        return check_firmware(*arguments)

    monkeypatch.setattr(checks, "check_firmware", check_slowly)
    monkeypatch.setattr(checks, "_CONFIRM_SECONDS", 0.1)
    response = shop.browser.post(path, form)
    release.set()
    assert (response.status_code, response.location) == (303, path)
    page = shop.browser.wait(path)
    assert "Nothing was changed yet" in page
    assert shop.firmware == {"container": {"image": "pump:1.0.0"}}


@pytest.mark.parametrize("behavior", ["hang", "answer-500", "hang-up", "garbage"])
def test_a_sink_that_fails_keeps_no_change_from_being_made(
    shop: Shop, behavior: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet_fn.fleet.rollout.session._SINK_SECONDS", 0.5)
    url = shop.sink.url(behavior)
    with browsing(environment_of(shop.sandbox.url, K_SINK=url)) as browser:
        response = browser.confirm(f"{ROLLOUT}/pause")
        assert response.status_code == 303
        assert "no event of it was sent" in browser.get(response.location).text
    assert shop.firmware["rollout"] == {"paused": True}


def test_a_malformed_application_is_no_unknown_one(shop: Shop) -> None:
    shop.set_policy(percent="many")
    for page in (f"{ROLLOUT}/start", f"{ROLLOUT}/start?image=pump:1.1.0&mode=percent", f"{ROLLOUT}/pause"):
        response = shop.browser.get(page)
        assert response.status_code == 200
        assert "rollout.percent" in response.text


APPLICATION: Any = SimpleNamespace(name="shop", firmware={})


def checking(monkeypatch: pytest.MonkeyPatch, check: Callable[..., Any]) -> Callable[[float], Any]:
    """Return a function that asks for a check at a time."""
    monkeypatch.setattr(checks, "check_firmware", check)
    now = [0.0]
    found = checks.Checks(lambda: now[0])

    def ask(time: float) -> Any:
        now[0] = time
        return found.check(APPLICATION, APPLICATION, "pump:1.1.0")

    return ask


def test_a_check_is_as_old_as_its_end_and_not_as_its_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    results, release, ended = iter(["old", "new"]), threading.Event(), threading.Event()

    def check(*_: object) -> Any:
        release.wait(20)
        ended.set()
        return next(results)

    monkeypatch.setattr(checks, "_WAIT_SECONDS", 0.1)
    ask = checking(monkeypatch, check)
    assert ask(0) is None  # it goes on, and the user leaves
    release.set()
    assert ended.wait(20)
    monkeypatch.setattr(checks, "_WAIT_SECONDS", 20)
    assert ask(3600) == "new"


def test_a_check_that_failed_is_made_again_whatever_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    results: Iterator[Any] = iter([OSError(28, "No space left on device"), TimeoutError("a socket's"), "good"])

    def check(*_: object) -> Any:
        found = next(results)
        if isinstance(found, Exception):
            raise found
        return found

    ask = checking(monkeypatch, check)
    for error in (OSError, TimeoutError):
        with pytest.raises(error):
            ask(0)
    assert ask(0) == "good"


def test_jobs_of_selected_devices_still_work(shop: Shop) -> None:
    assert shop.browser.confirm(SELECTED).status_code == 303
    wait_for_job(shop)
    assert labels(shop, "broken1") == {"fleet-rollout": "1.1.0"}
