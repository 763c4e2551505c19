"""Advice about reasons, compared with the code that gives them and with the pages that list them."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from fleet_fn.console.advice import ACTIONS, DEFAULT, Advice, advise, advise_on, all_advice
from fleet_fn.drogue import refusals
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.http import failures
from tests.support.function import ROOT
from tests.unit.test_docs import DOCS, anchors, code, rows

#: Calls whose first argument is a reason.
ERRORS: Final = (
    "PermanentError",
    "TransientError",
    "RateLimitedError",
    "TooLargeError",
    "NotReadyError",
    "NoFirmwareError",
    "UnfitError",
    "UntrustedFirmwareError",
    "DeviceNotFoundError",
    "DeviceDisabledError",
    "Hold",
    "Outcome",
    "_error",
)
#: Rooms whose errors become reasons of devices.
ROOMS: Final = ("update", "drogue", "firmware", "ddi", "oci", "http")
#: Modules whose errors do not: they publish, list for operators, send events of ours, or count failures.
OTHERS: Final = (
    *("access", "attachment", "layout_writer", "publication", "publishing", "sbom", "signing", "upload"),
    *("listing", "deduplication", "update_events", "failure_counter"),
)
#: What stands before the reasons of these modules when they reach a device.
PREFIXES: Final = {
    "signature_keys": "FIRMWARE_VERIFY_KEYS: ",
    "deny_list": "FIRMWARE_DENY: ",
    "authentication": "OCI registry ghcr.io: ",
    "token_realm": "OCI registry ghcr.io: ",
    "version_range": "1.2.3: annotation io.drogue.firmware.requires ",
}
#: Values of variables in reasons.
VALUES: Final = {
    "{registry}": "OCI registry ghcr.io",
    "{self._name}": "OCI registry ghcr.io",
    "{self._registry}": "OCI registry ghcr.io",
    "{upstream}": "command API",
    "{upstream.name}": "OCI registry ghcr.io",
    "{self.name}": "OCI registry ghcr.io",
    "{name}": "OCI registry ghcr.io",
    "{status}": "503",
    "{answer.status}": "400",
    "{stream.status}": "400",
    "{file}": "pump.bin",
    "{action}": "DDI server: action 8",
    "{MAX_TAGS}": "10000",
}


def modules() -> Iterator[tuple[Path, ModuleType]]:
    for room in ROOMS:
        for path in sorted((ROOT / "fleet_fn" / room).rglob("*.py")):
            if path.stem not in OTHERS:
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                yield path, importlib.import_module(name)


def text_of(node: ast.AST, module: ModuleType) -> str:
    """Return the text that an expression makes; a variable stands in braces unless it is a constant of the module."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, module) for part in node.values)
    expression = node.value if isinstance(node, ast.FormattedValue) else node
    if isinstance(expression, ast.Name) and isinstance(found := getattr(module, expression.id, None), str | int):
        return str(found)
    return VALUES.get(shown := f"{{{ast.unparse(expression)}}}", shown)


def reasons_in_code() -> dict[str, str]:
    """Return each reason that the code gives, with its module."""
    found = {}
    for path, module in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[1] if name == "Outcome" and len(node.args) > 1 else node.args[0]
            if name not in ERRORS or (name == "Outcome" and len(node.args) == 1):
                continue
            text = PREFIXES.get(path.stem, "") + text_of(first, module)
            # A reason that is all variables is made elsewhere.
            if re.search(r"[a-z]{3}", re.sub(r"\{[^}]*\}|OCI registry ghcr\.io", "", text)):
                found[text] = path.stem
    return found


REASONS: Final = reasons_in_code()
STATES: Final = frozenset(str(state) for state in State)
#: Words of the pages' tables beside reasons: a condition, a part of a reason.
NO_REASONS: Final = ("UpdateFailed", "; no DROGUE_TOKEN is set")


def test_reasons_are_found_in_the_code() -> None:
    assert {"halted", "paused", "attempts", "backoff", "window", "rollout", "approval", "version-too-long"} <= {
        *REASONS
    }
    assert len(REASONS) > 100


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_in_the_code_has_advice(reason: str) -> None:
    assert advise(reason) is not DEFAULT, REASONS[reason]


