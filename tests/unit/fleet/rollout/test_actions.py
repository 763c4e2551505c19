"""Changes of a rollout: pure functions from an application's object to the next one."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.rollout_status import with_failure
from fleet_fn.drogue.spec_policy import NONE
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Actor, Start, Target
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.update.stages import Position

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
ALICE = Actor("alice", NOW)
STAGES = [{"percent": 1, "approval": True}, {"percent": 10, "after": "1h"}, {"percent": 100, "over": "2h"}]


def image(version: str) -> str:
    return f"sensor@sha256:{sum(version.encode()):064x}"


def target(version: str) -> Target:
    return Target(version, image(version))


def shop(firmware: Any = None, rollout: Any = None) -> dict[str, Any]:
    """An application whose object has parts that no change may touch."""
    found: dict[str, Any] = {
        "metadata": {"name": "shop", "labels": {"team": "a"}, "resourceVersion": "7"},
        "spec": {"firmware": firmware, "core": {"disabled": False}},
        "status": {"firmware": {"x": 1}, "other": [1]},
    }
    if firmware is None:
        del found["spec"]["firmware"]
    if rollout is not None:
        found["status"]["firmware"]["rollout"] = rollout
    return found


def container(tag: str = "1.0.0", **more: Any) -> dict[str, Any]:
    return {"container": {"image": f"sensor:{tag}"}, **more}


def wanted(found: dict[str, Any], version: str = "1.1.0", **more: Any) -> Start:
    application = Application.read(found)
    values = {"source": application.source_section, "before": target("1.0.0"), **more}
    return Start(f"sensor:{version}", target(version), **values)


def done(change: Callable[..., dict[str, Any] | None], found: dict[str, Any], *arguments: Any) -> dict[str, Any]:
    """The object after a change; what was given is as it was, and so is what is not the rollout's."""
    before = copy.deepcopy(found)
    changed = change(Application.read(found), *arguments)
    assert found == before
    assert changed is not None
    assert changed["metadata"] == found["metadata"]
    assert changed["spec"].get("core") == found["spec"].get("core")
    assert {**changed["status"], "firmware": None} == {**found["status"], "firmware": None}
    return changed


