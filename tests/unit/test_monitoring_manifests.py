"""What the alerts and the dashboard say, taken together with what the function counts."""

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pytest

from fleet_fn.observability import prometheus
from tests.support.function import ROOT
from tests.support.tekton import load

FOLDER = ROOT / "knative" / "monitoring"
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
Object = dict[str, Any]

#: What the function counts: its metrics, with their labels and what these may be; None is anything.
OUTCOMES: Final = {
    *("sync", "write", "swap", "withheld", "wait", "ignored", "stale", "duplicate"),
    *("invalid", "denied", "failed", "retry"),
}
UPSTREAMS: Final = {"registry", "command", "oci", "hawkbit", "sink"}
METRICS: Final[Mapping[str, Mapping[str, set[str] | None]]] = {
    "fleet_events_total": {"outcome": OUTCOMES},
    "fleet_event_duration_seconds_bucket": {"le": None},
    "fleet_event_duration_seconds_count": {},
    "fleet_event_duration_seconds_sum": {},
    "fleet_upstream_requests_total": {"upstream": UPSTREAMS, "status": {"5..", "429", "401", "403", "error"}},
    "fleet_upstream_duration_seconds_bucket": {"upstream": UPSTREAMS, "le": None},
    "fleet_upstream_duration_seconds_count": {"upstream": UPSTREAMS},
    "fleet_upstream_duration_seconds_sum": {"upstream": UPSTREAMS},
    "fleet_firmware_sent_bytes_total": {},
    "fleet_cache_requests_total": {
        "cache": {"spec", "manifest", "firmware"},
        "result": {"hit", "miss"},
    },
    "fleet_updates_total": {
        "result": {"started", "swapped", "succeeded", "rolled-back", "gave-up", "held", "failed", "halted"}
    },
    "fleet_mqtt_connected": {},
    "fleet_mqtt_waiting": {},
    "fleet_mqtt_received_total": {},
    "fleet_mqtt_redelivered_total": {},
    "fleet_mqtt_given_up_total": {},
    "up": {},
}
#: What a scrape makes of each type: the ends of names, with the labels that come on top.
SERIES: Final[Mapping[str, Mapping[str, set[str]]]] = {
    "counter": {"_total": set()},
    "gauge": {"": set()},
    "histogram": {"_bucket": {"le"}, "_count": set(), "_sum": set()},
}
#: Labels of all of them, which Prometheus adds.
ADDED: Final = {"namespace": None, "job": None}
OPERATORS: Final = {"and", "or"}
FUNCTIONS: Final = {"sum", "max", "count", "rate", "increase", "histogram_quantile", "vector"}

(GROUP,) = load(FOLDER / "alerts.yaml")["groups"]
ALERTS: list[Object] = [rule for rule in GROUP["rules"] if "alert" in rule]
RECORDS: dict[str, str] = {rule["record"]: rule["expr"] for rule in GROUP["rules"] if "record" in rule}
DASHBOARD: Object = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[Object] = DASHBOARD["panels"]
TARGETS: list[tuple[Object, Object]] = [(panel, target) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS: dict[str, str] = {
    **{rule.get("alert") or rule["record"]: rule["expr"] for rule in GROUP["rules"]},
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel, target in TARGETS},
}


