"""The benchmark that needs nothing installed: it runs, and its devices get their blocks."""

import pytest

from tests.bench import footprint


def test_footprint_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(footprint, "EVENTS", 10 * footprint.THREADS)
    assert footprint.run(seed=1) == []
    assert "blocks of 64 KiB: 80 events" in capsys.readouterr().out
