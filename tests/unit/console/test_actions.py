"""Changes by the console: what is shown is what is written, or nothing is."""

import base64
from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Form, browsing, environment_of
from tests.support.html import read_html
from tests.support.shop import Shop, wait_for_job

STAGES = [{"percent": 1, "approval": True}, {"percent": 100}]
ROLLOUT = "/applications/shop/rollout"


def test_a_pause_is_shown_made_and_told(shop: Shop) -> None:
    page = shop.browser.get(f"{ROLLOUT}/pause").text
    assert "&#34;paused&#34;: true" in page
    assert "fleet-fn rollout pause --application shop" in page
    assert "paused" not in shop.firmware.get("rollout", {})  # nothing was written yet
    response = shop.browser.confirm(f"{ROLLOUT}/pause")
    assert response.status_code == 303
    assert response.location == "/applications/shop"
    assert shop.firmware["rollout"] == {"paused": True}
    assert shop.rollout["last"]["user"] == "sandbox"
    event = shop.event()
    assert (event["action"], event["user"], event["application"]) == ("pause", "sandbox", "shop")
    assert event["change"]["spec.firmware"]["after"]["rollout"] == {"paused": True}
    assert "No device gets a block or a swap" in shop.browser.get(response.location).text


def test_a_second_pause_has_nothing_to_change(shop: Shop) -> None:
    shop.set_policy(paused=True)
    page = shop.browser.get(f"{ROLLOUT}/pause")
    assert "Nothing to change: updates are paused." in page.text
    assert "<form" not in page.text


def test_a_change_without_token_is_refused(shop: Shop) -> None:
    form = Form(shop.browser.get(f"{ROLLOUT}/pause").text).fields
    for fields in ({}, {"shown": form["shown"]}, form | {"csrf_token": "x"}):
        response = shop.browser.post(f"{ROLLOUT}/pause", fields)
        assert response.status_code == 400
        assert "Nothing was changed" in response.text
        assert "Open it again" in response.text
        assert "Back to shop" in response.text
    other = shop.browser.post(f"{ROLLOUT}/pause", form, **{"Sec-Fetch-Site": "cross-site"})
    assert other.status_code == 403
    assert "rollout" not in shop.firmware


def test_a_change_of_another_user_in_between_is_a_conflict(shop: Shop) -> None:
    shop.set_policy(stages=STAGES, maxFailed=1)
    shop.set_rollout(
        version="1.0.0", stage=0, since="2026-11-28T10:00:00Z", failed={"1.0.0": {"count": 1, "devices": []}}
    )
    form = Form(shop.browser.get(f"{ROLLOUT}/resume").text).fields
    shop.set_rollout(
        version="1.0.0", stage=0, since="2026-11-28T10:00:00Z", failed={"1.0.0": {"count": 5, "devices": []}}
    )
    response = shop.browser.post(f"{ROLLOUT}/resume", form)
    assert response.status_code == 409
    assert "Nothing was changed" in response.text
    assert shop.rollout["failed"]["1.0.0"]["count"] == 5
    # The page shows the new change, which can be confirmed.
    assert shop.browser.post(f"{ROLLOUT}/resume", Form(response.text).fields).status_code == 303
    assert "failed" not in shop.rollout


def test_failures_in_between_do_not_keep_a_user_from_pausing(shop: Shop) -> None:
    form = Form(shop.browser.get(f"{ROLLOUT}/pause").text).fields
    shop.set_rollout(version="1.0.0", failed={"1.0.0": {"count": 5, "devices": ["device1"]}})
    assert shop.browser.post(f"{ROLLOUT}/pause", form).status_code == 303
    assert shop.firmware["rollout"]["paused"] is True
    assert shop.rollout["failed"]["1.0.0"]["count"] == 5


