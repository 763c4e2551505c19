"""`fleet` against a sandbox, and against registries that are large, slow, or make no sense."""

import fcntl
import json
import os
import pty
import re
import signal
import ssl
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests
import trustme
from click.testing import CliRunner
from rich.cells import cell_len

from fleet_fn.cli.fleet import command, print_fleet
from fleet_fn.drogue.listing import list_devices
from fleet_fn.errors import PermanentError, TransientError, one_line
from fleet_fn.http.client import HttpClient
from fleet_fn.http.messages import MAX_BODY_BYTES
from fleet_fn.sandbox import Sandbox
from fleet_fn.settings import Settings
from fleet_fn.upstreams import make_drogue
from tests.support import forks
from tests.support.function import ROOT
from tests.support.http import Request, Response, Server, closed_port
from tests.support.timing import Gate

TOKEN = "s3cret-token"
PATIENCE = 20.0
TIME = "2026-11-23T12:00:00Z"
#: Runs a program in a small process of its own, because a program's peak begins with that of who starts it.
MEASURED = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]])
print(os.wait4(pid, 0)[2].ru_maxrss * 1024, file=sys.stderr)
"""


def condition(kind: str, status: str, **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": TIME, **more}


def firmware(current: str, target: str, *conditions: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"firmware": {"current": current, "target": target, "conditions": list(conditions), **more}}


IN_SYNC = firmware("0.1.1", "0.1.1", condition("InSync", "True"))
STALLED = firmware("0.1.0", "0.1.1", condition("InSync", "False"), condition("UpdateProgress", "Unknown", message="7"))
UPDATING = {"firmware": {**STALLED["firmware"], "seen": "2999-01-01T00:00:00Z"}}
HELD = firmware("0.1.0", "0.1.1", condition("InSync", "False", reason="rollout", message="not drawn"))
BROKEN = firmware("0.1.0", "Unknown", condition("InSync", "False", reason="no such tag: 0.1.2"))
BACK = firmware(
    "0.1.0",
    "0.1.1",
    condition("InSync", "False", reason="backoff", message="0.1.1 did not come up, attempts: 1 of 3"),
    update={"version": "0.1.1", "checksum": "ab" * 32, "attempts": 1},
)
GIVEN_UP = firmware(
    "0.1.0",
    "0.1.1",
    condition("InSync", "False", reason="attempts", message="0.1.1 did not come up"),
    condition("UpdateFailed", "True", reason="attempts", message="0.1.1 did not come up"),
    update={"version": "0.1.1", "checksum": "ab" * 32, "attempts": 3, "swapped": "2026-11-23T13:00:00Z"},
)


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    output: str
    errors: str

    @property
    def rows(self) -> list[str]:
        """The rows of its table."""
        assert self.errors == ""
        header, *lines = self.output.splitlines()
        assert header.startswith("DEVICE ")
        return lines[: lines.index("")]

    @property
    def totals(self) -> list[str]:
        lines = self.output.splitlines()
        return lines[lines.index("") + 1 :]

    @property
    def document(self) -> Any:
        return json.loads(self.output)

    @property
    def refusal(self) -> str:
        """Why it failed: one line with the command's name, less the URL that follows an upstream's reason."""
        assert (self.code, self.output) == (2, "")
        line = self.errors.removesuffix("\n")
        assert line.isprintable()
        return line.removeprefix("fleet: ").partition("; DROGUE_API_URL is ")[0]


def environment(url: str, **more: str) -> dict[str, str]:
    """Drogue Cloud and what Python needs: nothing of the firmware registry."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "DROGUE_API_URL": url,
        "DROGUE_USER": "sandbox",
        "DROGUE_TOKEN": TOKEN,
        **more,
    }


def arguments(*options: str, application: str = "shop") -> list[str]:
    return ["-m", "fleet_fn", "fleet", "--application", application, *options]


def run(url: str, *options: str, application: str = "shop", **variables: str) -> Ended:
    """Runs the command to its end."""
    words = arguments(*options, application=application)
    if forks.needs_start(variables):
        command = [sys.executable, *words]
        ended = subprocess.run(command, env=environment(url, **variables), capture_output=True, timeout=PATIENCE)
    else:
        ended = forks.run(words[1:], environment(url, **variables), Path.cwd(), PATIENCE)
    told = Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
    assert TOKEN not in told.output + told.errors
    assert "Traceback" not in told.errors
    return told


def invoke(url: str, *options: str, application: str = "shop") -> Ended:
    """The same without a process, which is faster."""
    result = CliRunner().invoke(command, ["--application", application, *options], env=environment(url))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return Ended(result.exit_code, result.stdout, result.stderr)


