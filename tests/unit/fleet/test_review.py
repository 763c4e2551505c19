"""A change is made only if it is the one that the operator was shown."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Actor
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.review import ChangedMeanwhileError, fingerprint, only_as_shown

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
ACTOR = Actor("alice", NOW)


def application(rollout: Any = None, status: Any = None) -> Application:
    firmware = {"container": {"image": "sensor:1.2.3"}, **({"rollout": rollout} if rollout else {})}
    found = {"metadata": {"name": "example"}, "spec": {"firmware": firmware}}
    if status:
        found["status"] = {"firmware": {"rollout": status}}
    return Application.read(found)


def shown(change: Any, found: Application) -> str:
    changed = change(found, ACTOR)
    assert changed is not None
    return fingerprint(found.found, changed)


def test_news_of_the_function_do_not_keep_an_operator_from_pausing() -> None:
    before = application(status={"version": "1.2.3", "failed": {"1.2.3": {"count": 1, "devices": ["a"]}}})
    after = application(status={"version": "1.2.3", "failed": {"1.2.3": {"count": 9, "devices": ["a", "b"]}}})
    make = only_as_shown(actions.pause, shown(actions.pause, before))
    assert make(after, Actor("alice", NOW + timedelta(hours=1))) is not None


def test_a_resume_that_forgets_more_failures_than_shown_is_refused() -> None:
    def halted(count: int) -> Application:
        failed = {"1.2.3": {"count": count, "devices": []}}
        return application({"maxFailed": 2}, {"version": "1.2.3", "failed": failed})

    def resume(found: Application, actor: Actor) -> Any:
        return actions.resume(found, "1.2.3", actor)

    make = only_as_shown(resume, shown(resume, halted(2)))
    assert make(halted(2), ACTOR) is not None
    with pytest.raises(ChangedMeanwhileError, match="the application has changed"):
        make(halted(3), ACTOR)


def test_no_change_is_no_conflict() -> None:
    make = only_as_shown(actions.pause, "whatever was shown")
    assert make(application({"paused": True}), ACTOR) is None


texts = st.text(max_size=3)
trees = st.recursive(
    st.none() | st.booleans() | st.integers() | texts, lambda each: st.dictionaries(texts, each), max_leaves=6
)


@given(trees, trees, trees)
@example(1, True, 1)
def test_fingerprints_are_equal_only_for_equal_changes(before: Any, one: Any, other: Any) -> None:
    def found(value: Any) -> dict[str, Any]:
        return {"spec": {"firmware": {"x": value}}}

    same = fingerprint(found(before), found(one)) == fingerprint(found(before), found(other))
    assert same == (leaves(one) == leaves(other))


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(value, dict):
        return {key: each for name, below in value.items() for key, each in leaves(below, (*path, name)).items()}
    return {} if value is None else {path: (type(value), value)}