def test_an_approval_and_an_advance(shop: Shop) -> None:
    shop.set_policy(stages=STAGES)
    shop.set_rollout(version="1.0.0", stage=0, since="2026-11-28T10:00:00Z")
    waiting = shop.browser.get(f"{ROLLOUT}/advance").text
    assert "approval: not given" in waiting
    assert "<form" not in waiting
    assert shop.browser.confirm(f"{ROLLOUT}/approve").status_code == 303
    assert shop.browser.confirm(f"{ROLLOUT}/advance").status_code == 303
    assert shop.rollout["stage"] == 1


def test_reasons_have_local_times_and_the_forms_words(shop: Shop) -> None:
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    shop.set_policy(stages=[{"percent": 1, "after": "1h"}, {"percent": 100}])
    shop.set_rollout(version="1.0.0", stage=0, since=since)
    (notice,) = read_html(shop.browser.wait(f"{ROLLOUT}/advance")).one("main").all("p", class_="notice")
    assert "the stage is not over until" in notice.text
    assert notice.all("time")
    assert f"{since[:4]}-" not in notice.text.replace(notice.one("time").text, "")
    page = shop.browser.wait(f"{ROLLOUT}/start?image=pump:1.1.0&state=failed")
    assert "“All devices at once” lets in all of them" in page


def test_a_stage_that_lets_no_device_in_says_what_to_do(shop: Shop) -> None:
    shop.set_policy(stages=[{"percent": 0, "approval": True}, {"percent": 100}])
    shop.set_rollout(version="1.0.0", stage=0, since="2026-11-28T10:00:00Z")
    page = read_html(shop.browser.wait("/applications/shop", lambda html: "is let in yet" in html))
    assert "Begin the next stage, or start with a larger share." in page.text


def test_an_advance_waits_for_the_devices_whose_success_it_needs(shop: Shop) -> None:
    shop.set_policy(stages=[{"percent": 100, "success": 50}, {"percent": 100}])
    shop.set_rollout(version="1.0.0", stage=0, since="2026-11-28T10:00:00Z")
    page = shop.browser.wait(f"{ROLLOUT}/advance")
    assert "failing: success: 0 of the 2 devices with a result are in sync" in page


def test_a_start_in_stages(shop: Shop) -> None:
    query = "image=pump:1.1.0&mode=stages&stage.0.percent=1&stage.0.approval=yes&stage.1.percent=100&max_failed=3"
    form = shop.browser.get(f"{ROLLOUT}/start").text
    assert "As the application says: 100 %; no limit of failures" in form
    page = shop.browser.wait(f"{ROLLOUT}/start?{query}")
    assert "verified" in page
    assert "1.1.0 goes to 1 % of the devices, stage 1 of 2" in page
    assert "--stage 1,approval --stage 100 --max-failed 3" in page
    assert shop.firmware == {"container": {"image": "pump:1.0.0"}}
    assert shop.browser.confirm(f"{ROLLOUT}/start?{query}").status_code == 303
    assert shop.firmware["container"] == {"image": "pump:1.1.0"}
    assert shop.firmware["rollout"] == {"stages": STAGES, "maxFailed": 3}
    assert shop.rollout["previous"] == {"container": {"image": "pump:1.0.0"}, "version": "1.0.0"}
    assert shop.event()["action"] == "start"
    # And back.
    assert shop.browser.confirm(f"{ROLLOUT}/abort").status_code == 303
    assert shop.firmware["container"] == {"image": "pump:1.0.0"}


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("mode=stages", "the table of stages is empty"),
        ("mode=stages&stage.0.percent=x", "is no percentage"),
        ("mode=stages&stage.0.percent=nan", "percent of stage 1"),
        ("mode=stages&stage.0.percent=10&stage.1.percent=5", "stage 2"),
        ("mode=stages&stage.0.percent=10&stage.0.after=soon", "after of stage 1"),
        ("mode=percent&percent=101", "is no percentage"),
        ("mode=percent", "is no percentage"),
        ("max_failed=0", "it is a number from 1 to 1000"),
        ("percent=10", "a percentage is filled in, but not chosen"),
        ("mode=all&offered=1&stage.0.percent=5", "the stages are changed, but not chosen"),
    ],
)
def test_a_start_that_makes_no_sense_shows_the_form_again(shop: Shop, query: str, problem: str) -> None:
    response = shop.browser.get(f"{ROLLOUT}/start?image=pump:1.1.0&{query}")
    assert response.status_code == 400
    assert problem.lower() in response.text.lower()
    assert 'value="pump:1.1.0"' in response.text