@contextmanager
def started(url: str, *options: str, **more: Any) -> "Iterator[subprocess.Popen[str]]":
    """The command, while it runs; nothing is left of it."""
    keywords: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    with subprocess.Popen([sys.executable, *arguments(*options)], env=environment(url), **keywords) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(stream: Any, end: str) -> list[str]:
    """The lines of a stream up to the first one with `end` in it, or to its end."""
    lines: list[str] = []
    for line in stream:
        lines.append(line.rstrip("\n"))
        if end in line:
            break
    return lines


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox([{"metadata": {"name": "shop"}}], token=TOKEN) as sandbox:
        yield sandbox


def put(sandbox: Sandbox, name: str, status: object = None, **labels: str) -> None:
    """Creates a device through the registry API, and writes its status as the function does: the whole object."""
    devices = f"{sandbox.url}/api/registry/v1alpha1/apps/shop/devices"
    given = {"metadata": {"application": "shop", "name": name, "labels": labels}}
    requests.post(devices, json=given, auth=("sandbox", TOKEN), timeout=PATIENCE).raise_for_status()
    url = f"{devices}/{quote(name, safe='')}"
    device = requests.get(url, auth=("sandbox", TOKEN), timeout=PATIENCE).json()
    changed = {**device, **({} if status is None else {"status": status})}
    requests.put(url, json=changed, auth=("sandbox", TOKEN), timeout=PATIENCE).raise_for_status()


@dataclass
class Fleet:
    """A registry that lists the devices that it has, in its order, and remembers what it was asked."""

    names: list[str] = field(default_factory=list)
    status: object = None
    #: What else each device's object has: some bytes.
    spec: Mapping[str, object] = field(default_factory=dict)
    pages: list[tuple[int, int]] = field(default_factory=list)
    #: Called after a page was made, with its number, from 1.
    after: Callable[[int], object] = lambda _: None
    #: Answers instead, where it returns something.
    instead: Callable[[int], Response | None] = lambda _: None
    application: object = field(default_factory=lambda: {"metadata": {"name": "shop"}})

    def __call__(self, request: Request) -> Response:
        query = parse_qs(urlsplit(request.path).query)
        if not query:
            return Response(200, json.dumps(self.application).encode())
        limit, offset = int(query["limit"][0]), int(query["offset"][0])
        self.pages.append((limit, offset))
        if response := self.instead(len(self.pages)):
            return response
        page = [
            {"metadata": {"name": name, "application": "shop"}, "spec": self.spec, "status": self.status}
            for name in self.names[offset : offset + limit]
        ]
        self.after(len(self.pages))
        return Response(200, json.dumps(page).encode())


def numbered(count: int) -> list[str]:
    return [f"device-{number:05}" for number in range(count)]


def listed(server: Server) -> list[str]:
    """The names of all devices."""
    with closing(HttpClient("cloud", server.url)) as cloud:
        return [device.name for page in list_devices(cloud, "shop") for device in page]


# --- What is shown ----------------------------------------------------------------------------------------------------


def test_a_fleet_is_shown_row_by_row_with_totals(sandbox: Sandbox) -> None:
    put(sandbox, "door", HELD)
    put(sandbox, "gate", UPDATING)
    put(sandbox, "lamp", IN_SYNC)
    put(sandbox, "new")
    ended = run(sandbox.url)
    assert [row.split() for row in ended.rows] == [
        ["door", "held", "0.1.0", "0.1.1", "-", "0", TIME, "rollout:", "not", "drawn"],
        ["gate", "updating", "0.1.0", "0.1.1", "7.00%", "0", TIME, "7.00", "%", "written"],
        ["lamp", "in-sync", "0.1.1", "0.1.1", "-", "0", TIME, "-"],
        ["new", "unknown", "-", "-", "-", "0", "-", "never", "reported"],
    ]
    assert ended.totals == [
        "4 devices: 0 failed, 0 rolled-back, 0 stalled, 1 held, 1 updating, 1 in-sync, 1 unknown",
        "0.1.1: 1 device (target of 3)",
        "0.1.0: 2 devices",
    ]
    assert ended.code == 0


@pytest.mark.parametrize(
    ("status", "state", "details"),
    [
        (GIVEN_UP, "failed", "0.1.1 did not come up"),
        (BROKEN, "failed", "no such tag: 0.1.2"),
        (BACK, "rolled-back", "0.1.1 did not come up, attempts: 1 of 3"),
        (STALLED, "stalled", "7.00 % written"),
    ],
    ids=["given up", "error", "rolled back", "stalled"],
)
def test_a_device_that_needs_attention_says_why_and_makes_the_exit_code_1(
    sandbox: Sandbox, status: Any, state: str, details: str
) -> None:
    put(sandbox, "gate", IN_SYNC)
    put(sandbox, "lamp", status)
    ended = run(sandbox.url)
    assert ended.code == 1
    assert ended.rows[1].split()[:2] == ["lamp", state]
    assert ended.rows[1].endswith(details)
    assert f"1 {state}" in ended.totals[0]