def rollout(found: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = found["status"]["firmware"]["rollout"]
    return section


def started(found: dict[str, Any], version: str = "1.1.0", **more: Any) -> dict[str, Any]:
    return done(actions.start, found, wanted(found, version, **more), ALICE)


# --- start


def test_start_names_the_image_and_records_what_was_before() -> None:
    platform = {"platform": "linux/arm64", "imagePullPolicy": "Always"}
    found = shop({"container": {"image": "sensor:1.0.0", **platform}, "maxAttempts": 2})
    changed = started(found)
    assert changed["spec"]["firmware"] == {"container": {"image": "sensor:1.1.0", **platform}, "maxAttempts": 2}
    assert rollout(changed) == {
        "version": "1.1.0",
        "stage": 0,
        "since": "2026-11-29T12:00:00Z",
        "image": image("1.1.0"),
        "previous": {"container": {"image": "sensor:1.0.0", **platform}, "version": "1.0.0"},
        "last": {"action": "start", "user": "alice", "at": "2026-11-29T12:00:00Z"},
    }
    assert changed["status"]["firmware"]["x"] == 1


def test_start_of_the_first_firmware_has_no_previous() -> None:
    changed = started(shop(), before=None)
    assert changed["spec"]["firmware"] == {"container": {"image": "sensor:1.1.0"}}
    assert "previous" not in rollout(changed)


def test_start_keeps_the_alias_of_the_source() -> None:
    assert started(shop({"oci": {"image": "sensor:1.0.0"}}))["spec"]["firmware"] == {"oci": {"image": "sensor:1.1.0"}}


def test_start_replaces_another_source_only_if_told() -> None:
    found = shop({"file": {"name": "old.bin"}})
    with pytest.raises(RefusedError, match="comes from file, not from an image: --replace-source"):
        started(found)
    changed = started(found, replaces_source=True)
    assert changed["spec"]["firmware"] == {"container": {"image": "sensor:1.1.0"}}
    assert rollout(changed)["previous"] == {"file": {"name": "old.bin"}, "version": "1.0.0"}


def test_start_pins_a_previous_tag_that_moves() -> None:
    changed = started(shop(container("latest")))
    assert rollout(changed)["previous"] == {"container": {"image": image("1.0.0")}, "version": "1.0.0"}


def test_start_finds_the_previous_firmware_of_a_tag_that_has_moved() -> None:
    found = shop(container("latest"), {"version": "1.0.0", "image": image("1.0.0")})
    changed = started(found, before=target("1.1.0"))
    assert rollout(changed)["previous"] == {"container": {"image": image("1.0.0")}, "version": "1.0.0"}
    assert "previous" not in rollout(started(shop(container("latest")), before=target("1.1.0")))


@pytest.mark.parametrize("halt", [{"failed": {"1.1.0": {"count": 3, "devices": []}}}, {"aborted": ["1.1.0"]}])
def test_start_after_a_halt_goes_back_to_the_version_before_the_bad_one(halt: dict[str, Any]) -> None:
    bad = started(shop({**container(), "rollout": {"maxFailed": 3}}))
    rollout(bad).update(halt)
    fixed = done(actions.start, bad, wanted(bad, "1.1.1", before=target("1.1.0")), ALICE)
    assert rollout(fixed)["previous"] == {"container": {"image": "sensor:1.0.0"}, "version": "1.0.0"}
    back = done(actions.start, bad, wanted(bad, "1.0.0", before=target("1.1.0")), ALICE)
    assert rollout(back)["previous"]["version"] == "1.1.0"


def test_start_keeps_a_previous_source_whose_version_is_unknown() -> None:
    assert rollout(started(shop(container()), before=None))["previous"] == {"container": {"image": "sensor:1.0.0"}}


def test_start_of_the_same_version_goes_on() -> None:
    found = started(shop(container(rollout={"labels": {"ring": "a"}})), selection="1.1.0")
    assert found["spec"]["firmware"]["rollout"] == {"labels": {"ring": "a", "fleet-rollout": "1.1.0"}}
    again = started(found, before=target("1.1.0"))
    assert again["spec"]["firmware"]["rollout"] == {"labels": {"ring": "a"}}
    assert {**rollout(again), "last": None} == {**rollout(found), "last": None}
    assert actions.start(Application.read(again), wanted(again, before=target("1.1.0")), ALICE) is None


def test_start_begins_anew_when_a_selection_ends() -> None:
    found = started(shop(container(rollout={"stages": STAGES})), selection="1.1.0")
    rollout(found).update(stage=2, since="2026-11-28T12:00:00Z", approved=True)
    same = Application.read(started(found, before=target("1.1.0"), selection="1.1.0", max_failed=2)).rollout
    assert (same.stage, same.approved) == (2, True)
    wider = Application.read(started(found, before=target("1.1.0"))).rollout
    assert (wider.stage, wider.since, wider.approved) == (0, NOW, False)


def test_start_begins_anew_when_there_are_stages_for_the_first_time() -> None:
    found = started(shop(container()))
    rollout(found).update(since="2026-11-28T12:00:00Z")
    assert Application.read(started(found, before=target("1.1.0"), stages=STAGES)).rollout.since == NOW
    found = started(shop(container(rollout={"stages": STAGES})))
    rollout(found).update(stage=1, since="2026-11-28T12:00:00Z")
    moved = Application.read(started(found, before=target("1.1.0"), stages=STAGES[:2])).rollout
    assert (moved.stage, moved.since) == (1, NOW - timedelta(days=1))


def test_start_without_a_selection_leaves_no_empty_condition() -> None:
    found = started(shop(container()), selection="1.1.0")
    assert "rollout" not in started(found, "1.2.0")["spec"]["firmware"]


def test_start_takes_an_aborted_version_again() -> None:
    found = shop(container(), {"version": "1.0.0", "complete": True, "aborted": ["0.9", "1.1.0"], "approved": True})
    changed = rollout(started(found))
    assert changed["aborted"] == ["0.9"]
    assert "complete" not in changed
    assert "approved" not in changed


def test_start_sets_a_policy() -> None:
    found = shop(container(rollout={"percent": 5, "salt": "x"}))
    policy = started(found, stages=STAGES, max_failed=3)["spec"]["firmware"]["rollout"]
    assert policy == {"salt": "x", "stages": STAGES, "maxFailed": 3}
    assert started(shop(container(rollout=policy)), percent=20)["spec"]["firmware"]["rollout"] == {
        "salt": "x",
        "percent": 20,
        "maxFailed": 3,
    }


def test_start_refuses_a_policy_that_the_function_would_refuse() -> None:
    with pytest.raises(RefusedError, match=r"the application's spec.firmware.rollout.stages\[1\].percent is 1"):
        started(shop(container()), stages=[{"percent": 2}, {"percent": 1}])
    with pytest.raises(RefusedError, match=r"rolout \(did you mean rollout\?\)"):
        started(shop(container(rolout={})))


def test_start_refuses_an_application_that_has_changed_meanwhile() -> None:
    with pytest.raises(RefusedError, match="changed meanwhile"):
        actions.start(Application.read(shop(container("2"))), wanted(shop(container())), ALICE)


@pytest.mark.parametrize("part", [{"spec": []}, {"status": {"firmware": {"rollout": 1}}}, {"spec": {"firmware": "x"}}])
def test_an_object_that_makes_no_sense_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="is not a map"):
        Application.read({**shop(container()), **part})