def test_a_firmware_that_the_function_would_refuse_cannot_be_started(shop: Shop) -> None:
    response = shop.browser.get(f"{ROLLOUT}/start?image=pump:2.0.0&mode=percent&percent=7")
    assert response.status_code == 400
    assert "no tag 2.0.0" in response.text.lower()
    assert "csrf_token" not in Form(response.text).fields  # nothing to confirm
    assert 'name="percent" value="7"' in response.text


def test_stages_that_were_only_offered_are_not_missed(shop: Shop) -> None:
    offered = Form(shop.browser.get(f"{ROLLOUT}/start").text).fields["offered"]
    rows = [row.split(",") for row in offered.split(";")]
    keys = ("percent", "after", "success", "over", "approval")
    query = {
        f"stage.{index}.{key}": value for index, row in enumerate(rows) for key, value in zip(keys, row, strict=True)
    }
    form = {"image": "pump:1.1.0", "mode": "keep", "offered": offered, **query}
    assert "1.1.0 goes to all devices" in shop.browser.wait(f"{ROLLOUT}/start?{urlencode(form)}")
    changed = urlencode({**form, "stage.0.percent": "2"})
    assert shop.browser.get(f"{ROLLOUT}/start?{changed}").status_code == 400


def test_the_form_suggests_the_firmware_in_the_repository(shop: Shop) -> None:
    form = read_html(shop.browser.wait(f"{ROLLOUT}/start", lambda html: "pump:1.1.0" in html))
    suggested = [option.attributes["value"] for option in form.one("datalist", id="images").all("option")]
    assert suggested == ["pump:1.1.0", "pump:1.0.0"]


def test_a_start_can_be_changed_before_it_is_confirmed(shop: Shop) -> None:
    page = read_html(shop.browser.wait(f"{ROLLOUT}/start?image=pump:1.1.0&mode=percent&percent=7"))
    (link,) = [link for link in page.all("a") if link.text == "Change the choices"]
    form = read_html(shop.browser.get(link.attributes["href"]).text)
    assert form.one("input", name="percent").attributes["value"] == "7"
    assert form.one("input", name="image").attributes["value"] == "pump:1.1.0"


@pytest.mark.parametrize("action", ["start", "pause", "resume"])
def test_a_malformed_policy_is_the_reason_that_pages_give(shop: Shop, action: str) -> None:
    shop.set_policy(percent="many")
    response = shop.browser.get(f"{ROLLOUT}/{action}")
    assert response.status_code == 200
    assert "it must be a number from 0 to 100" in response.text
    assert "Back to shop" in response.text


@pytest.mark.parametrize("action", ["approve", "advance"])
def test_a_firmware_that_is_not_there_is_the_reason_that_pages_give(shop: Shop, action: str) -> None:
    found = shop.read()
    found["spec"]["firmware"] = {"container": {"image": "pump:9.9.9"}}
    shop.write(found)
    response = shop.browser.get(f"{ROLLOUT}/{action}")
    assert response.status_code == 200
    assert "no tag 9.9.9" in response.text.lower()
    assert "Back to shop" in response.text