def test_silence_that_is_a_stall_can_be_chosen(sandbox: Sandbox) -> None:
    put(sandbox, "lamp", STALLED)
    assert run(sandbox.url, "--stalled-after", "3649d").rows[0].split()[1] == "updating"
    assert run(sandbox.url, "--stalled-after", "0.5s").rows[0].split()[1] == "stalled"


def test_states_and_versions_select_what_is_shown_but_not_the_exit_code(sandbox: Sandbox) -> None:
    put(sandbox, "door", HELD)
    put(sandbox, "gate", BACK)
    put(sandbox, "lamp", IN_SYNC)
    ended = run(sandbox.url, "--state", "held", "--state", "in-sync")
    assert [row.split()[0] for row in ended.rows] == ["door", "lamp"]
    assert ended.totals[0] == "2 of 3 devices shown"
    assert ended.code == 1
    assert [row.split()[0] for row in run(sandbox.url, "--version", "0.1.0").rows] == ["door", "gate"]
    found = run(sandbox.url, "--version", "0.1.1", "--state", "in-sync", "--json").document
    assert [device["device"] for device in found["devices"]] == ["lamp"]
    assert (found["totals"]["devices"], found["selection"]["shown"]) == (3, 1)
    assert invoke(sandbox.url, "--state", "updating").rows == []


def test_json_is_one_document(sandbox: Sandbox) -> None:
    put(sandbox, "gate", GIVEN_UP)
    put(sandbox, "lamp", IN_SYNC)
    ended = run(sandbox.url, "--json")
    assert (ended.code, ended.errors) == (1, "")
    assert ended.document["application"] == "shop"
    assert ended.document["devices"][0] == {
        "device": "gate",
        "state": "failed",
        "reason": "attempts",
        "message": "0.1.1 did not come up",
        "since": TIME,
        "current": "0.1.0",
        "target": "0.1.1",
        "inSync": False,
        "progress": None,
        "held": "attempts",
        "heldUntil": None,
        "attempts": 3,
        "failedVersions": [],
        "lastChange": "2026-11-23T13:00:00Z",
        "lastError": "0.1.1 did not come up",
        "reported": None,
        "seen": None,
        "gateways": [],
    }
    assert ended.document["totals"] == {
        "devices": 2,
        "failed": 1,
        "rolled-back": 0,
        "stalled": 0,
        "held": 0,
        "updating": 0,
        "in-sync": 1,
        "unknown": 0,
        "reasons": {"failed": {"attempts": 1}},
        "versions": {"0.1.1": {"current": 1, "target": 2}, "0.1.0": {"current": 1, "target": 0}},
    }


# --- The summary ------------------------------------------------------------------------------------------------------


def test_a_summary_has_numbers_and_the_rollout_but_no_devices(sandbox: Sandbox) -> None:
    application = {
        "metadata": {"name": "shop"},
        "spec": {"firmware": {"container": {"image": "lamp:0.1.1"}, "rollout": {"percent": 100}}},
    }
    sandbox.put(application)
    for name, status in {"door": HELD, "gate": BACK, "lamp": IN_SYNC, "till": GIVEN_UP}.items():
        put(sandbox, name, status)
    own = {"firmware": {"container": {"image": "special:1"}}}
    sandbox.put({"metadata": {"application": "shop", "name": "own"}, "spec": own, "status": IN_SYNC})
    ended = run(sandbox.url, "--summary")
    rollout = (
        "rollout of 0.1.1 to 100 %: 4 of 4 devices drawn; of these 1 in-sync, 1 rolled-back, 1 failed, success 33.33 %"
    )
    assert (ended.code, ended.errors) == (1, "")
    assert ended.output.splitlines() == [
        "5 devices of shop",
        "failed             1     20 %  attempts 1",
        "rolled-back        1     20 %  backoff 1",
        "stalled            0      0 %",
        "held               1     20 %  rollout 1",
        "updating           0      0 %",
        "in-sync            2     40 %",
        "unknown            0      0 %",
        "version 0.1.1: current of 2, target of 5",
        "version 0.1.0: current of 3, target of 0",
        rollout,
    ]
    assert run(sandbox.url).totals[-1] == rollout
    found = run(sandbox.url, "--summary", "--json").document
    assert "devices" not in found
    assert found["rollout"]["success"] == 100 / 3


def test_a_rollout_that_cannot_be_read_hides_no_device() -> None:
    fleet = Fleet(["lamp"], IN_SYNC, application={"spec": []})
    with Server(fleet) as server:
        ended = run(server.url, "--summary")
    assert ended.code == 0
    problem = "device registry: answer for the application is no application object"
    assert ended.output.splitlines()[-1] == f"warning: no numbers of the rollout: {problem}"