# --- pause, resume


def test_pause_and_resume() -> None:
    found = shop(container())
    paused = done(actions.pause, found, ALICE)
    assert paused["spec"]["firmware"]["rollout"] == {"paused": True}
    assert actions.pause(Application.read(paused), ALICE) is None
    resumed = done(actions.resume, paused, "1.0.0", ALICE)
    assert resumed["spec"]["firmware"]["rollout"] == {"paused": False}
    assert rollout(resumed)["last"]["action"] == "resume"
    assert actions.resume(Application.read(resumed), "1.0.0", ALICE) is None
    assert actions.resume(Application.read(found), "1.0.0", ALICE) is None


def test_resume_clears_the_halt_and_the_abort_of_its_version_only() -> None:
    failed = {"1.1.0": {"count": 3, "devices": ["a"]}, "1.2.0": {"count": 3, "devices": []}}
    found = shop(container(rollout={"maxFailed": 3}), {"failed": failed, "aborted": ["1.1.0", "1.2.0"]})
    assert actions.halted_versions(Application.read(found)) == ["1.1.0", "1.2.0"]
    resumed = done(actions.resume, found, "1.2.0", ALICE)
    assert rollout(resumed)["failed"] == {"1.1.0": failed["1.1.0"]}
    assert rollout(resumed)["aborted"] == ["1.1.0"]
    assert "failed" not in rollout(done(actions.resume, resumed, "1.1.0", ALICE))


def test_resume_keeps_failures_below_the_limit() -> None:
    found = shop(container(rollout={"maxFailed": 3}), {"failed": {"1.1.0": {"count": 2, "devices": []}}})
    assert actions.resume(Application.read(found), "1.1.0", ALICE) is None


# --- approve, advance


def test_approve_lets_the_rollout_leave_its_stage() -> None:
    found = started(shop(container(rollout={"stages": STAGES})))
    approved = done(actions.approve, found, target("1.1.0"), 0, ALICE)
    assert rollout(approved)["approved"] is True
    assert actions.approve(Application.read(approved), target("1.1.0"), 0, ALICE) is None
    moved = done(actions.advance, approved, "1.1.0", 0, Actor("", NOW + timedelta(hours=1)))
    assert (rollout(moved)["stage"], rollout(moved)["since"]) == (1, "2026-11-29T13:00:00Z")
    assert "approved" not in rollout(moved)
    assert rollout(moved)["last"] == {"action": "advance", "at": "2026-11-29T13:00:00Z"}


def test_approve_records_a_version_that_came_without_start() -> None:
    approved = done(actions.approve, shop(container(rollout={"stages": STAGES})), target("1.0.0"), 0, ALICE)
    assert (rollout(approved)["version"], rollout(approved)["approved"]) == ("1.0.0", True)


@pytest.mark.parametrize(
    ("stages", "stage", "reason"),
    [
        (None, 0, "has no stages"),
        ([{"percent": 1}, {"percent": 2}], 0, r"stage 1 of 2 \(1 % of devices\) asks for no approval"),
        ([{"percent": 1, "approval": True}], 0, r"stage 1 of 1 \(1 % of devices\) is the last"),
        (STAGES, 1, r"moved to stage 1 of 3 \(1 % of devices\) meanwhile"),
    ],
)
def test_approve_refuses_what_makes_no_sense(stages: Any, stage: int, reason: str) -> None:
    found = shop(container(rollout={"stages": stages}))
    with pytest.raises(RefusedError, match=reason):
        actions.approve(Application.read(found), target("1.0.0"), stage, ALICE)


