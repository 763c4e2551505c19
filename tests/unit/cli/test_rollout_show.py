"""The rows of `rollout show`: how they fit a terminal."""

import pytest
from rich.cells import cell_len

from fleet_fn.cli.rollout.show import fit_row

TEXT = "halted: 1.1.0 failed on 5 devices, and maxFailed is 5 (rollout start takes a fix, rollout abort goes back)"


def test_row_through_a_pipe_is_one_line() -> None:
    assert fit_row("rollout", TEXT, None) == f"rollout     {TEXT}"


def test_row_is_wrapped_below_its_text() -> None:
    assert fit_row("rollout", TEXT, 80).split("\n") == [
        "rollout     halted: 1.1.0 failed on 5 devices, and maxFailed is 5 (rollout start",
        "            takes a fix, rollout abort goes back)",
    ]


def test_row_that_fits_keeps_its_columns() -> None:
    assert fit_row("", "  60 %  after 5s, success 80 %", 80) == " " * 14 + "60 %  after 5s, success 80 %"


@pytest.mark.parametrize("width", [1, 24, 30])
def test_word_is_never_cut(width: int) -> None:
    found = fit_row("firmware", f"light@sha256:{'a' * 64}, version 1", width).split("\n")
    assert f"light@sha256:{'a' * 64}," in " ".join(found).split()
    assert all(cell_len(line) <= 24 or " " not in line.strip() for line in found[1:])
