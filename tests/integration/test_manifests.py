"""What a cluster is told: the kustomizations as kubectl renders them, and func.yaml."""

import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from werkzeug.test import Client

from fleet_fn.app import create_app
from fleet_fn.settings import Settings
from fleet_fn.sink.events import UPDATE_EVENT
from fleet_fn.update.transitions import Subject
from fleet_fn.web import server
from tests.support.function import ROOT
from tests.support.kustomize import render

KNATIVE = ROOT / "knative"
KAFKA = KNATIVE
EVENT_SOURCE = KNATIVE / "drogue-event-source"
VISIBILITY = "networking.knative.dev/visibility"

Object = dict[str, Any]


class Rendered:
    """What `kubectl apply -k` would send, and the Secrets of the example beside it."""

    def __init__(self, kustomization: Path) -> None:
        self.objects: list[Object] = render(kustomization)
        self.secrets = {
            secret["metadata"]["name"]: secret["stringData"]
            for secret in yaml.safe_load_all((kustomization / "secrets.example.yaml").read_text())
        }

    def all(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str = "fleet-function") -> Object:
        (found,) = [found for found in self.all(kind) if found["metadata"]["name"] == name]
        return found

    @property
    def pod(self) -> Object:
        """The function's pods."""
        spec: Object = self.one("Service")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (container,) = self.pod["containers"]
        found: Object = container
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What the function's environment is, with the values of the example's Secrets."""
        environment: dict[str, str] = {}
        for source in self.container["envFrom"]:
            if "configMapRef" in source:
                environment |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
            else:
                environment |= self.secrets[source["secretRef"]["name"]]
        for variable in self.container["env"]:
            value = variable.get("value")
            if value is None:
                reference = variable["valueFrom"]["secretKeyRef"]
                value = self.secrets[reference["name"]][reference["key"]]
            environment[variable["name"]] = value
        return environment

    def settings(self, cache: Path) -> Settings:
        return Settings.from_environment(self.environment | {"FIRMWARE_CACHE_DIR": str(cache)})


@pytest.fixture(scope="module")
def kafka() -> Rendered:
    return Rendered(KAFKA)


@pytest.fixture(scope="module")
def event_source() -> Rendered:
    return Rendered(EVENT_SOURCE)


@pytest.fixture(scope="module", params=[KAFKA, EVENT_SOURCE], ids=["kafka", "drogue-event-source"])
def rendered(request: pytest.FixtureRequest) -> Rendered:
    return Rendered(request.param)


def found(key: str, value: object) -> Iterator[Any]:
    """All that stands under a key, at any depth."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if name == key:
                yield inner
            yield from found(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from found(key, inner)


def quantity(text: str) -> int:
    """Bytes."""
    number, unit = re.fullmatch(r"(\d+)([KMG]i)?", text).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[unit]


def seconds(text: str) -> float:
    """Of a duration such as 10m, 15s or PT0.5S."""
    number, unit = re.fullmatch(r"(?:PT)?([\d.]+)([sSmM])", text).groups()  # type: ignore[union-attr]
    return float(number) * (60 if unit in "mM" else 1)


class Recording(dict[str, str]):
    """An environment that remembers what it was asked for."""

    asked: set[str]

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


@pytest.fixture(scope="module")
def variables() -> set[str]:
    """Each variable that the settings know."""
    environment = Recording(DROGUE_API_URL="https://api.example", FIRMWARE_REGISTRY="ghcr.io/acme/")
    environment.asked = set()
    Settings.from_environment(environment)
    return environment.asked


# --- References


def test_all_of_it_is_in_one_namespace(rendered: Rendered) -> None:
    assert {found["metadata"]["namespace"] for found in rendered.objects} == {"fleet"}


def test_no_secret_is_applied(rendered: Rendered) -> None:
    assert rendered.all("Secret") == []


def test_each_key_of_a_secret_that_is_named_is_in_the_example_and_the_other_way_round(rendered: Rendered) -> None:
    named = {(key["name"], key["key"]) for key in found("secretKeyRef", rendered.objects)}
    whole = {reference["name"] for reference in found("secretRef", rendered.objects)}
    assert named | {(name, key) for name in whole for key in rendered.secrets[name]} == {
        (name, key) for name, keys in rendered.secrets.items() for key in keys
    }
    assert not [key for key in found("secretKeyRef", rendered.objects) if key.get("optional")]


def test_settings_that_change_make_a_new_revision(rendered: Rendered) -> None:
    (reference,) = found("configMapRef", rendered.pod)
    assert re.fullmatch(r"fleet-function-[a-z0-9]{10}", reference["name"])
    assert rendered.one("ConfigMap", reference["name"])


def test_what_is_delivered_to_is_there(kafka: Rendered) -> None:
    source = kafka.one("KafkaSource")["spec"]
    for sink, name in (
        (source["sink"], "fleet-function"),
        (source["delivery"]["deadLetterSink"], "fleet-dead-letters"),
    ):
        service = kafka.one("Service", name)
        assert sink == {"ref": {"apiVersion": service["apiVersion"], "kind": "Service", "name": name}}


def test_volumes_are_mounted_and_ports_are_the_functions(rendered: Rendered, tmp_path: Path) -> None:
    assert [volume["name"] for volume in rendered.pod["volumes"]] == [
        mount["name"] for mount in rendered.container["volumeMounts"]
    ]
    assert not list(found("readOnly", rendered.container["volumeMounts"]))
    assert rendered.container["ports"] == [{"name": "http1", "containerPort": rendered.settings(tmp_path).port}]


def test_the_network_policy_is_for_the_functions_pods(rendered: Rendered) -> None:
    (policy,) = rendered.all("NetworkPolicy")
    selector = policy["spec"]["podSelector"]["matchLabels"]
    assert selector == {"serving.knative.dev/service": rendered.one("Service")["metadata"]["name"]}
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_only_knative_reaches_pods_and_only_its_proxy_there(rendered: Rendered) -> None:
    (rule,) = rendered.all("NetworkPolicy")[0]["spec"]["ingress"]
    (who,) = rule["from"]
    (expression,) = who["namespaceSelector"]["matchExpressions"]
    assert set(who) == {"namespaceSelector"}
    assert (expression["key"], expression["operator"]) == ("kubernetes.io/metadata.name", "In")
    assert {"knative-serving", "kourier-system", "istio-system"} <= set(expression["values"])
    assert {(port["protocol"], port["port"]) for port in rule["ports"]} == {
        ("TCP", port) for port in (8012, 8013, 8112, 9090)
    }


def test_pods_reach_names_and_what_speaks_https_but_not_the_clouds_metadata(rendered: Rendered) -> None:
    names, others = rendered.all("NetworkPolicy")[0]["spec"]["egress"]
    assert {(port["protocol"], port["port"]) for port in names["ports"]} >= {("UDP", 53), ("TCP", 53)}
    assert "to" not in names
    assert others["ports"] == [{"protocol": "TCP", "port": 443}]
    assert {block["ipBlock"]["cidr"]: block["ipBlock"]["except"] for block in others["to"]} == {
        "0.0.0.0/0": ["169.254.0.0/16"],
        "::/0": ["fe80::/10", "fd00:ec2::254/128"],
    }


def test_the_image_is_the_one_that_the_kustomization_names(rendered: Rendered) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert rendered.container["image"] == f"registry.example.com/fleet-function:{version}"


# --- Settings


def test_every_variable_is_one_that_the_settings_know(rendered: Rendered, variables: set[str]) -> None:
    assert set(rendered.environment) <= variables
    assert not list(found("optional", rendered.container))


def test_no_setting_stands_in_two_places_and_no_secret_where_everybody_reads_it(rendered: Rendered) -> None:
    (settings,) = (config["data"] for config in rendered.all("ConfigMap"))
    here = {variable["name"] for variable in rendered.container["env"]}
    secret = {key for keys in rendered.secrets.values() for key in keys}
    assert not set(settings) & (here | secret)
    assert not [name for name in settings if re.search("TOKEN$|SECRET|PASSWORD", name)]


def test_the_function_starts_with_the_values_as_they_are(rendered: Rendered, tmp_path: Path) -> None:
    settings = rendered.settings(tmp_path)
    assert (settings.preview, settings.drogue_user) == (False, "fleet")


def test_a_pod_is_given_as_many_events_as_it_works_on(rendered: Rendered, tmp_path: Path) -> None:
    settings = rendered.settings(tmp_path)
    assert rendered.pod["containerConcurrency"] == settings.workers * settings.threads


def test_the_cache_has_room_and_is_where_the_volume_is(rendered: Rendered) -> None:
    (volume,) = (volume for volume in rendered.pod["volumes"] if volume["name"] == "cache")
    (mount,) = (mount for mount in rendered.container["volumeMounts"] if mount["name"] == "cache")
    environment = rendered.environment
    assert environment["FIRMWARE_CACHE_DIR"] == mount["mountPath"]
    assert quantity(volume["emptyDir"]["sizeLimit"]) >= 1.1 * int(environment["FIRMWARE_CACHE_BYTES"])
    assert rendered.container["resources"]["requests"]["ephemeral-storage"] == volume["emptyDir"]["sizeLimit"]


def test_pods_have_the_time_to_answer_and_to_finish(rendered: Rendered, tmp_path: Path) -> None:
    settings = rendered.settings(tmp_path)
    # Knative tells a pod to go after at most 30 s in which it drains it.
    assert settings.event_deadline_seconds < server.graceful_timeout < rendered.pod["timeoutSeconds"] - 30


def test_the_last_pod_outlives_a_devices_pause(rendered: Rendered, tmp_path: Path) -> None:
    annotations = rendered.one("Service")["spec"]["template"]["metadata"]["annotations"]
    retention = annotations["autoscaling.knative.dev/scale-to-zero-pod-retention-period"]
    assert rendered.settings(tmp_path).poll_seconds < seconds(retention) <= 3600  # more Knative does not take
    assert annotations["autoscaling.knative.dev/min-scale"] == "0"
    assert 1 < int(annotations["autoscaling.knative.dev/max-scale"]) <= 100


def test_probes_ask_for_what_the_function_answers(rendered: Rendered, tmp_path: Path) -> None:
    client = Client(create_app(rendered.settings(tmp_path)))
    for probe in ("readinessProbe", "livenessProbe"):
        asked = rendered.container[probe]["httpGet"]
        assert set(asked) == {"path"}, "Knative knows the port"
        assert client.get(asked["path"]).status_code == 200
    liveness = rendered.container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 20


# --- Security


def test_every_container_is_restricted(rendered: Rendered) -> None:
    containers = [container for spec in found("containers", rendered.objects) for container in spec]
    assert len(containers) == len(rendered.all("Service"))
    for container in containers:
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert set(container["resources"]) == {"requests", "limits"}
        assert not {"command", "args"} & set(container)
    assert set(found("automountServiceAccountToken", rendered.objects)) == {False}


def test_strangers_do_not_reach_what_takes_events_without_credentials(kafka: Rendered, tmp_path: Path) -> None:
    settings = kafka.settings(tmp_path)
    assert (settings.events_user, settings.events_token) == (None, None)
    for service in kafka.all("Service"):
        assert service["metadata"]["labels"][VISIBILITY] == "cluster-local"


def test_what_strangers_reach_does_not_start_without_credentials(event_source: Rendered, tmp_path: Path) -> None:
    (service,) = event_source.all("Service")
    assert VISIBILITY not in service["metadata"]["labels"]
    assert service["metadata"]["annotations"] == {"networking.knative.dev/http-protocol": "Redirected"}
    settings = event_source.settings(tmp_path)
    assert (settings.events_user, settings.events_token) == (None, "replace-me")
    required = {key["key"] for key in found("secretKeyRef", service)}
    assert required == {"EVENTS_TOKEN"}


# --- Delivery


def retrying(delivery: Object, each: float, useless_after: float = float("inf")) -> float:
    """Return the seconds until a KafkaSource is done with an event whose attempts take `each` and fail.

    An attempt that begins when the event is of no use any more is the last: it is answered at once with `stale`.
    """
    assert delivery["backoffPolicy"] == "linear", "the n-th pause is n times the delay"
    now = each
    for retry in range(1, delivery["retry"] + 1):
        now += seconds(delivery["backoffDelay"]) * retry
        if now > useless_after:
            return now
        now += each
    return now


def test_retries_last_as_long_as_the_event_is_of_use(kafka: Rendered, tmp_path: Path) -> None:
    source = kafka.one("KafkaSource")
    delivery = source["spec"]["delivery"]
    settings = kafka.settings(tmp_path)
    assert (source["apiVersion"], source["spec"]["ordering"]) == ("sources.knative.dev/v1", "ordered")
    assert {"retry", "backoffDelay", "backoffPolicy", "timeout", "deadLetterSink"} == set(delivery)
    assert all(delivery[key].startswith("PT") for key in ("backoffDelay", "timeout")), "durations are those of ISO 8601"
    fast = retrying(delivery, 0)
    slow = retrying(delivery, settings.event_deadline_seconds, settings.event_max_age_seconds)
    unanswered = retrying(delivery, seconds(delivery["timeout"]))
    for lasts in (fast, slow):
        assert settings.event_max_age_seconds <= lasts <= 1.2 * settings.event_max_age_seconds
    assert settings.event_deadline_seconds < seconds(delivery["timeout"]) <= kafka.pod["timeoutSeconds"]
    # What the comments and the page say that it costs.
    told = [f"{lasts:g} s" for lasts in (fast, slow, unanswered)]
    (comment,) = re.findall(r"answered at once: .*", (KAFKA / "kafka-source.yaml").read_text())
    assert re.findall(r"\d+ s\b", comment) == told
    page = (ROOT / "docs" / "deliver-events.md").read_text()
    assert re.findall(r"\| (\d+ s) \|$", page, re.MULTILINE) == told


def test_kafka_is_read_by_one_group_from_now_on_and_never_in_the_clear(kafka: Rendered) -> None:
    source = dict(kafka.one("KafkaSource")["spec"])
    for tested in ("sink", "delivery", "ordering"):
        source.pop(tested)

    def key(name: str) -> Object:
        return {"secretKeyRef": {"name": "fleet-kafka", "key": name}}

    assert source == {
        "bootstrapServers": ["kafka.example.com:9093"],
        "topics": ["events-example"],
        "consumerGroup": "fleet-function",
        "consumers": 1,
        "initialOffset": "latest",
        "net": {
            "tls": {"enable": True, "caCert": key("ca.crt")},
            "sasl": {"enable": True, "type": key("sasl.mechanism"), "user": key("user"), "password": key("password")},
        },
    }
    assert kafka.secrets["fleet-kafka"]["sasl.mechanism"] in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def test_the_example_of_an_application_delivers_with_the_credentials_of_the_example(
    event_source: Rendered, tmp_path: Path
) -> None:
    application = yaml.safe_load((EVENT_SOURCE / "application.example.yaml").read_text())
    endpoint = application["spec"]["knative"]["endpoint"]
    secret = event_source.secrets["fleet-events"]
    assert endpoint["auth"] == {"bearer": {"token": secret["EVENTS_TOKEN"]}}
    assert endpoint["url"].startswith("https://fleet-function.fleet.")
    assert re.fullmatch(r"\d+s", endpoint["timeout"])
    assert event_source.settings(tmp_path).event_deadline_seconds < seconds(endpoint["timeout"]) <= 20


# --- A private authority


class Unambiguous(yaml.SafeLoader):
    """A loader that takes no key twice: `kubectl` takes the last one, and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{self.name}: a key stands twice: {keys}"
        return super().construct_mapping(node, deep)


#: What `docs/knative.md` says to uncomment.
COMPONENTS = re.compile(r"^# (components:.*)$", re.MULTILINE)


@pytest.fixture(params=[KAFKA, EVENT_SOURCE], ids=["kafka", "drogue-event-source"])
def changed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A kustomization as it is, and after a reader followed the page on private authorities."""
    page = (ROOT / "docs" / "knative.md").read_text()
    assert "patches:" not in page, "a second key would replace the kustomization's own"
    assert "`components:`" in page
    folder = tmp_path / "knative"
    shutil.copytree(KNATIVE, folder)
    copy = folder / request.param.relative_to(KNATIVE)
    text, count = COMPONENTS.subn(r"\1", (copy / "kustomization.yaml").read_text())
    assert count == 1
    (copy / "kustomization.yaml").write_text(text)
    return request.param, copy


def test_a_private_authority_changes_nothing_but_a_volume(changed: tuple[Path, Path]) -> None:
    before, after = map(Rendered, changed)
    assert after.pod["volumes"].pop() == {"name": "ca", "configMap": {"name": "fleet-ca"}}
    assert after.container["volumeMounts"].pop() == {"name": "ca", "mountPath": "/etc/fleet", "readOnly": True}
    assert after.objects == before.objects


def test_keys_and_the_deny_list_come_with_a_component(tmp_path: Path) -> None:
    shutil.copytree(KNATIVE, tmp_path / "knative")
    file = tmp_path / "knative" / "kustomization.yaml"
    file.write_text(file.read_text() + "components: [trust]\n")
    before, after = Rendered(KAFKA), Rendered(file.parent)
    assert after.environment.items() - before.environment.items() == {
        ("FIRMWARE_VERIFY_KEYS", "/etc/fleet-keys"),
        ("FIRMWARE_DENY", "/etc/fleet-denied/denied"),
    }
    volumes = {volume["name"]: volume.get("configMap", {}).get("name") for volume in after.pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in after.container["volumeMounts"]}
    assert (mounts["/etc/fleet-keys"], mounts["/etc/fleet-denied"]) == ("fleet-keys", "fleet-denied")


def test_no_manifest_has_a_key_twice(changed: tuple[Path, Path]) -> None:
    for folder in changed:
        for path in folder.rglob("*.yaml"):
            with path.open() as file:
                assert list(yaml.load_all(file, Unambiguous))


# --- func.yaml


@pytest.fixture(scope="module")
def func() -> Object:
    described: Object = yaml.safe_load((ROOT / "func.yaml").read_text())
    return described


def test_func_yaml_names_what_the_settings_know_and_what_the_cluster_has(func: Object, variables: set[str]) -> None:
    lines = (KNATIVE / "base" / "settings.env").read_text().splitlines()
    settings = {line.partition("=")[0] for line in lines if not line.startswith("#")}
    (secret,) = (
        secret["stringData"]
        for secret in yaml.safe_load_all((KNATIVE / "secrets.example.yaml").read_text())
        if secret["metadata"]["name"] == "fleet-function"
    )
    there = {"configMap": settings, "secret": set(secret)}
    named = [variable for variable in func["run"]["envs"] if "name" in variable]
    (whole,) = (variable for variable in func["run"]["envs"] if "name" not in variable)
    # All keys that there are: which ones are needed depends on how Drogue Cloud and the OCI registry are reached.
    assert whole == {"value": "{{ secret:fleet-function }}"}
    assert {"DROGUE_API_URL", "FIRMWARE_REGISTRY"} <= {variable["name"] for variable in named} <= variables
    assert {"DROGUE_TOKEN", "FIRMWARE_REGISTRY_TOKEN"} <= set(secret) <= variables
    for variable in named:
        if reference := re.fullmatch(r"\{\{ (\w+):fleet-function:(\w+) \}\}", variable["value"]):
            assert reference[2] == variable["name"]
            assert reference[2] in there[reference[1]]
        else:
            assert not set("{}") & set(variable["value"])
            assert variable["name"] not in secret


def test_func_yaml_says_the_same_as_the_service(func: Object, kafka: Rendered, tmp_path: Path) -> None:
    values = {variable["name"]: variable["value"] for variable in func["run"]["envs"] if "name" in variable}
    (volume,) = func["run"]["volumes"]
    (theirs,) = (volume for volume in kafka.pod["volumes"] if volume["name"] == "cache")
    assert (volume["path"], volume["emptyDir"]) == (values["FIRMWARE_CACHE_DIR"], theirs["emptyDir"])
    for name in ("FIRMWARE_CACHE_DIR", "FIRMWARE_CACHE_BYTES", "PREVIEW"):
        assert values[name] == kafka.environment[name]
    options = func["deploy"]["options"]
    limits = dict(options["resources"]["limits"])
    assert limits.pop("concurrency") == kafka.settings(tmp_path).threads
    requests = dict(kafka.container["resources"]["requests"])
    requests.pop("ephemeral-storage")  # func does not know it
    assert options["resources"]["requests"] == requests
    assert limits == kafka.container["resources"]["limits"]
    annotations = kafka.one("Service")["spec"]["template"]["metadata"]["annotations"]
    assert {bound: str(pods) for bound, pods in options["scale"].items()} == {
        bound: annotations[f"autoscaling.knative.dev/{bound}-scale"] for bound in ("min", "max")
    }
    assert func["deploy"]["healthEndpoints"] == {"liveness": "/health/liveness", "readiness": "/health/readiness"}
    assert func["name"] == kafka.one("KafkaSource")["spec"]["sink"]["ref"]["name"]
    assert {label["key"]: label["value"] for label in func["deploy"]["labels"]} == {VISIBILITY: "cluster-local"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (func["runtime"], func["invoke"], project["name"]) == ("python", "http", "function")
    assert isinstance(func["created"], str), "the timestamp has to be quoted"


# --- An audit trail


SINKS = {
    "broker": {"apiVersion": "eventing.knative.dev/v1", "kind": "Broker"},
    "kafka": {"apiVersion": "eventing.knative.dev/v1alpha1", "kind": "KafkaSink"},
}


@pytest.mark.parametrize("kind", SINKS)
def test_update_events_go_from_the_function_to_a_sink_that_is_there(kafka: Rendered, kind: str) -> None:
    objects = render(KNATIVE / "audit" / kind)
    assert {each["metadata"]["namespace"] for each in objects} == {"fleet"}
    by_kind = {each["kind"]: each for each in objects}
    assert set(by_kind) == {"SinkBinding", "NetworkPolicy", SINKS[kind]["kind"]}
    function, sink = kafka.one("Service"), by_kind[SINKS[kind]["kind"]]
    assert sink["apiVersion"] == SINKS[kind]["apiVersion"]
    binding = by_kind["SinkBinding"]
    assert binding["apiVersion"] == "sources.knative.dev/v1"
    assert binding["spec"] == {
        "subject": {"apiVersion": function["apiVersion"], "kind": "Service", "name": function["metadata"]["name"]},
        "sink": {"ref": {**SINKS[kind], "name": sink["metadata"]["name"]}},
    }


@pytest.mark.parametrize("kind", SINKS)
def test_pods_reach_what_takes_events_and_nothing_more(kafka: Rendered, kind: str) -> None:
    (policy,) = (each for each in render(KNATIVE / "audit" / kind) if each["kind"] == "NetworkPolicy")
    (own,) = kafka.all("NetworkPolicy")
    assert policy["metadata"]["name"] != own["metadata"]["name"]
    assert policy["spec"] == {
        "podSelector": own["spec"]["podSelector"],
        "policyTypes": ["Egress"],
        "egress": [
            {
                "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "knative-eventing"}}}],
                "ports": [{"protocol": "TCP", "port": 8080}],
            }
        ],
    }


def test_the_kafka_sinks_secret_is_in_the_example() -> None:
    (sink,) = (each for each in render(KNATIVE / "audit" / "kafka") if each["kind"] == "KafkaSink")
    secret = yaml.safe_load((KNATIVE / "audit" / "kafka" / "secrets.example.yaml").read_text())
    assert sink["spec"]["auth"] == {"secret": {"ref": {"name": secret["metadata"]["name"]}}}
    # The keys that KafkaSink documents for SASL and TLS.
    assert set(secret["stringData"]) == {"protocol", "sasl.mechanism", "user", "password", "ca.crt"}


def test_the_trigger_filters_what_the_function_sends() -> None:
    trigger = yaml.safe_load((KNATIVE / "audit" / "broker" / "trigger.example.yaml").read_text())
    attributes = trigger["spec"]["filter"]["attributes"]
    assert attributes == {"type": UPDATE_EVENT, "subject": Subject.ROLLED_BACK}
    (broker,) = (each for each in render(KNATIVE / "audit" / "broker") if each["kind"] == "Broker")
    assert trigger["spec"]["broker"] == broker["metadata"]["name"]