@pytest.mark.parametrize(
    "reason",
    [
        *failures._TRANSIENT.values(),
        *failures._PERMANENT.values(),
        *failures._NO_CONNECTION.values(),
        *(getattr(failures, name) for name in ("_CLOSED", "_CUT_SHORT", "_NOT_HTTP", "HANDSHAKE_CLOSED")),
    ],
)
def test_each_failure_of_a_request_has_advice(reason: str) -> None:
    assert advise(f"OCI registry ghcr.io: {reason}") is not DEFAULT


@pytest.mark.parametrize("status", [401, 403, 404, 406, 413, 400])
def test_each_refusal_has_advice(status: int) -> None:
    names = ("acme", "door")
    for reason in (
        refusals.refusal_for_application(refusals.DEVICE_REGISTRY, status, "acme"),
        refusals.refusal_for_device(refusals.DEVICE_REGISTRY, status, *names),
        refusals.refusal_of_command(status, *names),
        refusals.refusal_of_write(status, names),
        refusals.refusal_of_write(status, names[:1]),
    ):
        assert advise(reason) is not DEFAULT, reason


def documented_reasons() -> Iterator[str]:
    for page, header in (
        ("outcomes.md", "reason, for example | what to do"),
        ("refusals.md", "the reason begins with | possible causes"),
        ("trust.md", '`failed; reason="not signed by a trusted key: …"` | cause'),
        ("status-reports.md", "it says | what has happened | what to do"),
    ):
        prefix = "not signed by a trusted key: " if page == "trust.md" else ""
        for cells in rows(page, header):
            yield from (prefix + text for text in code(cells[0]) if text not in {*STATES, *NO_REASONS})


@pytest.mark.parametrize("reason", [*documented_reasons()])
def test_each_documented_reason_has_advice(reason: str) -> None:
    assert advise(reason) is not DEFAULT


@pytest.mark.parametrize("state", list(State))
def test_each_state_has_advice(state: State) -> None:
    reasons = {State.FAILED: "attempts", State.ROLLED_BACK: "backoff", State.HELD: "window", State.UPDATING: "writing"}
    assert advise_on(Row("door", state, reasons.get(state))) is not DEFAULT


def test_a_malformed_spec_has_its_own_advice() -> None:
    reason = "the application's spec.firmware contains rolout (did you mean rollout?); it may contain rollout"
    assert "malformed" in advise(reason).meaning
    assert (
        "malformed" in advise("the device's spec.firmware.maxAttempts is 0; it must be a whole number above 0").meaning
    )


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("device registry: 403 for a write of application acme (our role is not manager or admin, or …)", "may read"),
        ("device registry: our credentials were refused (403)", "Drogue Cloud refuses access"),
        ("token endpoint: our credentials were refused", "OpenID provider refuses"),
        ("OCI registry ghcr.io: our credentials were refused", "OCI registry denies access"),
        ("OCI registry ghcr.io: no tag 1.2 in acme/x", "is not there"),
        ("command API: 406: device unknown to the command endpoint, …", "takes no commands"),
        ("layer: gzip stream is cut short", "no firmware that the function can use"),
        ("OCI registry ghcr.io: answer cut short", "does not answer"),
    ],
)
def test_advice_tells_causes_apart(reason: str, words: str) -> None:
    assert words in advise(reason).meaning


def test_unknown_reasons_have_general_advice() -> None:
    assert advise("<script>alert(1)</script>") is DEFAULT


@pytest.mark.parametrize("advice", all_advice(), ids=lambda advice: advice.meaning[:40])
def test_advice_refers_to_what_exists(advice: Advice) -> None:
    page, _, anchor = advice.doc.partition("#")
    assert not page or (DOCS / page).is_file()
    assert not anchor or anchor in anchors(DOCS / page)
    assert not advice.action or advice.action in ACTIONS


def test_advice_is_in_short_sentences() -> None:
    for advice in all_advice():
        for sentence in re.split(r"(?<=[.:]) ", f"{advice.meaning} {advice.cure}"):
            assert len(sentence.split()) <= 25, sentence
