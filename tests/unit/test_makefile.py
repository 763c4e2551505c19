"""The Makefile as the contributors' vocabulary."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.function import ROOT

MAX_COLUMNS = 80


@pytest.mark.parametrize("goals", [[], ["help"]], ids=["plain", "help"])
def test_make_lists_its_targets_and_makes_nothing(goals: list[str], tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    # `make test` passes variables on, with which the inner one would tell of its directory.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    run = subprocess.run(["make", *goals], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    shown = run.stdout
    explained = re.findall(r"^([a-z-]+):.*## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split(maxsplit=2)[1:] for line in shown.splitlines()] == [list(pair) for pair in explained]
    assert max(map(len, shown.splitlines())) <= MAX_COLUMNS
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]


def test_each_phony_target_is_explained() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony
    assert sorted(phony[1].split()) == sorted(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE))
