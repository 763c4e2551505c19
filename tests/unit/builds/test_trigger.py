"""Triggers that build on a push: what of them depends on a webhook, and on what."""

from dataclasses import replace

import pytest
import yaml

from fleet_fn.builds.description import Build
from fleet_fn.builds.pipeline_run import Order, Secrets, make_pipeline_run
from fleet_fn.builds.trigger import FORGES, Event, make_trigger
from fleet_fn.errors import PermanentError
from tests.support.function import ROOT
from tests.support.tekton import load

FOLDER = ROOT / "knative" / "tekton" / "triggers"
BUILD = Build(
    "https://git.example.com/acme/Sensor.git", None, None, "builder", ("--release",), {}, "firmware.bin", None
)
ORDER = Order("acme", None, BUILD, "registry.example.com/acme", "sensor", secrets=Secrets(registry="registry"))
BOTH = frozenset(Event)


@pytest.mark.parametrize("forge", FORGES)
def test_a_webhook_names_the_revision_and_nothing_else(forge: str) -> None:
    template, trigger = make_trigger(ORDER, forge, "firmware-webhook", BOTH)
    (run,) = template["spec"]["resourcetemplates"]
    assert run["spec"]["params"].pop() == {"name": "GIT_REVISION", "value": "$(tt.params.revision)"}
    assert run == make_pipeline_run(ORDER)
    assert [param["name"] for param in template["spec"]["params"]] == ["revision"]
    assert trigger["spec"]["template"] == {"ref": template["metadata"]["name"]}
    assert trigger["spec"]["bindings"] == [{"ref": "firmware-revision", "kind": "TriggerBinding"}]
    (param,) = load(FOLDER / "trigger-binding.yaml")["spec"]["params"]
    assert param == {"name": "revision", "value": "$(extensions.firmware.revision)"}


@pytest.mark.parametrize("forge", FORGES)
def test_a_webhook_is_verified_before_it_is_read(forge: str) -> None:
    _, trigger = make_trigger(ORDER, forge, "hook", BOTH)
    first, second = trigger["spec"]["interceptors"]
    assert first["ref"] == {"name": "gitlab" if forge == "gitlab" else "github", "kind": "ClusterInterceptor"}
    assert first["params"][0] == {"name": "secretRef", "value": {"secretName": "hook", "secretKey": "token"}}
    assert second["ref"]["name"] == "cel"


def test_the_filter_reads_repository_ref_and_commit() -> None:
    _, trigger = make_trigger(ORDER, "github", "hook", BOTH)
    condition, overlays = (param["value"] for param in trigger["spec"]["interceptors"][1]["params"])
    assert condition == (
        'body.repository.full_name.lowerAscii() == "acme/sensor" && !body.after.matches("^0+$") && '
        '((body.ref == "refs/heads/main" && body.after.matches("^([0-9a-f]{40}|[0-9a-f]{64})$")) || '
        '(body.ref.matches("^refs/tags/[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")))'
    )
    assert overlays == [
        {"key": "firmware.revision", "expression": 'body.ref.startsWith("refs/tags/") ? body.ref : body.after'}
    ]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("git@git.example.com:acme/group/sensor.git", "acme/group/sensor"),
        ("ssh://git@git.example.com:22/acme/sensor", "acme/sensor"),
        ("https://git.example.com/acme/sensor/", "acme/sensor"),
    ],
)
def test_the_repository_is_known_by_its_name_at_the_forge(address: str, name: str) -> None:
    _, trigger = make_trigger(replace(ORDER, build=replace(BUILD, repository=address)), "gitlab", "hook", BOTH)
    condition = trigger["spec"]["interceptors"][1]["params"][0]["value"]
    assert condition.startswith(f'body.project.path_with_namespace.lowerAscii() == "{name}" && ')


@pytest.mark.parametrize("revision", ["refs/tags/v1", "a" * 40, "refs/pull/1/head"])
def test_a_revision_that_no_push_moves_is_refused(revision: str) -> None:
    with pytest.raises(PermanentError, match="which no push moves; a trigger needs a branch"):
        make_trigger(replace(ORDER, build=replace(BUILD, revision=revision)), "github", "hook", BOTH)


def test_an_address_without_a_repository_is_refused() -> None:
    with pytest.raises(PermanentError, match="names no repository of a forge"):
        make_trigger(
            replace(ORDER, build=replace(BUILD, repository="https://git.example.com/")), "github", "hook", BOTH
        )


def test_objects_of_two_applications_or_devices_have_two_names() -> None:
    whom = [
        ("acme", None),
        ("acme", "a"),
        ("acme-a", None),
        ("a", "cme"),
        ("A", None),
        ("a" * 41, None),
        ("a" * 42, None),
    ]
    names = {
        make_trigger(replace(ORDER, application=a, device=d), "github", "x", BOTH)[0]["metadata"]["name"]
        for a, d in whom
    }
    assert len(names) == len(whom)
    assert max(map(len, names)) + len("-github") <= 63


def test_the_listener_finds_triggers_and_may_create_runs_alone() -> None:
    listener = load(FOLDER / "event-listener.yaml")
    wanted = listener["spec"]["labelSelector"]["matchLabels"].items()
    for part in make_trigger(ORDER, "github", "x", BOTH):
        assert wanted <= part["metadata"]["labels"].items()
    objects = list(yaml.safe_load_all((FOLDER / "service-account.yaml").read_text()))
    rules = [rule for each in objects for rule in each.get("rules", [])]
    written = [rule for rule in rules if not {*rule["verbs"]} <= {"get", "list", "watch"}]
    assert written == [{"apiGroups": ["tekton.dev"], "resources": ["pipelineruns"], "verbs": ["create"]}]
    assert not [rule for rule in rules if {"secrets", "*"} & {*rule["resources"], *rule["verbs"]}]
    assert listener["spec"]["serviceAccountName"] == objects[0]["metadata"]["name"]
    applied = load(FOLDER / "kustomization.yaml")
    others = {"kustomization.yaml", *(path.name for path in FOLDER.glob("*.example.yaml"))}
    assert {*applied["resources"]} == {path.name for path in FOLDER.glob("*.yaml")} - others
    bound = [each["subjects"][0].get("namespace", applied["namespace"]) for each in objects if "subjects" in each]
    assert set(bound) == {applied["namespace"]}


def test_the_ingress_leads_to_the_listener() -> None:
    ingress, listener = load(FOLDER / "ingress.example.yaml"), load(FOLDER / "event-listener.yaml")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    # As Tekton names the Service that it makes.
    service = {"name": f"el-{listener['metadata']['name']}", "port": {"number": 8080}}
    assert path["backend"] == {"service": service}
    assert load(FOLDER / "secrets.example.yaml")["metadata"]["name"] == "firmware-webhook"


def test_the_example_is_what_the_command_prints() -> None:
    build = replace(
        BUILD, repository="https://github.com/acme/sensor", builder="registry.example.com/acme/firmware-builder:1"
    )
    example = list(yaml.safe_load_all((FOLDER / "trigger.example.yaml").read_text()))
    assert example == make_trigger(replace(ORDER, build=build), "github", "firmware-webhook", BOTH)