def test_names_are_shown_as_they_are_but_for_what_steers_a_terminal(sandbox: Sandbox) -> None:
    names = ["a/b %ü:@x", "x\x1b[2J\ny", "温度計", "\N{PILE OF POO}", " "]
    for name in names:
        put(sandbox, name, IN_SYNC)
    ended = run(sandbox.url)
    shown = ended.output.splitlines()
    assert all(line.isprintable() for line in shown)
    assert {row[:9].strip() for row in ended.rows} >= {
        "a/b %ü:@x",
        "x\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}y",
    }
    assert len(ended.rows) == len(names)
    assert {device["device"] for device in run(sandbox.url, "--json").document["devices"]} == set(names)


def test_what_a_terminal_has_no_characters_for_is_replaced(sandbox: Sandbox) -> None:
    put(sandbox, "温度計", IN_SYNC)
    ended = run(sandbox.url, PYTHONIOENCODING="latin-1")
    assert ended.rows[0].startswith("???  ")


def test_labels_select_devices(sandbox: Sandbox) -> None:
    put(sandbox, "gate", IN_SYNC, site="oslo")
    put(sandbox, "lamp", IN_SYNC, site="rome")
    put(sandbox, "till", BROKEN)
    ended = run(sandbox.url, "--labels", "site in (oslo, bergen)")
    assert [row.split()[0] for row in ended.rows] == ["gate"]
    assert ended.code == 0


def test_an_application_without_devices_is_a_fleet_too(sandbox: Sandbox) -> None:
    assert invoke(sandbox.url).totals[0].startswith("0 devices: ")
    assert invoke(sandbox.url, "--json").document["devices"] == []


def test_another_command_can_print_a_fleet_and_learn_whether_any_needs_attention(sandbox: Sandbox) -> None:
    put(sandbox, "lamp", IN_SYNC)
    lines: list[str] = []
    with closing(make_drogue(Settings.for_drogue(environment(sandbox.url)))) as cloud:
        assert print_fleet(cloud, "shop", echo=lines.append) is False
        assert lines[1].startswith("lamp ")
        put(sandbox, "till", BROKEN)
        assert print_fleet(cloud, "shop", echo=lines.append) is True


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_all_devices_of_several_pages_are_listed_in_order(sandbox: Sandbox) -> None:
    for name in numbered(250):
        sandbox.put({"metadata": {"application": "shop", "name": name}, "status": IN_SYNC})
    ended = run(sandbox.url)
    assert [row.split()[0] for row in ended.rows] == numbered(250)
    assert ended.totals[0].startswith("250 devices: 0 failed")


@pytest.mark.parametrize(
    ("count", "pages"), [(0, 1), (99, 1), (100, 2), (101, 2), (200, 3)], ids=lambda number: str(number)
)
def test_a_listing_ends_at_the_first_page_that_is_not_full(count: int, pages: int) -> None:
    fleet = Fleet(numbered(count))
    with Server(fleet) as server:
        assert listed(server) == numbered(count)
    assert fleet.pages == [(100, 100 * page) for page in range(pages)]


def test_each_page_is_shown_before_the_next_is_asked_for() -> None:
    lines: list[str] = []
    shown: list[int] = []
    fleet = Fleet(numbered(250), after=lambda _: shown.append(len(lines)))
    with Server(fleet) as server, closing(HttpClient("cloud", server.url)) as cloud:
        print_fleet(cloud, "shop", echo=lines.append)
    assert shown == [0, 101, 201]


def test_devices_that_are_added_meanwhile_make_no_other_come_twice() -> None:
    names = numbered(250)
    fleet = Fleet(list(names))
    fleet.after = lambda page: fleet.names.insert(0, f"a-{page}")
    with Server(fleet) as server:
        assert listed(server) == names


def test_devices_that_are_removed_meanwhile_do_not_end_the_listing() -> None:
    fleet = Fleet(numbered(250), after=lambda _: fleet.names.pop(0))
    with Server(fleet) as server:
        names = listed(server)
    assert names[-1] == numbered(250)[-1]
    assert len(names) == len(set(names)) == 248


def test_a_registry_whose_database_sorts_names_in_its_own_way_loses_none() -> None:
    names = [f"{letter}{number}" for number in range(120) for letter in ("a", "B", "ä", "c")]
    with Server(Fleet(names)) as server:
        assert listed(server) == names


def test_a_page_that_is_too_large_is_asked_for_in_parts() -> None:
    fleet = Fleet(numbered(60), spec={"bytes": "x" * 100_000})
    with Server(fleet) as server:
        assert listed(server) == numbered(60)
    assert fleet.pages == [(100, 0), (50, 0), (25, 0), (25, 25), (25, 50)]


def test_devices_may_be_so_large_that_each_is_a_page() -> None:
    fleet = Fleet(numbered(3), spec={"bytes": "x" * 3_000_000})
    with Server(fleet) as server:
        assert listed(server) == numbered(3)
    assert fleet.pages[-4:] == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_a_device_that_is_larger_than_any_answer_is_an_error() -> None:
    with (
        Server(Fleet(numbered(2), spec={"bytes": "x" * MAX_BODY_BYTES})) as server,
        pytest.raises(PermanentError, match="larger"),
    ):
        listed(server)


