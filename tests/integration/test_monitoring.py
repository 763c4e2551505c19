"""What Prometheus makes of the alerts and of the dashboard's queries, and kubectl of all of it."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.function import ROOT
from tests.support.kustomize import render

FOLDER = ROOT / "knative" / "monitoring"
TESTS = Path(__file__).parent / "monitoring" / "alerts_test.yaml"
Object = dict[str, Any]


class Promtool:
    """Prometheus' own tool, which asks nobody."""

    def check(self, rules: Path) -> str:
        return self._run("check", "rules", "--lint=all", "--lint-fatal", str(rules))

    def test(self, tests: Path) -> str:
        return self._run("test", "rules", str(tests))

    def _run(self, *arguments: str) -> str:
        ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def promtool() -> Promtool:
    return Promtool()


@pytest.fixture(scope="module")
def applied() -> dict[str, Object]:
    """What `kubectl apply -k` would send, by kind."""
    return {found["kind"]: found for found in render(FOLDER)}


def test_prometheus_takes_the_alerts(promtool: Promtool) -> None:
    assert re.search(r"SUCCESS: \d+ rules", promtool.check(FOLDER / "alerts.yaml"))


def test_alerts_fire_when_they_should_and_only_then(promtool: Promtool) -> None:
    assert "SUCCESS" in promtool.test(TESTS)


def test_every_alert_is_tested() -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    tested = {name for test in yaml.safe_load(TESTS.read_text())["tests"] for name in fired(test)}
    assert tested == {rule["alert"] for rule in group["rules"] if "alert" in rule}


def fired(test: Object) -> set[str]:
    """The alerts that a test expects."""
    found = set()
    for case in test["promql_expr_test"]:
        if case.get("exp_samples"):
            found |= set(re.findall(r'alertname="(\w+)"', f"{case['expr']} {case['exp_samples']}"))
    return found


def test_prometheus_takes_the_dashboards_queries(promtool: Promtool, tmp_path: Path) -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    # As Grafana puts them.
    values = {"$__rate_interval": "1m", "$__range": "6h", "$namespace": "fleet|.*", "$job": ".*"}
    rules = []
    for number, query in enumerate(queries):
        for variable, value in values.items():
            query = query.replace(variable, value)
        assert "$" not in query
        rules.append({"record": f"query_{number}", "expr": query})
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(queries)} rules" in promtool.check(file)


def test_what_is_applied_is_all_of_it_in_the_functions_namespace(applied: dict[str, Object]) -> None:
    assert set(applied) == {"ConfigMap", "NetworkPolicy", "PodMonitor", "PrometheusRule"}
    for kind, found in applied.items():
        assert found["metadata"]["namespace"] == "fleet"
        if kind in ("PodMonitor", "PrometheusRule"):
            assert found["apiVersion"] == "monitoring.coreos.com/v1"
            assert found["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_grafanas_side_car_finds_the_dashboard(applied: dict[str, Object]) -> None:
    found = applied["ConfigMap"]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["name"] == "fleet-function-dashboard"  # no hash: the last one would stay
    assert found["data"] == {"dashboard.json": (FOLDER / "dashboard.json").read_text()}


def test_labels_for_prometheus_change_no_selector(applied: dict[str, Object]) -> None:
    selected = {"matchLabels": {"serving.knative.dev/service": "fleet-function"}}
    assert applied["PodMonitor"]["spec"]["selector"] == selected
    assert applied["NetworkPolicy"]["spec"]["podSelector"] == selected


def test_the_operator_gets_the_alerts_as_they_are(applied: dict[str, Object]) -> None:
    assert applied["PrometheusRule"]["spec"] == yaml.safe_load((FOLDER / "alerts.yaml").read_text())
