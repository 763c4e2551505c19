"""The plain Kubernetes overlay, and what an API server says of each overlay's objects."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml
from werkzeug.test import Client

from fleet_fn.app import create_app
from fleet_fn.sandbox import MqttOptions, Sandbox
from fleet_fn.settings import Settings
from fleet_fn.web import server
from tests.integration.test_manifests import COMPONENTS, KNATIVE, Object, Rendered, Unambiguous, found, quantity
from tests.support.function import ROOT, Function
from tests.support.kubernetes_schemas import check, is_built_in
from tests.support.kustomize import render

FOLDER = KNATIVE / "kubernetes"
LABELS = {"app.kubernetes.io/name": "fleet-function", "app.kubernetes.io/component": "subscriber"}
OVERLAYS = sorted(
    path.parent for path in KNATIVE.rglob("kustomization.yaml") if "kind: Component" not in path.read_text()
)
EXAMPLES = sorted(KNATIVE.rglob("*.example.yaml"))


class Plain(Rendered):
    """What `kubectl apply -k knative/kubernetes` would send."""

    @property
    def pod(self) -> Object:
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain(FOLDER)


@pytest.fixture(scope="module")
def knative() -> Rendered:
    return Rendered(KNATIVE)


def example(name: str) -> Object:
    described: Object = yaml.safe_load((FOLDER / name).read_text())
    return described


# --- Schemas


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_api_server_takes_each_object(overlay: Path) -> None:
    for each in filter(is_built_in, render(overlay)):
        check(each)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(KNATIVE)))
def test_an_api_server_takes_each_example(path: Path) -> None:
    # An application of Drogue Cloud is no object of Kubernetes.
    for each in (each for each in yaml.safe_load_all(path.read_text()) if "apiVersion" in each):
        if is_built_in(each):
            check(each)


def test_an_api_server_refuses_what_it_does_not_know(plain: Plain) -> None:
    deployment = copy.deepcopy(plain.one("Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        check(deployment)


# --- Objects


def test_it_needs_neither_knative_nor_kafka(plain: Plain) -> None:
    kinds = sorted(each["kind"] for each in plain.objects)
    assert kinds == ["ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"]
    assert all(is_built_in(each) for each in plain.objects)
    assert {each["metadata"]["namespace"] for each in plain.objects} == {"fleet"}


def test_everything_is_for_its_pods_and_not_for_knatives(plain: Plain, knative: Rendered) -> None:
    deployment = plain.one("Deployment")["spec"]
    assert deployment["template"]["metadata"]["labels"] == LABELS
    assert deployment["selector"] == {"matchLabels": LABELS}
    assert plain.one("Service", "fleet-function-metrics")["spec"]["selector"] == LABELS
    assert plain.one("NetworkPolicy", "fleet-function-subscriber")["spec"]["podSelector"] == {"matchLabels": LABELS}
    budget = plain.one("PodDisruptionBudget", "fleet-function-subscriber")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}}
    (spread,) = plain.pod["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": LABELS}
    theirs = knative.one("Service")["spec"]["template"]["metadata"]["labels"]
    assert not LABELS.items() <= theirs.items()
    names = {(each["kind"], each["metadata"]["name"]) for each in plain.objects if each["kind"] != "Deployment"}
    assert not names & {(each["kind"], each["metadata"]["name"]) for each in knative.objects}


def test_pods_are_as_those_of_knative(plain: Plain, knative: Rendered) -> None:
    for key in ("image", "env", "volumeMounts", "resources", "securityContext"):
        assert plain.container[key] == knative.container[key], key
    assert plain.pod["volumes"] == knative.pod["volumes"]
    assert plain.pod["automountServiceAccountToken"] is False
    (volume,) = plain.pod["volumes"]
    assert quantity(volume["emptyDir"]["sizeLimit"]) >= 1.1 * int(plain.environment["FIRMWARE_CACHE_BYTES"])


def test_each_key_of_a_secret_is_one_of_the_settings_and_none_is_applied(plain: Plain) -> None:
    assert plain.all("Secret") == []
    assert not list(found("secretKeyRef", plain.objects))
    whole = {reference["name"] for reference in found("secretRef", plain.objects)}
    assert whole == set(plain.secrets)
    (settings,) = (config["data"] for config in plain.all("ConfigMap"))
    here = {variable["name"] for variable in plain.container["env"]}
    assert not set(settings) & (here | set(plain.secrets["fleet-function"]))


def test_the_function_starts_with_the_values_and_subscribes(plain: Plain, tmp_path: Path) -> None:
    settings = plain.settings(tmp_path)
    assert settings.mqtt_url == "mqtts://mqtt-integration.drogue.example.com:443"
    assert settings.mqtt_applications == ("*",)
    assert (settings.mqtt_group, settings.preview) == ("fleet-function", False)
    # Each of its variables is a setting: none is misspelled, and none is missing here.
    without = {
        name: value for name, value in plain.environment.items() if not name.startswith(("MQTT_", "DROGUE_MQTT"))
    }
    before = Settings.from_environment(without | {"FIRMWARE_CACHE_DIR": str(tmp_path)})
    assert (before.mqtt_url, before.mqtt_applications) == (None, ())


def test_pods_take_the_events_of_all_applications_and_share_a_group(plain: Plain, tmp_path: Path) -> None:
    credentials = {"authentication": {"credentials": [{"pass": "secret"}]}}
    objects: list[Object] = [
        *({"metadata": {"name": name}} for name in ("shop", "street")),
        {"metadata": {"application": "shop", "name": "till"}, "spec": credentials},
    ]
    with Sandbox(objects, mqtt=MqttOptions()) as sandbox:
        pods = [
            plain.environment
            | {
                "DROGUE_API_URL": sandbox.url,
                "DROGUE_MQTT_URL": sandbox.mqtt.url,
                "DROGUE_USER": "sandbox",
                "DROGUE_TOKEN": "sandbox",
                "FIRMWARE_CACHE_DIR": str(tmp_path / name),
            }
            for name in ("one", "other")
        ]
        with Function(pods[0]) as one, Function(pods[1]) as other:
            for pod in (one, other):
                pod.logged("subscribed", lines=2)
            answer = requests.post(
                f"{sandbox.url}/v1/dfu?ct=30", json={"version": "1.2.3"}, auth=("till@shop", "secret"), timeout=60
            )
            assert (answer.status_code, answer.json()["op"]) == (200, "SYNC")
            assert sandbox.wait_for_deliveries("shop", 30)
            metrics = [pod.request("GET", "/metrics").body.decode() for pod in (one, other)]
        answered = [text.count('fleet_events_total{outcome="withheld"} 1.0') for text in metrics]
        assert sorted(answered) == [0, 1]


def test_probes_ask_for_what_the_function_answers(plain: Plain, tmp_path: Path) -> None:
    settings = Settings.from_environment(
        {"DROGUE_API_URL": "https://api.example", "FIRMWARE_REGISTRY": "ghcr.io/acme/"}
    )
    client = Client(create_app(settings))
    (port,) = plain.container["ports"]
    assert port == {"name": "http", "containerPort": plain.settings(tmp_path).port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = plain.container[probe]["httpGet"]
        assert asked["port"] == port["name"]
        assert client.get(asked["path"]).status_code == 200
    liveness = plain.container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 20


def test_pods_have_the_time_to_finish(plain: Plain, tmp_path: Path) -> None:
    deadline = plain.settings(tmp_path).event_deadline_seconds
    assert deadline < server.graceful_timeout < plain.pod["terminationGracePeriodSeconds"]


def test_no_stranger_reaches_pods_and_pods_reach_the_integration(plain: Plain, knative: Rendered) -> None:
    spec = plain.one("NetworkPolicy", "fleet-function-subscriber")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    (monitoring,) = (each for each in render(KNATIVE / "monitoring") if each["kind"] == "NetworkPolicy")
    assert spec["ingress"] == monitoring["spec"]["ingress"]
    names, others = spec["egress"]
    theirs, their_others = knative.one("NetworkPolicy")["spec"]["egress"]
    assert (names, others["to"]) == (theirs, their_others["to"])
    assert others["ports"] == [{"protocol": "TCP", "port": port} for port in (443, 8883)]


def test_settings_that_change_make_new_pods(plain: Plain) -> None:
    (reference,) = found("configMapRef", plain.pod)
    assert re.fullmatch(r"fleet-function-[a-z0-9]{10}", reference["name"])
    assert plain.one("ConfigMap", reference["name"])


def test_a_pod_takes_the_place_of_another_before_that_goes(plain: Plain) -> None:
    deployment = plain.one("Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


# --- Examples


def test_the_examples_are_for_these_objects(plain: Plain) -> None:
    deployment, service = plain.one("Deployment"), plain.one("Service", "fleet-function-metrics")
    scaler = example("autoscaler.example.yaml")["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert scaler["minReplicas"] == deployment["spec"]["replicas"]
    monitor = example("service-monitor.example.yaml")["spec"]
    labels = service["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "fleet-function"
    assert [each["port"] for each in monitor["endpoints"]] == [port["name"] for port in service["spec"]["ports"]]
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == plain.container["ports"][0]["name"]


# --- Components


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(KNATIVE, tmp_path / "knative")
    return tmp_path / "knative" / "kubernetes"


def test_a_private_authority_changes_nothing_but_a_volume(plain: Plain, folder: Path) -> None:
    file = folder / "kustomization.yaml"
    text, count = COMPONENTS.subn(r"\1", file.read_text())
    assert count == 1
    file.write_text(text)
    after, before = Plain(folder), copy.deepcopy(plain.objects)
    assert after.pod["volumes"].pop() == {"name": "ca", "configMap": {"name": "fleet-ca"}}
    assert after.container["volumeMounts"].pop() == {"name": "ca", "mountPath": "/etc/fleet", "readOnly": True}
    assert after.objects == before


def test_keys_and_the_deny_list_come_with_a_component(plain: Plain, folder: Path) -> None:
    file = folder / "kustomization.yaml"
    file.write_text(file.read_text() + "components: [../trust]\n")
    after = Plain(folder)
    assert after.environment.items() - plain.environment.items() == {
        ("FIRMWARE_VERIFY_KEYS", "/etc/fleet-keys"),
        ("FIRMWARE_DENY", "/etc/fleet-denied/denied"),
    }
    volumes = {volume["name"]: volume.get("configMap", {}).get("name") for volume in after.pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in after.container["volumeMounts"]}
    assert (mounts["/etc/fleet-keys"], mounts["/etc/fleet-denied"]) == ("fleet-keys", "fleet-denied")
    assert "/var/cache/fleet" in mounts
    check(after.one("Deployment"))


def test_no_manifest_has_a_key_twice() -> None:
    for path in FOLDER.glob("*.yaml"):
        with path.open() as file:
            assert list(yaml.load_all(file, Unambiguous))


def test_the_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    named: set[Any] = set(re.findall(r"knative/kubernetes/([\w.-]+)", page))
    assert named
    assert {name for name in named if not (FOLDER / name).exists()} == set()
