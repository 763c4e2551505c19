"""A command that is copied runs as it is shown: no name in it is a command, an option, or a key of the terminal."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.console.command_line import command_line

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)
#: Ctrl-C ends the line that is typed; ESC [201~ ends a pasted text; the last one turns what follows around.
HOSTILE = [
    "x\x03rm -rf ~\n",
    "x\x1b[201~\nid\n",
    "$(id)",
    "`id`",
    "'; id; '",
    "-rf",
    "--help",
    "a\nb",
    "\u202egnp",
    "ab\x7f\x9b",
]


@given(NAMES)
def test_no_key_of_a_terminal_is_in_it(name: str) -> None:
    assert command_line("rollout", "retry", application="shop", device=name).isprintable()


@pytest.mark.parametrize("name", [*HOSTILE, "\N{SNOWMAN}'\\\t\u0301", "plain", "a b"])
def test_a_shell_takes_a_name_as_one_argument(name: str) -> None:
    command = command_line("rollout", "retry", device=name).replace("fleet-fn", "printf '%s\\0'", 1)
    printed = subprocess.run(["bash", "-c", command], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}).stdout
    *_, last = printed.decode().removesuffix("\0").split("\0")
    assert last.removeprefix("--device=") == name
