"""The documentation, compared with the code: reference tables, links, commands, make targets."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families as read_metrics

from fleet_fn.cli.main import main
from fleet_fn.console.settings import SIGN_IN_SETTINGS
from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.spec_policy import Policy, read_policy
from fleet_fn.drogue.spec_source import Image
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.fleet.states import State
from fleet_fn.observability import prometheus
from fleet_fn.sandbox import demo
from fleet_fn.settings import SETTINGS, Settings, SettingsError
from fleet_fn.update.outcome import OutcomeName
from fleet_fn.version_range import parse_range
from fleet_fn.web import routes
from tests.support.function import ROOT
from tests.support.tekton import load

DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md")))
#: Everything that may name a page of `docs/`.
FOLDERS: Final = ("fleet_fn", "function", "knative", "tests")
NAMING: Final = (
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))),
    *(ROOT / name for name in ("Makefile", "Containerfile", "func.yaml", "gunicorn.conf.py", "pyproject.toml")),
)
SUFFIXES: Final = frozenset((".py", ".yaml", ".json", ".env"))
POLICY: Final = (DOCS / "policy.md").read_text()
MAX_README_BYTES: Final = 6000

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else page.stem)


def rows(page: str, header: str) -> list[list[str]]:
    """Return the cells of each row below a header; of all tables of a page that have this header."""
    found, inside = [], False
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif cells[: len(header.split(" | "))] == header.split(" | "):
            inside = True
        elif inside and set(cells[0]) != {"-"}:
            found.append(cells)
    assert found
    return found


def code(cell: str) -> list[str]:
    """Return what a cell has in backquotes."""
    return re.findall(r"`([^`]*)`", cell)


def snippets(page: Path) -> Iterator[str]:
    """Yield each line of code of a page, and each piece of code within a line; continued lines are one."""
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    prose = re.sub(r"^ *```\w*\n.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    for piece in code(prose):
        yield piece.replace("\\|", "|").replace("\n", " ")


# --- Settings ---------------------------------------------------------------------------------------------------------

REQUIRED: Final = {"DROGUE_API_URL": "https://api.example", "FIRMWARE_REGISTRY": "ghcr.io/acme/"}
TABLES: Final = rows("settings.md", "variable | default | meaning")
DEFAULTS: Final = {code(name)[0]: default for name, default, _ in TABLES}
LITERALS: Final = {name: code(default)[0] for name, default in DEFAULTS.items() if re.fullmatch(r"`[^`]*`", default)}
#: Words that have another word to be replaced by.
OTHERS: Final = {
    "fleet-fn": "pumps",
    "true": "false",
    "false": "true",
    "json": "text",
    "INFO": "DEBUG",
    "DEFAULT": "acme",
    "0.0.0.0": "127.0.0.1",
}


class Recorder(dict[str, str]):
    """An environment that keeps the names of the variables that were asked for."""

    def __init__(self, environment: dict[str, str]) -> None:
        super().__init__(environment)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def test_settings_table_names_each_variable_once() -> None:
    environment = Recorder(REQUIRED)
    Settings.from_environment(environment)
    assert len(DEFAULTS) == len(TABLES)
    assert set(DEFAULTS) == environment.names


def test_settings_table_says_what_the_code_says() -> None:
    told = {code(name)[0]: (default, meaning) for name, default, meaning in TABLES}
    assert set(told) == {setting.variable for setting in SETTINGS.values()}
    for setting in SETTINGS.values():
        default, meaning = told[setting.variable]
        assert default == setting.default_text
        assert meaning.startswith(setting.meaning)  # and may add more


@pytest.mark.parametrize("name", LITERALS)
def test_settings_table_has_the_default(name: str) -> None:
    default = LITERALS[name]
    assert Settings.from_environment({**REQUIRED, name: default}) == Settings.from_environment(REQUIRED)
    other = OTHERS[default] if default in OTHERS else str(int(default) + 1)
    assert Settings.from_environment({**REQUIRED, name: other}) != Settings.from_environment(REQUIRED)


def test_settings_table_says_what_is_required_and_what_is_not() -> None:
    assert {name for name, default in DEFAULTS.items() if default == "required"} == {"DROGUE_API_URL"}
    for name in REQUIRED:
        with pytest.raises(SettingsError, match=name):
            Settings.from_environment({**REQUIRED, name: ""})


#: What Drogue Ajour's server reads in its start script, and the arguments that it takes.
AJOUR_SERVER: Final = """
    OCI_REGISTRY_TOKEN OCI_REGISTRY_PREFIX DROGUE_MQTT_INTEGRATION DROGUE_TOKEN DROGUE_USER DROGUE_DEVICE_REGISTRY
    MQTT_GROUP_ID DROGUE_APPLICATION HAWKBIT_ENABLE HAWKBIT_URL HAWKBIT_TENANT HAWKBIT_GATEWAY_TOKEN RUST_LOG
    --oci-registry-prefix --oci-registry-enable --oci-registry-tls --oci-registry-token --oci-registry-user
    --oci-registry-insecure --oci-cache-entries-max --oci-cache-expiry --file-registry-enable --file-registry-path
    --hawkbit-enable --hawkbit-url --hawkbit-tenant --hawkbit-gateway-token --mqtt-uri --mqtt-group-id --device-registry
    --application --exclude-applications --token --user --ca-path --disable-tls --insecure-tls --disable-health
    --health-port