def test_a_registry_that_takes_no_notice_of_pages_is_found_out() -> None:
    body = json.dumps([{"metadata": {"name": name}} for name in numbered(100)]).encode()
    with Server(lambda _: Response(200, body)) as server, pytest.raises(PermanentError, match="again and again"):
        listed(server)
    body = json.dumps([{"metadata": {"name": name}} for name in numbered(130)]).encode()
    with Server(lambda _: Response(200, body)) as server:
        assert listed(server) == numbered(130)


def measured(url: str, *options: str) -> tuple[str, int]:
    """What the command prints, and the bytes of memory that it takes at most."""
    program = [sys.executable, "-c", MEASURED, *arguments(*options)]
    ended = subprocess.run(program, env=environment(url), capture_output=True, timeout=60)
    return ended.stdout.decode(), int(ended.stderr)


@pytest.mark.parametrize("options", [[], ["--json"], ["--summary"]], ids=["table", "json", "summary"])
def test_ten_thousand_devices_take_no_more_memory_than_a_hundred(options: list[str]) -> None:
    fleet = Fleet(numbered(100), UPDATING, {"bytes": "x" * 2000})
    with Server(fleet) as server:
        _, few = measured(server.url, *options)
        fleet.names = numbered(10_000)
        output, many = measured(server.url, *options)
    assert output.count("device-") == (0 if options == ["--summary"] else 10_000)
    assert "10000" in output
    assert many - few < 4_000_000


def test_gateways_that_update_at_the_same_time_as_devices_behind_them_are_told() -> None:
    """The gateway is on the first page, and the device behind it on the second."""
    fleet = Fleet(numbered(150), UPDATING, {"gatewaySelector": {"matchNames": ["device-00007"]}})
    with Server(fleet) as server:
        warning = run(server.url).output.splitlines()[-1]
        conflicts = run(server.url, "--json").document["gatewayConflicts"]
    assert warning.startswith("warning: gateway device-00007 is being updated at the same time as device-00000, ")
    assert (conflicts[0]["gateway"], conflicts[0]["count"]) == ("device-00007", 149)


# --- Errors -----------------------------------------------------------------------------------------------------------


REFUSED = "(our credentials were refused, or not a member)"
CAUSES = "(wrong name, wrong DROGUE_API_URL, or not a member)"


def test_an_unknown_application_is_told_with_all_possible_causes_and_the_url(sandbox: Sandbox) -> None:
    ended = run(sandbox.url, application="shoe")
    assert ended.refusal == f"device registry: 404 for application shoe {CAUSES}"
    assert ended.errors.endswith(f"; DROGUE_API_URL is {sandbox.url}\n")


@pytest.mark.parametrize("application", ["", "a/b", "a?b#c", "ü\n\udcff"])
def test_names_that_no_application_has_are_unknown(sandbox: Sandbox, application: str) -> None:
    refusal = invoke(sandbox.url, application=application).refusal
    assert refusal == f"device registry: 404 for application {one_line(application)} {CAUSES}"


@pytest.mark.parametrize("application", [".", ".."])
def test_a_name_that_no_url_can_carry_is_not_asked_for(application: str) -> None:
    with Server(Fleet(["lamp"])) as server:
        refusal = invoke(server.url, application=application).refusal
        assert refusal == f"device registry: no URL can carry the name {application}"
        assert server.requests == []


def test_refused_credentials_are_told(sandbox: Sandbox) -> None:
    ended = run(sandbox.url, DROGUE_USER="nobody")
    assert re.fullmatch(rf"device registry: 40[13] for application shop {re.escape(REFUSED)}", ended.refusal)
    assert ended.errors.endswith(f"; DROGUE_API_URL is {sandbox.url}: check it, and DROGUE_USER and DROGUE_TOKEN\n")


OPENID = {"DROGUE_USER": "", "DROGUE_TOKEN": "", "DROGUE_OIDC_CLIENT_ID": "x", "DROGUE_OIDC_CLIENT_SECRET": "y"}


def test_a_token_endpoint_that_refuses_is_told_with_its_own_variables(sandbox: Sandbox) -> None:
    with Server(lambda _: Response(401)) as server:
        url = f"{server.url}/token"
        errors = run(sandbox.url, DROGUE_OIDC_TOKEN_URL=url, **OPENID).errors
    assert errors == (
        f"fleet: token endpoint: our credentials were refused; DROGUE_OIDC_TOKEN_URL is {url}: check "
        "DROGUE_OIDC_CLIENT_ID and DROGUE_OIDC_CLIENT_SECRET\n"
    )


