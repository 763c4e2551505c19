"""Whether the locked dependencies agree with their ranges, and what tells if not."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.support.function import ROOT
from tests.support.locks import development, disagreements, runtime, tools

LOCK = ROOT / "requirements.lock"
TOOLS_LOCK = ROOT / "requirements-tools.lock"
DEVELOPMENT_LOCK = ROOT / "requirements-dev.lock"


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))


def test_the_lock_agrees_with_the_ranges() -> None:
    assert disagreements(runtime(), LOCK.read_text()) == []


def test_the_lock_of_the_command_line_agrees_with_the_ranges() -> None:
    assert disagreements(tools(), TOOLS_LOCK.read_text()) == []


def test_the_lock_for_development_agrees_with_the_ranges() -> None:
    assert disagreements(development(), DEVELOPMENT_LOCK.read_text()) == []


def test_tests_run_with_what_the_images_have() -> None:
    locked, ours = pins(LOCK.read_text()), pins(DEVELOPMENT_LOCK.read_text())
    with_tools = pins(TOOLS_LOCK.read_text())
    assert locked.items() <= with_tools.items() <= ours.items()
    installed = {}
    for name in ours:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:  # for another platform
            installed[name] = ours[name]
    assert installed == ours, "make .venv/.dev installs them"


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"^cbor2==[^ ]+", "cbor2==5.0.0", "cbor2 is pinned to 5.0.0, but the ranges need ~=6.3"),
        (r"^cffi==[^ ]+", "cffi==1.0.0", r"cffi is pinned to 1.0.0, but cryptography [\d.]+ need >=[\d.]+"),
        (r"^cbor2==(.*\\\n)+.*\n", "", "cbor2 is not pinned, but the ranges need it"),
        (r"^pycparser==(.*\\\n)+.*\n", "", r"pycparser is not pinned, but cffi [\d.]+ need it"),
        (r"^(cbor2==[^ ]+) \\\n(.*\\\n)+.*\n", r"\1\n", "cbor2 has no hash"),
        (r"^(cbor2==[^ ]+) ", r"\1 ; python_version < '3.14' ", "cbor2 is not pinned everywhere that the ranges need"),
        (r"\Z", "left-pad==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n", "nothing needs left-pad"),
        (r"\Z", "cbor2==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n", "cbor2 is pinned twice"),
        (r"\A", "--index-url https://mirror.example/simple\n", "not a pin: --index-url"),
        (r"^cbor2==[^ ]+", "cbor2", "not a pin: cbor2 "),
    ],
)
def test_a_disagreement_is_told(pattern: str, replacement: str, problem: str) -> None:
    changed, count = re.subn(pattern, replacement, LOCK.read_text(), count=1, flags=re.MULTILINE)
    assert count == 1
    problems = disagreements(runtime(), changed)
    assert any(re.match(problem, told) for told in problems), problems


def test_a_range_that_moved_on_is_told() -> None:
    (told,) = disagreements(
        [requirement for requirement in runtime() if requirement.name != "prometheus_client"], LOCK.read_text()
    )
    assert told == "nothing needs prometheus-client"