def test_a_start_on_selected_devices_labels_them_first(shop: Shop) -> None:
    path = f"{ROLLOUT}/start?image=pump:1.1.0&state=failed"
    page = shop.browser.wait(path)
    assert "Begins with 2 devices: failed" in page
    assert "--state failed" in page
    assert shop.browser.confirm(path).status_code == 303
    wait_for_job(shop)
    assert shop.read("broken1")["metadata"]["labels"] == {"fleet-rollout": "1.1.0"}
    assert "labels" not in shop.read("device1")["metadata"] or not shop.read("device1")["metadata"]["labels"]
    assert shop.firmware["rollout"]["labels"] == {"fleet-rollout": "1.1.0"}
    shown = read_html(shop.browser.wait("/applications/shop"))
    (link,) = [link for link in shown.all("a") if link.text == "Let the others follow"]
    assert "1.1.0 goes to all devices" in shop.browser.wait(link.attributes["href"])
    # What came of it is old news after the next change.
    assert "Start of 1.1.0 on 2 devices" in shop.browser.get("/applications/shop").text
    job = shop.browser.parts.jobs.last("shop")
    assert job is not None
    job.ended = datetime(2026, 1, 1, tzinfo=UTC)
    assert shop.browser.confirm(f"{ROLLOUT}/pause").status_code == 303
    assert "Start of 1.1.0 on 2 devices" not in shop.browser.get("/applications/shop").text


def test_one_device_is_retried(shop: Shop) -> None:
    path = f"{ROLLOUT}/retry?device=broken1"
    assert "Device broken1 will try 1.0.0 again" in shop.browser.get(path).text
    response = shop.browser.confirm(path)
    assert response.location == "/applications/shop/device?name=broken1"
    assert shop.read("broken1")["spec"]["firmware"]["retry"]
    assert "spec" not in shop.read("broken2") or "firmware" not in shop.read("broken2")["spec"]
    event = shop.event()
    assert (event["action"], event["change"]["devices"]) == ("retry", ["broken1"])


def test_a_device_that_did_not_fail_is_not_retried(shop: Shop) -> None:
    assert (
        "Device device1 is never reported: there is nothing to retry"
        in shop.browser.get(f"{ROLLOUT}/retry?device=device1").text
    )


def test_all_failed_devices_are_retried(shop: Shop) -> None:
    page = shop.browser.wait(f"{ROLLOUT}/retry")
    assert "2 devices will try again" in page
    assert "fleet-fn rollout retry --application shop --failed" in page
    assert shop.browser.confirm(f"{ROLLOUT}/retry").status_code == 303
    wait_for_job(shop)
    tokens = {shop.read(name)["spec"]["firmware"]["retry"] for name in ("broken1", "broken2")}
    assert len(tokens) == 1
    assert shop.event()["change"]["count"] == 2


def test_a_retry_of_other_devices_than_shown_is_a_conflict(shop: Shop) -> None:
    shop.browser.wait(f"{ROLLOUT}/retry")
    response = shop.browser.confirm(f"{ROLLOUT}/retry", shown="0" * 64)
    assert response.status_code == 409
    assert "firmware" not in shop.read("broken1").get("spec", {})


def test_a_reader_is_told_that_the_role_may_not_write() -> None:
    application = {"metadata": {"name": "shop"}, "spec": {"firmware": {"container": {"image": "pump:1.0.0"}}}}
    with Sandbox([application], members={"rita": "reader"}) as sandbox:
        environment = environment_of(sandbox.url) | {"DROGUE_USER": "rita"}
        with browsing(environment) as browser:
            response = browser.confirm(f"{ROLLOUT}/pause")
    assert response.status_code == 403
    assert "Nothing was changed" in response.text
    assert "role" in response.text
    assert "Back to shop" in response.text


def test_a_page_that_is_not_there_says_so(shop: Shop) -> None:
    response = shop.browser.get("/applications/shop/rollout/undo")
    assert response.status_code == 404
    assert "There is no such page." in response.text


def test_another_application_does_not_exist(shop: Shop) -> None:
    for action in ("pause", "resume", "approve", "abort", "advance", "start", "retry"):
        assert shop.browser.get(f"/applications/nope/rollout/{action}").status_code == 404
    assert shop.browser.get(f"{ROLLOUT}/explode").status_code == 404


def test_no_page_has_the_token(shop: Shop) -> None:
    secret = base64.b64encode(b"sandbox:sandbox").decode()
    pages = [f"{ROLLOUT}/{action}" for action in ("pause", "start", "retry", "advance")]
    assert not [page for page in pages if secret in shop.browser.get(page).text]