def test_advance_moves_from_the_stage_that_was_looked_at() -> None:
    found = started(shop(container(rollout={"stages": STAGES})))
    application = Application.read(done(actions.advance, found, "1.1.0", 0, ALICE))
    assert actions.advance(application, "1.1.0", 0, ALICE) is None
    assert actions.advance(application, "1.2.0", 1, ALICE) is None
    last = Application.read(done(actions.advance, dict(application.found), "1.1.0", 1, ALICE))
    assert actions.advance(last, "1.1.0", 2, ALICE) is None


def test_begin_records_a_tag_that_has_moved() -> None:
    firmware = container("latest", rollout={"stages": STAGES})
    found = done(actions.begin, shop(firmware), target("1.0.0"), ALICE)
    assert rollout(found)["version"] == "1.0.0"
    assert "previous" not in rollout(found)
    moved = done(actions.begin, found, target("1.1.0"), ALICE)
    assert rollout(moved)["previous"] == {"container": {"image": image("1.0.0")}, "version": "1.0.0"}
    assert done(actions.abort, moved, None, None, ALICE)["spec"]["firmware"]["container"] == {"image": image("1.0.0")}
    assert actions.begin(Application.read(moved), target("1.1.0"), ALICE) is None


# --- abort


def test_abort_goes_back() -> None:
    policy = {"maxFailed": 1, "paused": True, "labels": {"ring": "a"}}
    found = started(shop(container(rollout=policy)), selection="1.1.0")
    rollout(found)["failed"] = {"1.1.0": {"count": 1, "devices": ["d"]}}
    back = done(actions.abort, found, target("1.1.0"), None, ALICE)
    assert back["spec"]["firmware"] == container(rollout={**policy, "paused": False})
    assert rollout(back) == {
        "version": "1.0.0",
        "stage": 0,
        "since": "2026-11-29T12:00:00Z",
        "complete": True,
        "aborted": ["1.1.0"],
        "failed": {"1.1.0": {"count": 1, "devices": ["d"]}},
        "last": {"action": "abort", "user": "alice", "at": "2026-11-29T12:00:00Z"},
    }
    with pytest.raises(RefusedError, match="no previous firmware is recorded"):
        actions.abort(Application.read(back), None, None, ALICE)


def test_abort_is_of_the_version_that_a_tag_has_moved_to() -> None:
    found = started(shop(container("latest")))
    found["spec"]["firmware"]["container"]["image"] = "sensor:latest"
    back = done(actions.abort, found, target("1.2.0"), None, ALICE)
    assert back["spec"]["firmware"]["container"]["image"] == image("1.1.0")
    assert (rollout(back)["version"], rollout(back)["aborted"]) == ("1.1.0", ["1.2.0"])


def test_abort_goes_back_to_a_version_that_failed_on_many_devices() -> None:
    failed = {"1.0.0": {"count": 5, "devices": []}, "0.9": {"count": 5, "devices": []}}
    found = started(shop(container(rollout={"maxFailed": 3}), {"failed": failed}))
    back = Application.read(done(actions.abort, found, None, None, ALICE))
    assert not back.rollout.halts("1.0.0", 3)
    assert back.rollout.halts("0.9", 3)


def test_abort_keeps_the_last_aborted_versions() -> None:
    found = started(shop(container(), {"aborted": [f"0.{number}" for number in range(16)]}))
    assert rollout(done(actions.abort, found, target("1.1.0"), None, ALICE))["aborted"] == [
        *(f"0.{n}" for n in range(1, 16)),
        "1.1.0",
    ]


def test_abort_needs_the_version_before() -> None:
    found = started(shop(container()), before=None)
    with pytest.raises(RefusedError, match="is not known"):
        actions.abort(Application.read(found), None, None, ALICE)
    assert rollout(done(actions.abort, found, None, "1.0.0", ALICE))["version"] == "1.0.0"
    with pytest.raises(RefusedError, match=r"tag names 1\.1\.0 by now"):
        actions.abort(Application.read(found), None, "1.1.0", ALICE)


# --- Any sequence

VERSIONS = st.sampled_from(["1.0.0", "1.1.0", "1.2.0"])
TAGS = {"1.0.0": "1.0.0", "1.1.0": "latest", "1.2.0": "1.2.0"}


