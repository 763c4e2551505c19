"""The log lines of failed updates: which transitions have one, and what it says."""

import logging
from typing import Any

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.update.failure_log import log_failures
from fleet_fn.update.transitions import Subject, Transition

EVENT = Event("7", "drogue://shop/till", "io.drogue.event.v1", "dfu", "shop", "till", None, "application/json", b"")


def logged(caplog: pytest.LogCaptureFixture, *transitions: Transition) -> list[tuple[int, str, dict[str, Any]]]:
    log_failures(EVENT, transitions, Deadline(1.0))
    return [(record.levelno, record.message, vars(record)["fields"]) for record in caplog.records]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject.ROLLED_BACK, "update rolled back"),
        (Subject.GAVE_UP, "update given up"),
        (Subject.HALTED, "rollout halted"),
    ],
)
def test_failures_are_warnings(caplog: pytest.LogCaptureFixture, subject: Subject, message: str) -> None:
    (line,) = logged(caplog, Transition(subject, "1", "2", "3f1d", 1, "2 failed on 1 devices"))
    assert line == (
        logging.WARNING,
        message,
        {
            "application": "shop",
            "device": "till",
            "id": "7",
            "from": "1",
            "version": "2",
            "checksum": "3f1d",
            "attempts": 1,
            "reason": "2 failed on 1 devices",
        },
    )


def test_unknown_values_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged(caplog, Transition(Subject.ROLLED_BACK, to_version="2"))
    assert line[2] == {"application": "shop", "device": "till", "id": "7", "version": "2"}


def test_other_transitions_have_no_line(caplog: pytest.LogCaptureFixture) -> None:
    others = set(Subject) - {Subject.ROLLED_BACK, Subject.GAVE_UP, Subject.HALTED}
    assert logged(caplog, *(Transition(subject, "1", "2") for subject in sorted(others))) == []
