"""Builds on a push: what webhooks begin by the code of Tekton Triggers, which `make peers` builds."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_fn.builds.description import Build
from fleet_fn.builds.pipeline_run import Order, Secrets, make_pipeline_run
from fleet_fn.builds.trigger import FORGES, Event, make_trigger
from tests.support.cosign import need_peer
from tests.support.function import ROOT
from tests.support.kubernetes import PEER_TEKTON
from tests.support.webhooks import COMMIT, DELETED, SECRET, Webhook
from tests.support.webhooks import FORGES as WEBHOOKS

TEKTON = ROOT / "knative" / "tekton"
EVERYTHING = [*sorted(TEKTON.glob("*.yaml")), *sorted((TEKTON / "triggers").glob("*.yaml"))]
BUILD = Build(
    repository="https://git.example.com/acme/sensor.git",
    revision=None,
    project="boards/nrf 52",
    builder="registry.example.com/acme/builder:1",
    arguments=("--release", 'a "b" \\ ; `c` é', ""),
    environment={"FEATURES": "a b\nc"},
    artifact="firmware.bin",
    timeout="20m",
)
ORDER = Order(
    "acme",
    None,
    BUILD,
    "registry.example.com/acme",
    "sensor",
    secrets=Secrets("registry", "repository", "keys", "signing"),
    namespace="firmware",
    service_account="builder",
    params={"HARDWARE": "rev-b"},
)
BOTH = frozenset(Event)


@pytest.fixture(autouse=True)
def _has_peer() -> None:
    need_peer(PEER_TEKTON)


def peer(command: str, *files: Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PEER_TEKTON, command, *map(str, files)], input=stdin, capture_output=True, text=True, timeout=60
    )


def deliver(
    folder: Path,
    forge: str,
    *webhooks: Webhook,
    order: Order = ORDER,
    events: frozenset[Event] = BOTH,
    token: str = SECRET,
) -> list[dict[str, Any]]:
    """Delivers webhooks to a cluster with our listener; returns what its one Trigger did with each."""
    trigger = folder / "trigger.yaml"
    trigger.write_text(yaml.safe_dump_all(make_trigger(order, forge, "firmware-webhook", events)))
    manifests = [path for path in (TEKTON / "triggers").glob("*.yaml") if "example" not in path.name]
    lines = "\n".join(webhook.request(token) for webhook in webhooks)
    ended = peer("deliver", trigger, *manifests, stdin=lines)
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line)["triggers"] for line in ended.stdout.splitlines()]
    assert len(answers) == len(webhooks)
    return [next(iter(answer.values())) for answer in answers]


def revision(outcome: dict[str, Any]) -> str:
    """What is built, once it is checked that all else is as ordered."""
    (created,) = outcome.pop("created")
    assert outcome == {}
    params = created["spec"]["params"]
    (chosen,) = [param["value"] for param in params if param["name"] == "GIT_REVISION"]
    created["spec"]["params"] = [param for param in params if param["name"] != "GIT_REVISION"]
    ordered = make_pipeline_run(ORDER)
    del ordered["metadata"]["namespace"]
    assert created == ordered
    return str(chosen)


def test_tekton_takes_all_manifests() -> None:
    ended = peer("validate", *(path for path in EVERYTHING if path.name != "kustomization.yaml"))
    assert ended.returncode == 0, ended.stderr
    kinds = [line.split()[0].rpartition(".")[2] for line in ended.stdout.splitlines()]
    assert sorted(kinds) == sorted(
        [*("Task",) * 3, "Pipeline", "PipelineRun", "EventListener", "TriggerBinding", "TriggerTemplate", "Trigger"]
    )


@pytest.mark.parametrize("application", ["acme", "a" * 200, "Ünïcode/x", "-"])
@pytest.mark.parametrize("device", [None, "d" * 200])
def test_tekton_takes_runs_and_triggers_of_any_name(tmp_path: Path, application: str, device: str | None) -> None:
    order = Order(application, device, BUILD, "registry.example.com/acme", "sensor")
    objects = [make_pipeline_run(order), *(part for forge in FORGES for part in make_trigger(order, forge, "x", BOTH))]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects))
    ended = peer("validate", tmp_path / "objects.yaml")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 7


@pytest.mark.parametrize("forge", FORGES)
def test_a_push_to_the_branch_builds_its_commit(tmp_path: Path, forge: str) -> None:
    (outcome,) = deliver(tmp_path, forge, WEBHOOKS[forge]())
    assert revision(outcome) == COMMIT


@pytest.mark.parametrize("forge", FORGES)
def test_a_tag_is_built_by_its_name(tmp_path: Path, forge: str) -> None:
    (outcome,) = deliver(tmp_path, forge, WEBHOOKS[forge]("refs/tags/v1.2.3-rc1"))
    assert revision(outcome) == "refs/tags/v1.2.3-rc1"


@pytest.mark.parametrize("forge", FORGES)
def test_only_what_was_chosen_is_built(tmp_path: Path, forge: str) -> None:
    branch, tag = WEBHOOKS[forge](), WEBHOOKS[forge]("refs/tags/v1")
    for events, (built, ignored) in {
        frozenset({Event.BRANCH}): (branch, tag),
        frozenset({Event.TAG}): (tag, branch),
    }.items():
        first, second = deliver(tmp_path, forge, built, ignored, events=events)
        assert revision(first)
        assert "did not return true" in second["stopped"]


EVIL = [
    'v1","x":"y',
    "v1$(context.pipelineRun.name)",
    "v1$(uid)",
    "$(tt.params.revision)",
    "v1;id",
    "v1`id`",
    "ü",
    "a/b",
]


@pytest.mark.parametrize("forge", FORGES)
def test_everything_else_is_ignored(tmp_path: Path, forge: str) -> None:
    make = WEBHOOKS[forge]
    repository = "project" if forge == "gitlab" else "repository"
    names: Any = {"full_name": "acme/other", "path_with_namespace": "acme/other"}
    empty: Any = {}
    none: Any = None
    webhooks = [
        make("refs/heads/other"),
        make("refs/heads/main", DELETED),
        make("refs/tags/v1", DELETED),
        make("refs/heads/main", "0" * 64),
        make("refs/heads/main2"),
        make("refs/heads/Main"),
        make("xrefs/heads/main"),
        make("refs/heads/main\n"),
        make("refs/pull/1/head"),
        make("refs/tags/"),
        make("refs/tags/" + "a" * 129),
        make("refs/heads/main", 'x", "y": "'),
        make("refs/heads/main", COMMIT[:39]),
        make("refs/heads/main", COMMIT + "\n"),
        *(make(f"refs/tags/{tag}") for tag in EVIL),
        make(**{repository: names}),
        make(ref=None),
        make(ref=["refs/heads/main"]),
        make(ref={"a": 1}),
        make(after=None),
        make(after=12),
        make(**{repository: none}),
        make(**{repository: empty}),
    ]
    for webhook, outcome in zip(webhooks, deliver(tmp_path, forge, *webhooks), strict=True):
        assert set(outcome) == {"stopped"}, (webhook.body, outcome)


@pytest.mark.parametrize("forge", FORGES)
def test_a_body_chooses_nothing_but_the_revision(tmp_path: Path, forge: str) -> None:
    extensions: Any = {"extensions": {"firmware": {"revision": "evil"}}, "firmware": {"revision": "evil"}}
    (outcome,) = deliver(tmp_path, forge, WEBHOOKS[forge](**extensions, params=[], REGISTRY="evil", IMAGE="evil"))
    assert revision(outcome) == COMMIT


@pytest.mark.parametrize("forge", FORGES)
def test_a_webhook_without_the_secret_is_ignored(tmp_path: Path, forge: str) -> None:
    good = WEBHOOKS[forge]()
    signatures = ("x-hub-signature", "x-gitlab-token", "x-gitea-signature", "x-gogs-signature")
    bare = {name: value for name, value in good.headers.items() if not name.lower().startswith(signatures)}
    only_sha1 = {name: value for name, value in good.headers.items() if not name.lower().endswith("-256")}
    others = [
        WEBHOOKS[forge](secret="another"),
        WEBHOOKS[forge](secret=""),
        Webhook(good.body, bare),
        Webhook(good.body.replace("Blink", "Flash"), good.headers if forge != "gitlab" else bare),
        Webhook(good.body, {**bare, "X-Hub-Signature-256": "sha256=", "X-Gitlab-Token": ""}),
        Webhook(good.body, only_sha1 if forge != "gitlab" else bare),
    ]
    for outcome in deliver(tmp_path, forge, *others):
        assert set(outcome) == {"stopped"}
    for outcome in deliver(tmp_path, forge, good, token="changed meanwhile"):
        assert set(outcome) == {"stopped"}


@pytest.mark.parametrize("forge", FORGES)
def test_other_events_and_what_is_no_json_are_ignored(tmp_path: Path, forge: str) -> None:
    good = WEBHOOKS[forge]()
    headers = {"X-GitHub-Event": "pull_request", "X-Gitlab-Event": "Merge Request Hook"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    others = [Webhook(good.body, {**good.headers, **headers}), Webhook("payload=%7B%7D", {**good.headers, **form})]
    for outcome in deliver(tmp_path, forge, *others):
        assert set(outcome) == {"stopped"}


def test_a_forge_begins_no_build_of_another(tmp_path: Path) -> None:
    for forge in FORGES:
        for other in FORGES:
            (outcome,) = deliver(tmp_path, forge, WEBHOOKS[other]())
            hub = {"github", "gitea"}
            assert ("created" in outcome) == (forge == other or {forge, other} == hub)


@pytest.mark.parametrize(
    ("branch", "name"),
    [("release/1.x", "release/1.x"), ("refs/heads/main", "main"), ('a"b\\c', 'a"b\\c'), ("ü\U0001f4a9", "ü\U0001f4a9")],
)
def test_branches_of_any_name_are_compared_as_they_are(tmp_path: Path, branch: str, name: str) -> None:
    build = Build(**{field: getattr(BUILD, field) for field in BUILD.__slots__} | {"revision": branch})
    order = Order("acme", None, build, "registry.example.com/acme", "sensor")
    good, bad = deliver(tmp_path, "github", WEBHOOKS["github"](f"refs/heads/{name}"), WEBHOOKS["github"](), order=order)
    assert set(good) == {"created"}
    assert set(bad) == ({"created"} if name == "main" else {"stopped"})