class AnySequence(RuleBasedStateMachine):
    """Any sequence of actions keeps the object valid, and its stages in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found = shop(container(rollout={"stages": STAGES, "maxFailed": 2, "salt": "s"}))
        self.now = NOW
        self.percent: tuple[str | None, float] = (None, 0.0)

    @property
    def application(self) -> Application:
        return Application.read(self.found)

    def make(self, change: Callable[..., dict[str, Any] | None], *arguments: Any) -> bool:
        """Make a change, twice: the second time there is nothing left to change."""
        self.now += timedelta(minutes=7)
        actor = Actor("alice", self.now)
        try:
            changed = change(self.application, *arguments, actor)
        except RefusedError:
            return False
        self.found = changed or self.found
        return changed is not None

    @rule(version=VERSIONS, selection=st.none() | st.just("x"))
    def start(self, version: str, selection: str | None) -> None:
        application = self.application
        known = application.rollout.version or "1.0.0"
        section = application.source_section
        given = Start(f"sensor:{TAGS[version]}", target(version), section, target(known), selection=selection)
        before = application.rollout
        self.make(actions.start, given)
        assert self.application.rollout.version == version
        assert version not in self.application.rollout.aborted
        if before.version == version and not actions.begins_anew(application, given):
            assert (self.application.rollout.stage, self.application.rollout.since) == (before.stage, before.since)
        assert actions.start(self.application, replace(given, source=self.application.source_section), ALICE) is None

    @rule()
    def pause(self) -> None:
        self.make(actions.pause)
        assert self.application.policy.paused
        assert not self.make(actions.pause)

    @rule()
    def resume(self) -> None:
        version = self.application.rollout.version or "1.0.0"
        self.make(actions.resume, version)
        assert not self.application.policy.paused
        assert not self.application.rollout.halts(version, self.application.policy.max_failed)
        assert not self.make(actions.resume, version)

    @rule()
    def approve(self) -> None:
        application = self.application
        version = application.rollout.version or "1.0.0"
        stage = Position.of(application.policy.stages or (), application.rollout, version).index
        self.make(actions.approve, target(version), stage)
        assert not self.make(actions.approve, target(version), stage)

    @rule()
    def advance(self) -> None:
        application = self.application
        version, stage = application.rollout.version, application.rollout.stage
        assume(version is not None)
        self.make(actions.advance, version, stage)
        assert not self.make(actions.advance, version, stage)
        assert self.application.rollout.stage in (stage, stage + 1)

    @rule(version=VERSIONS)
    def begin(self, version: str) -> None:
        self.make(actions.begin, target(version))
        assert self.application.rollout.version == version

    @rule(device=st.sampled_from("abc"))
    @precondition(lambda self: self.application.rollout.version)
    def fail(self, device: str) -> None:
        """The function records a failed device."""
        version = self.application.rollout.version or ""
        section = with_failure(rollout(self.found), version, device, is_first=True, room_bytes=1000)
        if section is not None:
            status = {**self.found["status"], "firmware": {**self.found["status"]["firmware"], "rollout": section}}
            self.found = {**self.found, "status": status}

    @rule()
    def abort(self) -> None:
        application = self.application
        previous, version = application.previous, application.rollout.version
        if self.make(actions.abort, None, None):
            assert previous is not None
            assert self.application.source_section == (previous.kind, previous.source)
            assert self.application.rollout.version == previous.version
            assert self.application.rollout.complete
            assert not self.application.rollout.halts(previous.version or "", self.application.policy.max_failed)
            assert version in self.application.rollout.aborted
            assert previous.version not in self.application.rollout.aborted
            assert not self.application.policy.paused
            assert not self.make(actions.abort, None, None)
        else:
            assert previous is None

    @rule(minutes=st.integers(0, 200))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @invariant()
    def the_function_takes_it(self) -> None:
        source, policy = read_firmware_spec(self.found["spec"]["firmware"], "spec.firmware")
        assert source is not None
        assert not isinstance(source, Malformed)
        assert not isinstance(policy, Malformed)
        assert policy != NONE
        assert policy.salt == "s"
        assert self.found["metadata"] == shop()["metadata"]
        assert self.found["status"]["other"] == [1]

    @invariant()
    def the_share_never_falls_within_a_version(self) -> None:
        application = self.application
        version = application.rollout.version
        if version is None:
            return
        position = Position.of(application.policy.stages or (), application.rollout, version)
        percent = 100.0 if application.rollout.complete else position.percent_at(self.now)
        key = f"{version} {application.previous} {application.rollout.complete} {application.policy.labels}"
        assert self.percent[0] != key or self.percent[1] <= percent
        self.percent = (key, percent)


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
