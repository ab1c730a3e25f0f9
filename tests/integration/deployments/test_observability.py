"""Rules, alerts and dashboards are valid and tested, and use metrics that exist."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.checks import at_least_one
from tests.support.monitoring_records import NOW, make_drift, make_quality
from tests.support.paths import REPOSITORY
from tests.support.prometheus import ALERTMANAGER, DASHBOARDS, PROMETHEUS, prometheus_command, run_prometheus_tool
from tests.support.serving import CLASSES, ROW, FakeModel, make_contract, make_rollout, run_service
from towline.config import SloConfig
from towline.config.monitoring import LATENCY_BUCKETS_S
from towline.monitoring.reporting.metrics_exporter import FlowTimes, ModelMetricsSnapshot, format_metrics
from towline.monitoring.slo.burn_rate import BURN_RATE_ALERTS, BurnRate, SloStatus
from towline.monitoring.slo.metrics_scraper import PREDICTION_ROUTES

RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
BOARDS = sorted(DASHBOARDS.glob("*.json"))
_PROMETHEUS_METRICS = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}  # Prometheus makes these itself
_TARGET_LABELS = {"job", "instance"}
_LABEL_KEYWORDS = "by|on|without|ignoring|group_left|group_right"


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel


def exported_labels(tmp_path: Path) -> dict[str, set[str]]:
    """The labels of each sample that a service and monitoring export, by the sample's name."""
    texts = []
    for kind in ((), CLASSES):
        folder = tmp_path / f"classes-{len(kind)}"
        folder.mkdir()
        with run_service(FakeModel(make_contract(kind), folder)) as service:
            challenger = FakeModel(make_contract(kind), folder, version=4)
            service.reloader.rollout = make_rollout(folder, challenger, steps=(50.0, 100.0))
            service.client.post("/predict", {"rows": [{**ROW, "size": None}]})
            service.client.post("/predict", {})
            texts.append(service.client.get("/metrics").text)
    burning = SloStatus(
        name="availability", state="burning", goal="", target=0.999, period=NOW - NOW, budget=0.5,
        burns=(BurnRate(window="1h", rate=20.0),),
    )  # fmt: skip
    snapshot = ModelMetricsSnapshot(
        model="m", version=1, since=NOW, trained=NOW, drift=make_drift(), quality=make_quality(), slos=(burning,),
        flows=(FlowTimes(flow="drift", last=NOW, due=NOW),), slo=SloConfig(availability=0.9, p95_ms=100),
    )  # fmt: skip
    texts.append(format_metrics([snapshot], NOW, ledger_up=True))
    labels: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update({*sample.labels, *_TARGET_LABELS})
    return labels