@dataclass
class Expression:
    """As much of PromQL as these expressions have."""

    text: str

    @property
    def selectors(self) -> list[tuple[str, dict[str, str]]]:
        """Metrics, with what their labels have to be."""
        return [
            (name, dict(re.findall(r'(\w+)(?:=~|!=|=)"([^"]*)"', labels)))
            for name, labels in re.findall(r"([a-z][a-z_:0-9]*)\b(?! *\()(?:\{([^}]*)\})?", self._ungrouped)
            if name not in OPERATORS
        ]

    @property
    def functions(self) -> set[str]:
        """Functions, and operators that are called as these are."""
        return set(re.findall(r"([a-z_]+) *\(", self._ungrouped)) - OPERATORS

    @property
    def grouped(self) -> dict[str, set[str]]:
        """The labels after `by`, and those after `without`."""
        found: dict[str, set[str]] = {"by": set(), "without": set()}
        for word, labels in re.findall(r"\b(by|without) \(([^)]*)\)", self.text):
            found[word] |= set(labels.split(", "))
        return found

    @property
    def _ungrouped(self) -> str:
        return re.sub(r"\[[^]]*\]|\b(by|without) \([^)]*\)", "", self.text)

    @property
    def known(self) -> dict[str, set[str] | None]:
        """The labels that its metrics have, and what these may be."""
        return {label: values for metric, _ in self.selectors for label, values in labels_of(metric).items()}

    @property
    def results(self) -> set[str]:
        """Labels of what comes out."""
        grouped = self.grouped
        assert not (grouped["by"] and grouped["without"])
        if grouped["without"]:
            return set(self.known) - grouped["without"]
        return grouped["by"] - {"le"} if "histogram_quantile" in self.text else grouped["by"]


def labels_of(metric: str) -> Mapping[str, set[str] | None]:
    if metric not in RECORDS:
        return {**METRICS[metric], **ADDED}
    recorded = Expression(RECORDS[metric])
    return {label: recorded.known[label] for label in recorded.results}


def test_expressions_are_read() -> None:
    read = Expression('sum by (a) (rate(fleet_x_total{a="1", b=~"2|3"}[5m])) / sum without (c) (fleet:y) and up > 10')
    assert read.selectors == [("fleet_x_total", {"a": "1", "b": "2|3"}), ("fleet:y", {}), ("up", {})]
    assert read.functions == {"sum", "rate"}
    assert read.grouped == {"by": {"a"}, "without": {"c"}}


def test_what_is_known_here_is_what_the_function_counts() -> None:
    prometheus.subscription()  # which only a process with a subscription makes
    counted: Any = prometheus._registry._collector_to_names
    registered = {
        collector._name + suffix: {*collector._labelnames, *added}
        for collector in counted
        for suffix, added in SERIES[collector._type].items()
    }
    assert {name: set(labels) for name, labels in METRICS.items() if name != "up"} == registered