def test_a_token_endpoint_that_is_not_there_is_told_with_its_url(sandbox: Sandbox) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}/token"
        errors = run(sandbox.url, DROGUE_OIDC_TOKEN_URL=url, **OPENID).errors
    assert errors == f"fleet: token endpoint: connection refused; DROGUE_OIDC_TOKEN_URL is {url}\n"


def test_missing_credentials_are_told(sandbox: Sandbox) -> None:
    errors = run(sandbox.url, DROGUE_USER="", DROGUE_TOKEN="").errors
    assert "; no DROGUE_TOKEN is set: set it and DROGUE_USER, or an OpenID client; DROGUE_API_URL is " in errors


def test_tls_is_told_with_what_helps(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with Server(lambda _: Response(200, b"[]"), context) as server:
        untrusted = run(server.url).errors
        others = run(server.url, DROGUE_CA_FILE=str(tmp_path / "other.pem")).errors
    assert untrusted.endswith(f"; DROGUE_API_URL is {server.url}: name its trust anchors with DROGUE_CA_FILE\n")
    assert others.endswith(
        f": the trust anchors in DROGUE_CA_FILE ({tmp_path}/other.pem) are not those of its certificate\n"
    )
    with Server(lambda _: Response(200, b"<html>")) as server:
        url = server.url.replace("http:", "https:")
        plain, page = run(url).errors, run(server.url).errors
    assert plain.endswith(f"does not speak TLS; DROGUE_API_URL is {url}: for plain HTTP it begins with http://\n")
    assert page.endswith(f"is not JSON; DROGUE_API_URL is {server.url}: is that the right URL?\n")


def test_a_selector_that_is_none_is_told_in_the_registrys_own_words(sandbox: Sandbox) -> None:
    ended = run(sandbox.url, "--labels", "site==")
    problem = "ParserError: Unparsable remaining content: '=='"
    assert ended.refusal == f"device registry: answered 400 for the devices: {problem}"
    assert ended.errors.endswith(f"; DROGUE_API_URL is {sandbox.url}; check --labels 'site=='\n")


def test_a_registry_that_is_not_there_is_told() -> None:
    with closed_port() as port:
        assert run(f"http://127.0.0.1:{port}").refusal.endswith(": connection refused")


def test_a_missing_setting_is_told_and_the_firmware_registry_is_none() -> None:
    refusal = run("").refusal
    assert refusal.startswith("DROGUE_API_URL is not set. Set it to ")
    assert "FIRMWARE_REGISTRY" not in refusal


@pytest.mark.parametrize(
    "options",
    [
        ["--interval", "0"],
        ["--lables", "a=b"],
        ["--interval", "soon"],
        ["--state", "inSync"],
        ["--stalled-after", "2"],
        ["--stalled-after", "0s"],
        ["--stalled-after", "1y"],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(options: list[str]) -> None:
    ended = invoke("http://127.0.0.1", *options)
    assert (ended.code, ended.output) == (2, "")
    assert ended.errors.startswith("Usage: ")


NOT_JSON = "device registry: answer for the devices is not JSON"
NO_DEVICE = "device registry: answer for the devices has an entry that is no device"


@pytest.mark.parametrize(
    ("response", "refusal"),
    [
        (Response(200, b"<html>"), NOT_JSON),
        (Response(200, b""), NOT_JSON),
        (Response(200, b"\xff\xfe\xfd"), NOT_JSON),
        (Response(200, b"[" * 100_000), NOT_JSON),
        (Response(200, b"[" + b"9" * 10_000 + b"]"), NOT_JSON),
        (Response(200, b"{}"), "device registry: answer for the devices is no list"),
        (Response(200, b"[null]"), NO_DEVICE),
        (Response(200, b'["lamp"]'), NO_DEVICE),
        (Response(200, b"[{}]"), NO_DEVICE),
        (Response(200, b'[{"metadata": ["name"]}]'), NO_DEVICE),
        (Response(200, b'[{"metadata": {"name": 7}}]'), NO_DEVICE),
        (Response(204), "device registry: answered 204 for the devices"),
        (Response(302, headers={"Location": "/login"}), "device registry: answered 302 for the devices"),
        (
            Response(400, b'{"message": "a\\nb"}'),
            "device registry: answered 400 for the devices: a\N{REPLACEMENT CHARACTER}b",
        ),
        (Response(400, b'["message"]'), "device registry: answered 400 for the devices"),
        (Response(401), f"device registry: 401 for application shop {REFUSED}"),
        (Response(403), f"device registry: 403 for application shop {REFUSED}"),
        (Response(404), f"device registry: 404 for application shop {CAUSES}"),
    ],
)
def test_an_answer_that_is_no_list_of_devices_is_told_in_one_line(response: Response, refusal: str) -> None:
    with Server(lambda _: response) as server:
        assert invoke(server.url).refusal == refusal
        assert invoke(server.url, "--json").refusal == refusal


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_has_no_time_is_told(status: int) -> None:
    with Server(lambda _: Response(status)) as server:
        assert invoke(server.url).refusal.endswith(f": answered {status}")


def test_a_registry_that_hangs_is_waited_for_no_longer_than_that() -> None:
    gate = Gate(Response())
    with Server(gate) as server:
        with (
            pytest.raises(TransientError, match="no answer in time"),
            closing(HttpClient("cloud", server.url)) as cloud,
        ):
            next(list_devices(cloud, "shop", patience=0.1))
        gate.opened.set()


@pytest.mark.parametrize("status", ["[[[]]]", '{"firmware": {"current": 1e999, "target": "\\ud800", "x": 1, "x": 2}}'])
def test_one_devices_oddities_hide_no_other(status: str) -> None:
    body = f'[{{"metadata": {{"name": "odd"}}, "status": {status}}}, {{"metadata": {{"name": "lamp"}}}}]'
    with Server(lambda _: Response(200, body.encode())) as server:
        ended = run(server.url)
        assert [row.split()[0] for row in ended.rows] == ["odd", "lamp"]
        assert len(run(server.url, "--json").document["devices"]) == 2


def test_json_that_breaks_off_is_a_document_still() -> None:
    fleet = Fleet(numbered(150), instead=lambda page: Response(503) if page == 2 else None)
    with Server(fleet) as server:
        ended = run(server.url, "--json")
    assert ended.code == 2
    assert len(ended.document["devices"]) == 100
    assert ended.document["error"].endswith(": answered 503")
    assert ended.errors.endswith(f": answered 503; DROGUE_API_URL is {server.url}\n")


def test_a_reader_that_has_enough_ends_the_command_quietly() -> None:
    with Server(Fleet(numbered(10_000))) as server, started(server.url) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("DEVICE ")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE


def test_a_full_disk_is_told_in_one_line(sandbox: Sandbox) -> None:
    with Path("/dev/full").open("w") as full, started(sandbox.url, stdout=full) as process:
        assert process.stderr is not None
        assert process.stderr.read() == "fleet: No space left on device\n"
        assert process.wait(PATIENCE) == 2


def test_ctrl_c_ends_a_reading_at_once_and_says_that_nothing_was_read() -> None:
    gate = Gate(Response())
    with Server(gate) as server, started(server.url) as process:
        assert gate.reached.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 128 + signal.SIGINT
        gate.opened.set()


# --- Watching ---------------------------------------------------------------------------------------------------------

WATCH = ("--watch", "--interval", "1")


def test_watching_shows_changes_until_it_is_ended(sandbox: Sandbox) -> None:
    put(sandbox, "gate", IN_SYNC)
    with started(sandbox.url, *WATCH) as process:
        first = lines_until(process.stdout, "version 0.1.1")
        put(sandbox, "lamp", BROKEN)
        second = lines_until(process.stdout, "lamp")
        lines_until(process.stdout, "lamp")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert first[0] == "1 device of shop"
    assert not any(line.startswith("DEVICE") for line in first)
    assert [line.split()[:1] for line in second[-3:]] == [[], ["DEVICE"], ["lamp"]]
    assert "2 devices of shop" in second
    assert (process.returncode, errors) == (1, "")


def test_watching_goes_on_after_a_failure_that_passes_and_ends_at_one_that_does_not() -> None:
    failures = {1: Response(503), 3: Response(403)}
    fleet = Fleet(["lamp"], instead=failures.get)
    with Server(fleet) as server:
        ended = run(server.url, *WATCH)
    assert ended.code == 2
    assert ended.output.startswith("1 device of shop\n")
    passing, lasting = ended.errors.splitlines()
    assert passing.endswith(f": answered 503; DROGUE_API_URL is {server.url}; trying again in 1 s")
    refusal = f"fleet: device registry: 403 for application shop {REFUSED}; DROGUE_API_URL is {server.url}"
    assert lasting.startswith(f"{refusal}: check it, and ")


def test_watching_in_vain_ends_with_2() -> None:
    with Server(lambda _: Response(503)) as server, started(server.url, *WATCH) as process:
        assert process.stderr is not None
        assert process.stderr.readline().endswith("; trying again in 1 s\n")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE) == ("", "")
        assert process.returncode == 2


def test_watching_in_json_is_one_document_after_the_other_also_when_it_is_ended_midway(tmp_path: Path) -> None:
    gate = Gate(Response())
    fleet = Fleet(numbered(150), instead=lambda page: gate(None) if page == 4 else None)  # type: ignore[arg-type]
    with (
        Server(fleet) as server,
        (tmp_path / "output").open("w") as output,
        started(server.url, *WATCH, "--json", stdout=output) as process,
    ):
        assert gate.reached.wait(PATIENCE)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
        gate.opened.set()
    documents = split((tmp_path / "output").read_text())
    assert [len(document["devices"]) for document in documents] == [150, 100]
    assert documents[0]["totals"]["devices"] == 150
    assert documents[1]["error"] == "interrupted"
    assert (process.returncode, errors) == (0, "")


def split(text: str) -> list[Any]:
    """The JSON documents that follow each other in a text."""
    documents = []
    while text:
        document, end = json.JSONDecoder().raw_decode(text)
        documents.append(document)
        text = text[end:].lstrip()
    return documents


class Terminal:
    """A terminal of 80 columns and 24 lines, with a command in it."""

    def __init__(self, url: str, *options: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        variables = {"TERM": "xterm", "LANG": "C.UTF-8", **variables}
        self.process = subprocess.Popen(
            [sys.executable, *arguments(*options)],
            env=environment(url, **variables),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self._output = b""

    def read(self) -> bool:
        """Read what there is; False at the end."""
        try:
            found = os.read(self._ours, 65536)
        except OSError:  # Linux says so if the other side is closed
            return False
        self._output += found
        return bool(found)

    @property
    def output(self) -> str:
        return self._output.decode(errors="replace").replace("\r\n", "\n")

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while self.read():
            pass
        os.close(self._ours)
        return self.process.wait(PATIENCE)


def unstyled(text: str) -> str:
    """A text without colors; every other escape sequence stays."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_table_fits_a_terminal_and_nothing_else_steers_it(sandbox: Sandbox) -> None:
    put(sandbox, "x" * 100 + "\x1b[2J", HELD)
    put(sandbox, "[bold]温度計[/bold]", firmware("\x1b]0;owned\x07", "1" * 200, condition("InSync", "False")))
    put(sandbox, "lamp", IN_SYNC)
    terminal = Terminal(sandbox.url)
    assert terminal.end() == 0
    assert "\x1b[32min-sync" in terminal.output
    shown = unstyled(terminal.output).splitlines()
    assert all(line.isprintable() for line in shown)
    assert max(cell_len(line) for line in shown) <= 80
    assert shown[0].split() == ["DEVICE", "STATE", "VERSION", "FOR", "DETAILS"]
    assert any("[bold]温度計" in line for line in shown)
    assert "3 devices of shop" in shown


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_a_terminal_may_be_without_colors(sandbox: Sandbox, variables: dict[str, str]) -> None:
    put(sandbox, "lamp", BROKEN)
    terminal = Terminal(sandbox.url, **variables)
    assert terminal.end() == 1
    assert not re.search(r"\x1b\[[0-9;]*[39][0-7]", terminal.output)
    assert "lamp" in terminal.output


def test_a_summary_in_a_terminal_shows_the_progress_of_a_long_reading_and_removes_it() -> None:
    fleet = Fleet(numbered(300), IN_SYNC, after=lambda page: time.sleep(1.1 if page < 3 else 0))
    with Server(fleet) as server:
        terminal = Terminal(server.url, "--summary")
        assert terminal.end() == 0
    assert "reading devices" in terminal.output
    _, _, rest = terminal.output.rpartition("reading devices")
    assert "\x1b[2K" in rest  # the line is erased
    assert "300 devices of shop" in unstyled(rest)


ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


def test_watching_in_a_terminal_draws_in_the_same_place_again_and_again(sandbox: Sandbox) -> None:
    put(sandbox, "gate", IN_SYNC)
    put(sandbox, "lamp", BROKEN)
    terminal = Terminal(sandbox.url, *WATCH)
    while "lamp" not in terminal.output and terminal.read():
        pass
    put(sandbox, "till", BACK)
    while "till" not in terminal.output and terminal.read():
        pass
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 1
    before, screens, after = re.split(re.escape(ENTER) + "|" + re.escape(LEAVE), terminal.output)
    assert before == ""
    frames = unstyled(screens).split("\x1b[H")
    assert len(frames) > 3
    assert all(len(frame.split("\n")) <= 24 for frame in frames)
    assert any("next reading in 1 s; Ctrl-C ends" in frame for frame in frames)
    assert not any(re.search("gate ", frame) for frame in frames)
    shown = unstyled(after).splitlines()
    assert "3 devices of shop" in shown
    assert [line.split()[0] for line in shown if line.startswith(("lamp", "till"))] == ["lamp", "till"]


def test_watching_in_a_terminal_tells_of_a_failure_on_the_screen_and_ends_at_a_lasting_one() -> None:
    fleet = Fleet(["lamp"], BROKEN, instead={2: Response(503), 3: Response(403)}.get)
    with Server(fleet) as server:
        terminal = Terminal(server.url, *WATCH)
        assert terminal.end() == 2
    screens, _, after = terminal.output.partition(LEAVE)
    assert "answered 503" in screens
    assert unstyled(after).strip().startswith(f"fleet: device registry: 403 for application shop {REFUSED}; ")


def test_the_help_tells_the_exit_codes() -> None:
    told = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
    assert "Exits with 0 if no device has failed, rolled back or stalled, 1 if any device has" in told
    assert "2 if the devices cannot be read" in told