def parse_metrics(query: str) -> dict[str, set[str]]:
    """The metrics of a query, each with the labels that its selector names."""
    query = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    query = re.sub(rf"\b({_LABEL_KEYWORDS})\s*\([^)]*\)", " ", query)
    labels: dict[str, set[str]] = {}
    for name, _, matchers in re.findall(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\b(\s*\{([^}]*)\})?(?!\s*\()", query):
        if name not in ("and", "or", "unless", "offset", "bool", "d", "m", "h", "s", *_LABEL_KEYWORDS.split("|")):
            labels.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", matchers))
    return labels


def parse_grouping_labels(query: str) -> set[str]:
    """Labels that a query groups by, or matches on."""
    query = re.sub(r'"[^"]*"', '""', query)
    return {
        label
        for _, group in re.findall(rf"\b({_LABEL_KEYWORDS})\s*\(([^)]*)\)", query)
        for label in re.findall(r"\w+", group)
    }


def test_metrics_and_labels_of_a_query_are_parsed() -> None:
    """The tests below depend on it."""
    query = 'sum by (job, a) (rate(x_total{route=~".*(/p)",b!="c"}[5m])) / on (d) group_left () (up > 0) or y:z:rate1h'
    assert parse_metrics(query) == {"x_total": {"route", "b"}, "up": set(), "y:z:rate1h": set()}
    assert parse_grouping_labels(query) == {"job", "a", "d"}


def test_the_configuration_of_prometheus_is_valid(tmp_path: Path) -> None:
    """promtool accepts the file, the rules, and the path of the key's file."""
    key = tmp_path / "metrics_key"
    key.write_text("k")
    config = tmp_path / "prometheus.yml"
    text = (PROMETHEUS / "prometheus.yml").read_text()
    assert "/run/secrets/metrics_key" in text
    config.write_text(text.replace("/run/secrets/metrics_key", str(key)).replace("rules/", f"{PROMETHEUS}/rules/"))
    result = run_prometheus_tool("promtool", "check", "config", config, folders=[tmp_path])
    assert result.returncode == 0, result.stdout + result.stderr
    assert all(f"{path}" in result.stdout for path in RULES)
    result = run_prometheus_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_alert_rules_pass_their_promtool_tests() -> None:
    """promtool runs the rules on generated series: each alert fires when it must, and not before."""
    commands = [prometheus_command("promtool", ["test", "rules", path]) for path in TESTS]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(TESTS), "\n".join(outputs)


def test_every_alert_has_tests_that_it_fires_and_that_it_does_not() -> None:
    """For each alert and severity there is a time at which it must fire, and one at which it must not."""
    checks = [
        check
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test["alert_rule_test"]
    ]
    fires = {
        (check["alertname"], alert["exp_labels"]["severity"], alert["exp_labels"].get("window"))
        for check in checks
        for alert in check.get("exp_alerts", ())
    }
    silent = {check["alertname"] for check in checks if not check.get("exp_alerts")}
    assert {(alert["alert"], alert["labels"]["severity"], alert["labels"].get("window")) for alert in alerts()} == fires
    assert {alert["alert"] for alert in alerts()} == silent


def test_the_configuration_of_alertmanager_is_valid() -> None:
    """amtool accepts the file, and each severity has a receiver."""
    result = run_prometheus_tool("amtool", "check-config", ALERTMANAGER / "alertmanager.yml")
    assert result.returncode == 0, result.stdout + result.stderr
    config = yaml.safe_load((ALERTMANAGER / "alertmanager.yml").read_text())
    names = {receiver["name"] for receiver in config["receivers"]}
    assert {alert["labels"]["severity"] for alert in alerts()} == names
    for name in at_least_one(names):
        words = ("config", "routes", "test", f"--config.file={ALERTMANAGER / 'alertmanager.yml'}", f"severity={name}")
        assert run_prometheus_tool("amtool", *words).stdout.strip() == name


def test_a_webhook_receives_every_alert(tmp_path: Path) -> None:
    """The file is readable by its owner only; each receiver has the address of the environment, or none."""
    script, config_file = REPOSITORY / "deployments" / "receivers.py", tmp_path / "alertmanager.yml"
    for address in ("https://hooks.example.com/x?key=s3cret", ""):
        subprocess.run([sys.executable, script, config_file], env={"ALERT_WEBHOOK": address}, check=True, timeout=60)
        assert config_file.stat().st_mode & 0o077 == 0
        result = run_prometheus_tool("amtool", "check-config", config_file, folders=[tmp_path])
        assert result.returncode == 0, result.stdout + result.stderr
        config = yaml.safe_load(config_file.read_text())
        hooks = [receiver.get("webhook_configs") for receiver in config["receivers"]]
        assert hooks == [[{"url": address, "send_resolved": True}] if address else None] * 2
    wrong = subprocess.run(
        [sys.executable, script, config_file],
        env={"ALERT_WEBHOOK": "s3cret"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert wrong.returncode == 1
    assert b"ALERT_WEBHOOK is not an address" in wrong.stderr
    assert b"s3cret" not in wrong.stderr


def test_every_metric_and_label_of_a_query_exists(tmp_path: Path) -> None:
    """Each metric and label of a rule or a panel is made by the service, by monitoring or by a rule."""
    known = exported_labels(tmp_path) | _PROMETHEUS_METRICS
    for rule in rules():
        if "record" in rule:
            added = {*rule.get("labels", ()), *parse_grouping_labels(rule["expr"])}
            parts = set().union(*(known.get(name, set()) for name in parse_metrics(rule["expr"])))
            known[rule["record"]] = known.get(rule["record"], set()) | added | parts
    added = {"model", "le", "alertname", "alertstate", "severity"}
    queries = [(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()]
    queries += [(panel["title"], target["expr"]) for _, panel in panels() for target in panel["targets"]]
    assert len(queries) > 100
    for where, query in at_least_one(queries):
        metrics = parse_metrics(query)
        assert metrics or query.startswith("vector("), (where, query)
        labels: set[str] = set(added)
        for name, matched in metrics.items():
            assert name in known, (where, name)
            existing = known[name] | _TARGET_LABELS | (set.union(*known.values()) if name == "ALERTS" else set())
            assert matched <= existing, (where, name, matched - existing)
            labels |= existing
        assert parse_grouping_labels(query) <= labels, (where, parse_grouping_labels(query) - labels)


def test_every_alert_has_a_description_and_a_runbook() -> None:
    """It has a summary, a description, and a link to an existing section of the guide."""
    guide = (REPOSITORY / "docs" / "observability.md").read_text()
    anchors = {
        re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-")
        for head in re.findall(r"^#+ (.*)", guide, re.MULTILINE)
    }
    for alert in at_least_one(alerts()):
        annotations = alert["annotations"]
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert set(annotations) == {"summary", "description", "runbook_url"}
        page, _, anchor = annotations["runbook_url"].partition("#")
        assert page == "docs/observability.md"
        assert anchor in anchors, alert["alert"]


def test_each_threshold_is_defined_once() -> None:
    """Alert rules contain no threshold of their own, and the burn rates are those of towline slo."""
    for rule in at_least_one(alerts()):
        numbers = set(re.findall(r"(?:[<>]=?|[!=]=)\s*(?:bool\s*)?([\d.]+)", rule["expr"])) - {"0", "1"}
        assert numbers == set(), rule["alert"]
    limits = {
        rule["labels"]["window"]: rule["expr"] for rule in rules() if rule.get("record") == "towline:slo_burn:limit"
    }
    assert limits == {pair.long: f"vector({pair.rate:g})" for pair in BURN_RATE_ALERTS}
    for pair in BURN_RATE_ALERTS:
        (alert,) = [
            rule for rule in alerts() if rule["alert"] == "LatencyBurns" and rule["labels"]["window"] == pair.long
        ]
        assert alert["labels"]["severity"] == pair.severity
        assert {f"towline:slo_burn:rate{length}" for length in (pair.long, pair.short)} < set(
            parse_metrics(alert["expr"])
        )


def test_rules_count_slos_as_monitoring_does() -> None:
    """The rules have the prediction routes and the histogram bounds of the service."""
    text = (PROMETHEUS / "rules" / "recorded.yml").read_text()
    assert set(re.findall(r'route=~"([^"]*)"', text)) == {f".*({'|'.join(PREDICTION_ROUTES)})"}
    thresholds = (PROMETHEUS / "rules" / "thresholds.yml").read_text()
    listed_edges = thresholds[thresholds.index("at or above it: ") : thresholds.index("; another number")]
    assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", listed_edges)] == list(LATENCY_BUCKETS_S)
    (edge,) = re.findall(r"towline_slo_p95_edge_seconds\[1d\]\)\) or vector\((.*)\)", thresholds)
    assert float(edge) in LATENCY_BUCKETS_S


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_each_panel_of_a_dashboard_is_complete(path: Path) -> None:
    """Each panel has a title, a description, a unit, the selected data source, and a place that no other panel has."""
    board = json.loads(path.read_text())
    variables = {variable["name"] for variable in board["templating"]["list"]}
    occupied: set[tuple[int, int]] = set()
    assert "datasource" in variables
    assert board["uid"] == f"towline-{path.stem}"
    for panel in at_least_one(board["panels"]):
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {"${datasource}"}
        for target in at_least_one(panel["targets"]):
            names = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert names <= variables, panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & occupied, panel["title"]
        occupied |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    """It queries the stack's Prometheus, and reads the folder that the stack mounts."""
    provisioning = REPOSITORY / "deployments" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "towline.yml").read_text())["providers"]
    mounted = [volume.split(":") for volume in compose["services"]["grafana"]["volumes"]]
    assert [source for source, target, *_ in mounted if target == provider["options"]["path"]] == [
        "./deployments/grafana/dashboards"
    ]
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    hosts = {
        target.partition(":")[0]
        for job in config["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    assert hosts - {"localhost"} <= set(compose["services"])
