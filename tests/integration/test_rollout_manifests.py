"""The CronJob that moves rollouts on: what a cluster is told of it, and that its command works."""

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fleet_fn.drogue.update_record import timestamp
from fleet_fn.settings import Settings
from tests.integration.test_manifests import EVENT_SOURCE, KNATIVE, Object, Rendered, found, quantity
from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT
from tests.support.kustomize import render

FOLDER = KNATIVE / "rollout"
LABELS = {"app.kubernetes.io/name": "fleet-rollout"}


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(FOLDER)


def one(objects: list[Object], kind: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def job(objects: list[Object]) -> Object:
    spec: Object = one(objects, "CronJob")["spec"]["jobTemplate"]["spec"]
    return spec


@pytest.fixture(scope="module")
def pod(job: Object) -> Object:
    spec: Object = job["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: Object) -> Object:
    (container,) = pod["containers"]
    found: Object = container
    return found


def environment(objects: list[Object], container: Object) -> dict[str, str]:
    """The container's environment, with the values of the example's Secrets."""
    config, secret = container["envFrom"]
    name = config["configMapRef"]["name"]
    (settings,) = [each["data"] for each in objects if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name]
    secrets = {
        each["metadata"]["name"]: each["stringData"]
        for each in yaml.safe_load_all((KNATIVE / "secrets.example.yaml").read_text())
    }
    return {**settings, **secrets[secret["secretRef"]["name"]]}


def test_it_is_a_job_an_account_a_policy_and_the_functions_settings(objects: list[Object]) -> None:
    assert sorted(each["kind"] for each in objects) == ["ConfigMap", "CronJob", "NetworkPolicy", "ServiceAccount"]
    assert {each["metadata"]["namespace"] for each in objects} == {"fleet"}


@pytest.mark.parametrize("other", [KNATIVE, EVENT_SOURCE], ids=["kafka", "drogue-event-source"])
def test_settings_are_the_functions_and_the_image_is_built_with_it(
    objects: list[Object], container: Object, other: Path
) -> None:
    function = Rendered(other)
    assert container["image"] == function.container["image"].replace("/fleet-function:", "/fleet-publisher:")
    assert container["envFrom"] == function.container["envFrom"]
    assert one(objects, "ConfigMap") in function.objects


def test_the_settings_are_enough(objects: list[Object], container: Object) -> None:
    settings = Settings.for_operator(environment(objects, container))
    assert settings.firmware_registry
    assert settings.drogue_user == "fleet"


def test_it_has_no_rights(objects: list[Object], pod: Object, container: Object) -> None:
    account = one(objects, "ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert (account["automountServiceAccountToken"], pod["automountServiceAccountToken"]) == (False, False)
    assert not [each for each in objects if "Role" in each["kind"]]
    assert container["securityContext"] == Rendered(KNATIVE).container["securityContext"]


def test_it_writes_to_its_temporary_folder_only(pod: Object, container: Object) -> None:
    (volume,) = pod["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/tmp"}]
    assert quantity(volume["emptyDir"]["sizeLimit"]) >= 2**24


def test_no_client_reaches_it_and_it_reaches_what_the_function_does(objects: list[Object], job: Object) -> None:
    policy = one(objects, "NetworkPolicy")["spec"]
    (functions,) = Rendered(KNATIVE).all("NetworkPolicy")
    assert policy["podSelector"] == {"matchLabels": LABELS}
    assert job["template"]["metadata"]["labels"] == LABELS
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    assert policy["egress"] == functions["spec"]["egress"]


def test_a_pass_is_over_before_the_next(objects: list[Object], job: Object) -> None:
    cron = one(objects, "CronJob")["spec"]
    minutes = re.fullmatch(r"\*/(\d+) \* \* \* \*", cron["schedule"])
    assert minutes
    assert job["activeDeadlineSeconds"] < 60 * int(minutes[1])
    assert (cron["concurrencyPolicy"], job["backoffLimit"]) == ("Forbid", 0)
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_private_authority_is_mounted_where_the_settings_look(tmp_path: Path) -> None:
    for folder in ("base", "private-ca", "rollout"):
        (tmp_path / folder).mkdir()
        for path in (KNATIVE / folder).iterdir():
            text = path.read_text()
            (tmp_path / folder / path.name).write_text(re.sub(r"^# (components:.*)$", r"\1", text, flags=re.MULTILINE))
    (container,) = next(found("containers", render(tmp_path / "rollout")))
    assert {"name": "ca", "mountPath": "/etc/fleet", "readOnly": True} in container["volumeMounts"]


def test_it_takes_the_keys_and_the_deny_list_that_the_function_takes(tmp_path: Path) -> None:
    shutil.copytree(KNATIVE, tmp_path / "knative")
    for folder, component in ((".", "trust"), ("rollout", "../trust")):
        file = tmp_path / "knative" / folder / "kustomization.yaml"
        file.write_text(file.read_text() + f"components: [{component}]\n")
    function = Rendered(tmp_path / "knative")
    cron = one(render(tmp_path / "knative" / "rollout"), "CronJob")
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    trusts = {"FIRMWARE_VERIFY_KEYS", "FIRMWARE_DENY"}
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables == {name: value for name, value in function.environment.items() if name in trusts}
    for each in (volume for volume in function.pod["volumes"] if volume["name"] in ("keys", "denied")):
        assert each in pod["volumes"]
    for each in (mount for mount in function.container["volumeMounts"] if mount["name"] in ("keys", "denied")):
        assert each in container["volumeMounts"]
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


def test_its_command_moves_a_rollout(container: Object, tmp_path: Path) -> None:
    publish(tmp_path, "sensor", "1.1.0", random_bytes(64))
    stages = [{"percent": 1, "after": "1h"}, {"percent": 100}]
    since = timestamp(datetime.now(UTC) - timedelta(hours=2))
    with Drogue() as cloud:
        spec = {"firmware": {"container": {"image": "sensor:1.1.0"}, "rollout": {"stages": stages}}}
        rollout = {"version": "1.1.0", "stage": 0, "since": since}
        cloud.put("example", spec=spec, status={"firmware": {"rollout": rollout}})
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}",
            "PREVIEW": "false",
            **cloud.environment,
        }
        command = [sys.executable, "-m", "fleet_fn", *container["args"]]
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert cloud.object("example")["status"]["firmware"]["rollout"]["stage"] == 1
