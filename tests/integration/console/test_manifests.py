"""The console's Deployment: what a cluster is told of it, and that its settings and its image are enough."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from fleet_fn.cli.console import command
from fleet_fn.console.settings import SIGN_IN_SETTINGS, ConsoleSettings
from fleet_fn.settings import SETTINGS
from tests.integration.test_manifests import KNATIVE, Object, Rendered, found, quantity
from tests.support.kustomize import render

FOLDER = KNATIVE / "console"
LABELS = {"app.kubernetes.io/name": "fleet-console"}


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(FOLDER)


def one(objects: list[Object], kind: str) -> Any:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def deployment(objects: list[Object]) -> Any:
    return one(objects, "Deployment")["spec"]


@pytest.fixture(scope="module")
def pod(deployment: Any) -> Any:
    return deployment["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


@pytest.fixture(scope="module")
def environment(objects: list[Object], container: Any) -> dict[str, str]:
    """The container's environment, with the values of the example's Secret."""
    secret = yaml.safe_load((FOLDER / "secrets.example.yaml").read_text())
    sources = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    sources[secret["metadata"]["name"]] = secret["stringData"]
    values: dict[str, str] = {}
    for source in container["envFrom"]:
        (reference,) = source.values()
        assert not set(values) & set(sources[reference["name"]])
        values |= sources[reference["name"]]
    return values


def arguments(container: Any) -> dict[str, str]:
    name, *rest = container["args"]
    assert name == command.name
    return dict(zip(rest[::2], rest[1::2], strict=True))


def test_all_of_it_is_in_one_namespace_and_no_secret_is_applied(objects: list[Object]) -> None:
    kinds = ["ConfigMap", "ConfigMap", "Deployment", "NetworkPolicy", "Service", "ServiceAccount"]
    assert sorted(each["kind"] for each in objects) == kinds
    assert {each["metadata"]["namespace"] for each in objects} == {"fleet"}


def test_settings_are_the_functions_and_the_image_is_built_with_it(objects: list[Object], container: Any) -> None:
    function = Rendered(KNATIVE)
    assert container["image"] == function.container["image"].replace("/fleet-function:", "/fleet-publisher:")
    assert container["envFrom"][0] == function.container["envFrom"][0]
    (settings,) = function.all("ConfigMap")
    assert settings in objects


def test_its_command_and_its_settings_are_enough(container: Any, environment: dict[str, str]) -> None:
    given = arguments(container)
    assert CliRunner().invoke(command, [*container["args"][1:], "--help"]).exit_code == 0
    settings = ConsoleSettings.from_environment(environment, given["--host"], int(given["--port"]))
    assert settings.sign_in
    assert settings.operator.firmware_registry
    assert (settings.operator.drogue_token, settings.operator.drogue_user) == (None, None)


def test_every_variable_is_one_that_the_settings_know(environment: dict[str, str]) -> None:
    known = {setting.variable for setting in (*SETTINGS.values(), *SIGN_IN_SETTINGS.values())}
    assert set(environment) <= known
    example = (FOLDER / "secrets.example.yaml").read_text()
    assert set(re.findall(r"^ +(?:# )?([A-Z_]+):", example, re.MULTILINE)) <= known


def test_there_is_one_pod_at_a_time(deployment: Any) -> None:
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == LABELS


def test_it_has_no_rights(objects: list[Object], pod: Any, container: Any) -> None:
    account = one(objects, "ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert (account["automountServiceAccountToken"], pod["automountServiceAccountToken"]) == (False, False)
    assert container["securityContext"] == Rendered(KNATIVE).container["securityContext"]
    assert set(container["resources"]) == {"requests", "limits"}


def test_it_writes_to_its_temporary_folder_only(pod: Any, container: Any, environment: dict[str, str]) -> None:
    (volume,) = pod["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]
    settings = ConsoleSettings.from_environment(environment).operator
    # A start fetches the firmware to check it, and a pod that exceeds the limit is evicted.
    assert quantity(volume["emptyDir"]["sizeLimit"]) > settings.firmware_cache_bytes


def test_ports_agree_and_only_the_inside_reaches_them(objects: list[Object], container: Any) -> None:
    (port,) = container["ports"]
    assert port["containerPort"] == int(arguments(container)["--port"])
    service = one(objects, "Service")["spec"]
    assert (service["type"], service["selector"]) == ("ClusterIP", LABELS)
    assert [each["targetPort"] for each in service["ports"]] == [port["name"]]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    policy = one(objects, "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {"matchLabels": LABELS}
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert set(rule["from"][0]) == {"namespaceSelector"}
    (functions,) = Rendered(KNATIVE).all("NetworkPolicy")
    assert policy["egress"] == functions["spec"]["egress"]


def test_the_ingress_leads_to_the_service(objects: list[Object]) -> None:
    ingress = yaml.safe_load((FOLDER / "ingress.example.yaml").read_text())["spec"]
    service = one(objects, "Service")
    (rule,) = ingress["rules"]
    (path,) = rule["http"]["paths"]
    expected = {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}
    assert path["backend"]["service"] == expected
    assert ingress["tls"][0]["hosts"] == [rule["host"]]


def with_component(folder: Path, component: str) -> Any:
    """The container of a Deployment that is made with a component."""
    shutil.copytree(KNATIVE, folder, dirs_exist_ok=True)
    kustomization = folder / "console" / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text() + f"components: [../{component}]\n")
    pods = [each["spec"]["template"]["spec"] for each in render(folder / "console") if each["kind"] == "Deployment"]
    return pods[0], next(found("containers", pods))[0]


def test_the_private_authority_is_mounted_where_the_settings_look(tmp_path: Path) -> None:
    pod, container = with_component(tmp_path, "private-ca")
    assert {"name": "ca", "mountPath": "/etc/fleet", "readOnly": True} in container["volumeMounts"]
    assert {"name": "ca", "configMap": {"name": "fleet-ca"}} in pod["volumes"]


def test_it_takes_the_keys_and_the_deny_list_that_the_function_takes(tmp_path: Path) -> None:
    pod, container = with_component(tmp_path, "trust")
    shutil.copytree(KNATIVE, tmp_path / "function")
    file = tmp_path / "function" / "kustomization.yaml"
    file.write_text(file.read_text() + "components: [trust]\n")
    function = Rendered(tmp_path / "function")
    trusts = {"FIRMWARE_VERIFY_KEYS", "FIRMWARE_DENY"}
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables == {name: value for name, value in function.environment.items() if name in trusts}
    for each in (volume for volume in function.pod["volumes"] if volume["name"] in ("keys", "denied")):
        assert each in pod["volumes"]
    for each in (mount for mount in function.container["volumeMounts"] if mount["name"] in ("keys", "denied")):
        assert each in container["volumeMounts"]
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