"""
#: The same of its build API and its console.
AJOUR_OTHERS: Final = """
    DEVICE_REGISTRY --device-registry DROGUE_API_URL ISSUER_URL CLIENT_ID AJOUR_API_URL NAMESPACE --namespace --port
    ALLOWED_APPLICATIONS --allowed-applications
"""


@pytest.mark.parametrize(
    ("heading", "theirs"),
    [
        ("variable, and argument, of its server | here | difference", AJOUR_SERVER),
        ("variable, and argument, of its API and console | here | difference", AJOUR_OTHERS),
    ],
)
def test_migration_table_has_each_setting_and_names_ours(heading: str, theirs: str) -> None:
    known = {setting.variable for setting in (*SETTINGS.values(), *SIGN_IN_SETTINGS.values())}
    told = rows("migrate.md", heading)
    assert sorted(name for cell, *_ in told for name in code(cell)) == sorted(theirs.split())
    for _, here, difference in told:
        ours = {*code(here), *re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", difference)}
        assert ours <= known, ours - known
        assert ours or here == "none", here


def test_settings_table_of_the_console_says_what_the_code_says() -> None:
    told = rows("settings.md", "console variable | default | meaning")
    assert told == [
        [f"`{setting.variable}`", setting.default_text, setting.meaning] for setting in SIGN_IN_SETTINGS.values()
    ]


# --- Outcomes ---------------------------------------------------------------------------------------------------------

OUTCOMES: Final = [(code(name), statuses) for name, statuses, *_ in rows("outcomes.md", "outcome | status")]


def test_outcomes_table_has_each_outcome_with_its_status() -> None:
    told: dict[str, set[int]] = {}
    for (outcome, *_), statuses in OUTCOMES:
        told.setdefault(outcome.partition(";")[0], set()).update(map(int, statuses.split(", ")))
    # The only outcome with two: the second is that of a large body.
    assert told.pop("invalid") == {routes._STATUS[OutcomeName.INVALID], 413}
    assert told == {name: {int(status)} for name, status in routes._STATUS.items() if name != "invalid"}


def test_outcomes_table_has_each_reason_of_withheld() -> None:
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "fleet_fn").rglob("*.py")))
    reasons = set(re.findall(r'\bHold\(\s*"([a-z-]+)"', sources))
    assert len(reasons) > 1
    withheld = [codes for codes, _ in OUTCOMES if codes[0].startswith("withheld")]
    told = {quoted for codes in withheld for text in codes for quoted in re.findall(r'"([a-z-]+)"', text)}
    assert told == reasons | {"unmanaged"}


# --- Command line -----------------------------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    context = click.Context(main)
    return {name: command for name in main.list_commands(context) if (command := main.get_command(context, name))}


def test_command_line_table_has_each_command() -> None:
    told = [code(cell)[0].split()[0] for cell, *_ in rows("command-line.md", "command | does")]
    assert told == list(commands())


@each_page
def test_commands_have_the_options_that_pages_name(page: Path) -> None:
    known = commands()
    for line in snippets(page):
        for words in re.findall(r"(?:^|\b)(?:fleet-fn|python -m fleet_fn) ([^|#>]*)", line):
            name, *arguments = words.split() or ["COMMAND"]
            if name == "--version":
                continue
            if name.isupper() or name == "…":
                continue
            command = known[name]
            if isinstance(command, click.Group) and arguments and arguments[0] in command.commands:
                command = command.commands[arguments[0]]
            options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            assert {word.partition("=")[0] for word in arguments if word.startswith("--")} <= options


def test_fleet_tables_have_each_state_and_each_option() -> None:
    assert [code(cell)[0] for cell, _ in rows("status-reports.md", "state | means")] == list(State)
    told = [code(cell)[0].split()[0] for cell, _ in rows("status-reports.md", "option | does")]
    options = {option for parameter in commands()["fleet"].params for option in parameter.opts}
    assert len(set(told)) == len(told)
    assert set(told) == options - {"--application", "--interval"}


# --- Metrics ----------------------------------------------------------------------------------------------------------

EXPOSE: Final = f"""
from {prometheus.__package__} import prometheus
prometheus.Events(("sync",)).count("sync", 0.1)
prometheus.Exchanges("oci").count(200, 0.1)
prometheus.Lookups("spec").count(hit=True)
prometheus.Updates(("started",)).count("started")
prometheus.count_sent(1)
prometheus.subscription()
print(prometheus.exposition("")[0].decode())
"""


def test_metrics_table_has_each_metric_with_its_labels() -> None:
    run = subprocess.run([sys.executable, "-c", EXPOSE], cwd=ROOT, capture_output=True, text=True, check=True)
    counted = set()
    for family in read_metrics(run.stdout):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        counted.add((name, family.type, frozenset(labels)))
    told = set()
    for cell, kind, *_ in rows("metrics.md", "metric | type | counts"):
        name, _, listed = code(cell)[0].removesuffix("}").partition("{")
        told.add((name, kind, frozenset(filter(None, listed.split(",")))))
    assert told == counted


# --- Other tables and examples ----------------------------------------------------------------------------------------


def test_tekton_table_has_each_parameter_with_its_default() -> None:
    pipeline = load(ROOT / "knative" / "tekton" / "pipeline.yaml")
    parameters = {parameter["name"]: parameter.get("default") for parameter in pipeline["spec"]["params"]}
    words: dict[str, object] = {"required": None, "none": "", "no words": []}
    told = {}
    for name, default, *_ in rows("tekton.md", "parameter | default | meaning"):
        told[code(name)[0]] = code(default)[0] if "`" in default else words[default]
    assert told == parameters


def test_tekton_table_has_each_result() -> None:
    pipeline = load(ROOT / "knative" / "tekton" / "pipeline.yaml")
    told = [name for cell, *_ in rows("tekton.md", "result | is") for name in code(cell)]
    assert sorted(told) == sorted(result["name"] for result in pipeline["spec"]["results"])


def test_rollout_examples_have_each_key_and_are_understood(tmp_path: Path) -> None:
    whole, staged = (
        _firmware(tmp_path, example)
        for example in re.findall(r"^```yaml\n(.*?)^```$", POLICY, re.MULTILINE | re.DOTALL)
    )
    assert read_policy(whole).percent == 10
    assert [stage.percent for stage in read_policy(staged).stages or ()] == [1, 10, 100]
    stages = {key for stage in staged["rollout"]["stages"] for key in stage}
    shown = {
        "rollout": {*whole["rollout"], *staged["rollout"]},
        "rollout.window": set(whole["rollout"]["window"]),
        "rollout.stages[0]": stages,
    }
    for path, keys in shown.items():
        with pytest.raises(MalformedSpecError, match=rf"^{re.escape(path)} contains") as caught:
            read_policy({"rollout": {**whole["rollout"], **_with_unknown_key(path)}})
        known = re.findall(r"\w+", str(caught.value).partition("; it may contain ")[2].replace(" and ", " "))
        assert keys == set(known)


def test_rollouts_show_the_error_of_a_misspelt_key() -> None:
    spec = read_firmware_spec({"rolout": {"percent": 1}}, "the application's spec.firmware")
    assert isinstance(spec.policy, Malformed)
    assert isinstance(spec.source, Malformed)
    (answer,) = re.findall(r"^## What if I misspell something\?\n(.*?)(?:^## |\Z)", POLICY, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?) …\n```$", answer, re.MULTILINE | re.DOTALL)
    assert spec.policy.reason.startswith(shown)


def test_version_examples_are_understood(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "versions.md").read_text(), re.MULTILINE | re.DOTALL)
    spec = read_firmware_spec(_firmware(tmp_path, example), "spec.firmware")
    assert spec.source == Image("my-firmware", version=">=1.2 <2")
    assert spec.policy == Policy(hardware="rev-b", downgrades="refuse")
    ranges = [text.replace("\\", "") for cell, _ in rows("versions.md", "range | holds") for text in code(cell)]
    assert [str(parse_range(text)) for text in ranges] == ranges
    assert "^1.2 || 3.0.1" in ranges


def _firmware(folder: Path, example: str) -> dict[str, Any]:
    (folder / "example.yaml").write_text(example)
    section = load(folder / "example.yaml")["spec"]["firmware"]
    assert isinstance(section, dict)
    return section


def _with_unknown_key(path: str) -> dict[str, Any]:
    if path == "rollout":
        return {"unknown": 1}
    if path == "rollout.window":
        return {"window": {"unknown": 1}}
    return {"percent": None, "stages": [{"unknown": 1}]}


# --- Pages ------------------------------------------------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= MAX_README_BYTES


def test_index_names_each_page() -> None:
    named = {target.partition("#")[0] for target in links(DOCS / "README.md")}
    assert {path.name for path in DOCS.glob("*.md")} - {"README.md"} <= named


@each_page
def test_page_opens_with_one_title_and_its_answer(page: Path) -> None:
    title, empty, answer, *_ = page.read_text().splitlines()
    assert re.fullmatch(r"# \S.*", title)
    assert not empty
    assert re.match(r"[A-Z`]", answer)
    assert len(re.findall(r"^# ", _without_code(page.read_text()), re.MULTILINE)) == 1


def _without_code(text: str) -> str:
    return re.sub(r"^ *```\w*\n.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Return the targets of a page's links that are no URLs."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


def test_files_name_pages_that_exist() -> None:
    named: dict[str, Path] = {}
    for path in NAMING:
        if path.suffix in SUFFIXES or path.parent == ROOT:
            named |= dict.fromkeys(re.findall(r"(?<![\w/.])docs/([\w-]+\.md)", path.read_text()), path)
    assert named
    for name, path in named.items():
        assert (DOCS / name).exists(), f"{path.relative_to(ROOT)} names docs/{name}"


@each_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in snippets(page):
        assert set(re.findall(r"^make ([a-z-]+)", line)) <= targets


def test_contributing_has_each_make_target() -> None:
    told = [code(cell)[0].removeprefix("make ") for cell, *_ in rows("contributing.md", "target | does")]
    assert sorted(told) == sorted(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_contributing_has_each_room() -> None:
    told = {name for cell, *_ in rows("contributing.md", "room | holds") for name in code(cell)}
    rooms = {f"{path.parent.name}/" for path in (ROOT / "fleet_fn").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "fleet_fn").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert told == rooms | modules


def test_contributing_names_places_that_exist() -> None:
    for cell, *_ in rows("contributing.md", "place | holds"):
        for name in code(cell):
            assert (ROOT / name).exists(), name


def test_readme_quotes_the_last_line_of_the_demo() -> None:
    updated = sum(device.expected_version == demo.NEW_VERSION for device in demo.DEVICES)
    held = len(demo.DEVICES) - updated
    last = f"{updated} of {updated} devices run {demo.NEW_VERSION} with the right bytes, {held} held back"
    assert last in " ".join((ROOT / "README.md").read_text().split())


def test_each_image_is_shown_and_small() -> None:
    shown = {name for page in PAGES for name in re.findall(r"!\[[^]]+\]\((?:docs/)?images/([^)]+)\)", page.read_text())}
    images = {image.name: image.stat().st_size for image in (ROOT / "docs" / "images").iterdir()}
    assert shown == images.keys()
    assert not {name: size for name, size in images.items() if size > 200_000}
