"""The differences that rollout commands print."""

import click
import pytest
from click.testing import CliRunner

from fleet_fn.cli.rollout.shared import print_diff
from fleet_fn.fleet.rollout.session import Change

CHANGE = Change("application shop", {"spec": {"firmware": {}}}, {"spec": {"firmware": {"retry": "1"}}})


def shown() -> str:
    """The difference in a terminal."""
    return CliRunner().invoke(click.command("x")(lambda: print_diff(CHANGE)), color=True).output


def test_difference_has_colors_unless_the_user_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32m+++ application shop (changed)" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "+++ application shop (changed)" in shown()
    assert "\x1b[3" not in shown()