@pytest.mark.parametrize("text", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_only_what_the_function_counts_is_asked_for(text: str) -> None:
    expression = Expression(text)
    assert expression.selectors
    assert expression.functions <= FUNCTIONS
    for metric, matched in expression.selectors:
        assert metric in METRICS or metric in RECORDS
        known = labels_of(metric)
        assert set(matched) <= set(known)
        for label, value in matched.items():
            values = known[label]
            assert values is None or set(value.split("|")) <= values, f"{label} is never {value}"
    for labels in expression.grouped.values():
        assert labels <= set(expression.known)


# --- Alerts


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: Object) -> None:
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Fleet([A-Z][a-z]+)+", alert["alert"])
    assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert re.fullmatch(r"\d+[mh]", alert["for"])
    assert set(alert["annotations"]) == {"summary", "description"}
    assert len(alert["annotations"]["summary"]) <= 80 < len(alert["annotations"]["description"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_names_what_there_is(alert: Object) -> None:
    text = " ".join(alert["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= Expression(alert["expr"]).results
    assert set(re.findall(r"\bFleet\w+", text)) <= {other["alert"] for other in ALERTS}
    for variable in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", text):
        assert f"`{variable}`" in SETTINGS
    for outcome in re.findall(r"`(\w+)` lines", text):
        assert outcome in OUTCOMES


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_no_alert_tells_of_a_few(alert: Object) -> None:
    # Two of these are of pods, and the other of a rollout.
    if alert["alert"] not in ("FleetFunctionUnreachable", "FleetEventsDoNotCome", "FleetRolloutHalted"):
        share, _, count = alert["expr"].partition("\nand ")
        assert float(share.rpartition("> ")[2]) > 0
        assert float(count.rpartition("> ")[2]) >= 10


def test_names_are_taken_once_and_what_is_recorded_is_used() -> None:
    names = [rule.get("alert") or rule["record"] for rule in GROUP["rules"]]
    assert len(set(names)) == len(names)
    assert len(ALERTS) <= 13  # events from MQTT have one of their own: Kafka has its own monitoring
    used = {metric for alert in ALERTS for metric, _ in Expression(alert["expr"]).selectors}
    assert set(RECORDS) <= used


#: In knative/monitoring.
ANEW = """
    sed -i '/^spec:/q' prometheus-rule.yaml
    sed '/^#/d; s/^./  &/' alerts.yaml >>prometheus-rule.yaml
"""


def test_the_operator_is_told_the_same() -> None:
    head, spec, rules = (FOLDER / "prometheus-rule.yaml").read_text().partition("\nspec:\n")
    assert spec
    lines = (FOLDER / "alerts.yaml").read_text().splitlines(keepends=True)
    told = "".join(re.sub("^(?=.)", "  ", line) for line in lines if not line.startswith("#"))
    assert rules == told, ANEW
    assert "kind: PrometheusRule" in head
    assert load(FOLDER / "prometheus-rule.yaml")["spec"] == load(FOLDER / "alerts.yaml")


# --- Dashboard


def test_the_dashboard_can_be_put_into_any_grafana() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["uid"] == "fleet-function"
    assert "id" not in DASHBOARD
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "namespace", "job"}
    assert variables["datasource"]["type"] == "datasource"
    for asking in [*PANELS, variables["namespace"], variables["job"]]:
        assert asking["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for variable in (variables["namespace"], variables["job"]):
        metric = re.match(r"label_values\(([a-z_]+)", variable["query"])
        assert metric
        assert metric[1] in METRICS
        # Where Prometheus adds no such label, everything is shown.
        assert variable["allValue"] == ".*"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: Object) -> None:
    assert panel["description"]
    options = panel.get("options", {})
    unit = options["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
    assert unit["unit"]
    names = [target["refId"] for target in panel["targets"]]
    assert len(set(names)) == len(names)
    shown = {target.get("legendFormat") for target in panel["targets"]}
    for override in panel["fieldConfig"]["overrides"]:
        assert override["matcher"]["options"] in shown


@pytest.mark.parametrize(("panel", "target"), TARGETS, ids=[f"{p['title']} {t['refId']}" for p, t in TARGETS])
def test_a_query_is_of_the_functions_that_are_chosen_and_its_legend_of_what_comes_out(
    panel: Object, target: Object
) -> None:
    expression = Expression(target["expr"])
    for _, matched in expression.selectors:
        assert (matched["namespace"], matched["job"]) == ("$namespace", "$job")
    assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) == expression.grouped["by"] - (
        set() if panel["type"] == "heatmap" else {"le"}
    )
    for variable in re.findall(r"\$(\w+)", target["expr"]):
        assert variable in {"namespace", "job", "__range", "__rate_interval"}


def test_panels_lie_beside_each_other() -> None:
    cells: list[tuple[int, int]] = []
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells += itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    assert len(set(cells)) == len(cells)
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)


# --- Pods


def test_prometheus_asks_the_functions_container_and_is_let_in_there_and_nowhere_else() -> None:
    service = load(ROOT / "knative" / "base" / "service.yaml")
    label = "serving.knative.dev/service"
    pods = {"matchLabels": {label: service["metadata"]["name"]}}
    (port,) = service["spec"]["template"]["spec"]["containers"][0]["ports"]
    monitor = load(FOLDER / "pod-monitor.yaml")["spec"]
    assert (monitor["selector"], monitor["jobLabel"]) == (pods, label)
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("user-port", "/metrics")
    policy = load(FOLDER / "network-policy.yaml")
    assert policy["metadata"]["name"] != load(ROOT / "knative" / "base" / "network-policy.yaml")["metadata"]["name"]
    assert policy["spec"] == {
        "podSelector": pods,
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
                    }
                ],
                "ports": [{"protocol": "TCP", "port": port["containerPort"]}],
            }
        ],
    }


def test_the_job_is_called_as_the_alerts_call_it() -> None:
    name = load(ROOT / "knative" / "base" / "service.yaml")["metadata"]["name"]
    jobs = {
        matched["job"] for alert in ALERTS for _, matched in Expression(alert["expr"]).selectors if "job" in matched
    }
    assert jobs == {name}
