"""The registry's objects of a device and its application, and what is reported into them.

The input is the application's JSON and the device's, with an empty line in between. What must hold:

- What is desired is read, or is `PermanentError`, with a reason of one line.
- A policy is within what policies take, and can be asked at any moment; when it says that a window opens, it does.
- A report leaves everything as it was in the device's object but its own, and is no news the second time.
- What is noted of an update is read as it was written.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import ConflictError, Desired, DeviceRegistry
from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.drogue.spec_source import File, Image
from fleet_fn.drogue.status_report import IN_SYNC, PROGRESS, Condition, Report
from fleet_fn.drogue.update_record import Record, record_for
from fleet_fn.errors import PermanentError
from fleet_fn.http.client import HttpClient
from fleet_fn.http.head import Head
from fleet_fn.http.messages import Answer
from fleet_fn.protocol.step import Target
from fleet_fn.update.policy import Candidate, hold_start
from fleet_fn.update.window import opens_in
from tests.fuzz.bounds import bounded

_NOW = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # half an hour before clocks are set back in Europe
_TARGET = Target(b"0.1.1", 1000, bytes(32))
_CONDITIONS = (Condition(IN_SYNC, "False", "UpdateInProgress"), Condition(PROGRESS, "True", "Updating", "10.00"))


class _Cloud:
    """The registry's API, as far as it is asked, without a network."""

    def __init__(self, application: bytes, device: bytes) -> None:
        self.application, self.device = application, device
        self.writes = 0

    def close(self) -> None:
        """Do nothing: there are no connections."""

    def request(self, method: str, path: str, deadline: Deadline, *, body: bytes | None = None, **_: object) -> Answer:
        assert deadline.remaining
        if method == "PUT":
            assert body
            self.writes += 1
            self.device = body
            return Answer(204, Head(), b"")
        return Answer(200, Head(), self.device if path.endswith("/d") else self.application)


def one_input(data: bytes) -> None:
    application, _, device = data.partition(b"\n\n")
    cloud = _Cloud(application, device)
    registry = DeviceRegistry(cast(HttpClient, cloud))
    try:
        with bounded():
            desired = registry.read_desired("a", "d", 0.0, Deadline(10))
    except PermanentError as failed:
        _check_reason(failed)
        return
    _check_desired(desired)
    _check_report(cloud, desired)


def _check_reason(failed: PermanentError) -> None:
    assert failed.reason
    assert failed.reason.isprintable()


def _check_desired(desired: Desired) -> None:
    desired.uid.encode()
    source = desired.source
    assert not isinstance(source, Image) or source.reference
    assert not isinstance(source, File) or source.name
    _check_policy(desired.policy, desired.uid, desired.labels)
    if record := desired.reported.record:
        assert Record.read(json.loads(json.dumps(record.to_json()))) == record
        record_for(_TARGET, record, None, _NOW)


def _check_policy(policy: Policy, uid: str, labels: Mapping[str, str]) -> None:
    assert policy.percent is None or 0 <= policy.percent <= 100
    assert policy.max_attempts is None or policy.max_attempts >= 1
    with bounded():
        hold = hold_start(policy, Candidate(uid, labels), "0.1.1", _NOW)
    if hold is None:
        return
    assert hold.message.isprintable()
    if hold.opens_in is not None:
        assert policy.window
        assert 0 < hold.opens_in <= 9 * 24 * 3600
        assert opens_in(policy.window, _NOW + timedelta(seconds=hold.opens_in)) == 0
        assert opens_in(policy.window, _NOW + timedelta(seconds=hold.opens_in / 2)) > 0


def _check_report(cloud: _Cloud, desired: Desired) -> None:
    before = json.loads(cloud.device)
    known = desired.reported.record
    report = Report("0.1.0", "0.1.1", _CONDITIONS, known, record_for(_TARGET, known, "again", _NOW).with_start(_NOW))
    again = Report("0.1.0", "0.1.1", _CONDITIONS, report.record, report.record, crosses_tenth=True)
    try:
        with bounded():
            DeviceRegistry(cast(HttpClient, cloud)).report("a", "d", report, _NOW, Deadline(10))
        assert cloud.writes == report.is_news(desired.reported)
        DeviceRegistry(cast(HttpClient, cloud)).report("a", "d", again, _NOW, Deadline(10))
    except PermanentError as failed:
        _check_reason(failed)
        assert not cloud.writes
        return
    except ConflictError as error:
        raise AssertionError("nobody else noted anything") from error
    assert cloud.writes == report.is_news(desired.reported)
    after = json.loads(cloud.device)
    assert _others(after) == _others(before)
    if cloud.writes:
        ours = after["status"]["firmware"]
        assert Record.read(ours["update"]) == report.record
        assert [c["type"] for c in ours["conditions"][:2]] == [IN_SYNC, PROGRESS]


def _others(device: dict[str, Any]) -> str:
    """What others have in the object, as text: JSON's 1, 1.0 and true are not the same."""
    status = device.get("status") or {}
    section = status.get("firmware")
    theirs = section if isinstance(section, dict) else {}
    conditions = theirs.get("conditions")
    kept = [
        condition
        for condition in (conditions if isinstance(conditions, list) else [])
        if not isinstance(condition, dict) or condition.get("type") not in (IN_SYNC, PROGRESS, "UpdateFailed")
    ]
    rest = {key: value for key, value in theirs.items() if key not in ("current", "target", "conditions", "update")}
    around = {key: value for key, value in status.items() if key != "firmware"}
    return json.dumps([{**device, "status": around}, rest, kept], sort_keys=True)
