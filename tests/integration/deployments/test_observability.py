"""Rules, alerts and dashboards: valid, tested, and about metrics that are really there."""

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
_OWN = {"up": set(), "ALERTS": {"alertname", "alertstate", "severity"}}  # Prometheus makes these itself
_SCRAPED = {"job", "instance"}
_WORDS = "by|on|without|ignoring|group_left|group_right"


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in BOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield path.stem, panel


def exposed(tmp_path: Path) -> dict[str, set[str]]:
    """Every sample that a service and monitoring export, with the labels it has."""
    texts = []
    for kind in ((), CLASSES):
        folder = tmp_path / f"classes-{len(kind)}"
        folder.mkdir()
        with run_service(FakeModel(make_contract(kind), folder)) as service:
            challenger = FakeModel(make_contract(kind), folder, version=4)
            service.live.rollout = make_rollout(folder, challenger, steps=(50.0, 100.0))
            service.client.post("/predict", {"rows": [{**ROW, "size": None}]})
            service.client.post("/predict", {})
            texts.append(service.client.get("/metrics").text)
    burning = SloStatus(
        name="availability", state="burning", goal="", target=0.999, period=NOW - NOW, budget=0.5,
        burns=(BurnRate(window="1h", rate=20.0),),
    )  # fmt: skip
    full = ModelMetricsSnapshot(
        model="m", version=1, since=NOW, trained=NOW, drift=make_drift(), quality=make_quality(), slos=(burning,),
        flows=(FlowTimes(flow="drift", last=NOW, due=NOW),), slo=SloConfig(availability=0.9, p95_ms=100),
    )  # fmt: skip
    texts.append(format_metrics([full], NOW, ledger_up=True))
    labels: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update({*sample.labels, *_SCRAPED})
    return labels


def used(query: str) -> dict[str, set[str]]:
    """The metrics of a query, each with the labels that stand at it."""
    query = re.sub(r'"(?:[^"\\]|\\.)*"', '""', query)
    query = re.sub(rf"\b({_WORDS})\s*\([^)]*\)", " ", query)
    labels: dict[str, set[str]] = {}
    for name, _, matchers in re.findall(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\b(\s*\{([^}]*)\})?(?!\s*\()", query):
        if name not in ("and", "or", "unless", "offset", "bool", "d", "m", "h", "s", *_WORDS.split("|")):
            labels.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", matchers))
    return labels


def grouped(query: str) -> set[str]:
    """Labels that a query adds up by, or matches on."""
    query = re.sub(r'"[^"]*"', '""', query)
    return {
        label for _, given in re.findall(rf"\b({_WORDS})\s*\(([^)]*)\)", query) for label in re.findall(r"\w+", given)
    }


def test_a_query_is_taken_apart() -> None:
    """So that what follows looks at what it should."""
    query = 'sum by (job, a) (rate(x_total{route=~".*(/p)",b!="c"}[5m])) / on (d) group_left () (up > 0) or y:z:rate1h'
    assert used(query) == {"x_total": {"route", "b"}, "up": set(), "y:z:rate1h": set()}
    assert grouped(query) == {"job", "a", "d"}


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """Prometheus's own tool finds nothing wrong with the file, the rules, and the key's file where there is one."""
    key = tmp_path / "metrics_key"
    key.write_text("k")
    config = tmp_path / "prometheus.yml"
    text = (PROMETHEUS / "prometheus.yml").read_text()
    assert "/run/secrets/metrics_key" in text
    config.write_text(text.replace("/run/secrets/metrics_key", str(key)).replace("rules/", f"{PROMETHEUS}/rules/"))
    done = run_prometheus_tool("promtool", "check", "config", config, folders=[tmp_path])
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{path}" in done.stdout for path in RULES)
    done = run_prometheus_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", *RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_alerts_do_what_their_tests_say() -> None:
    """Each fires when it must and not before: promtool runs the rules on made-up series."""
    given = [prometheus_command("promtool", ["test", "rules", path]) for path in TESTS]
    processes = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for words in given
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(TESTS), "\n".join(outputs)


def test_every_alert_is_tested_both_ways() -> None:
    """For each alert and severity there is a moment at which it must fire, and one at which it must not."""
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


def test_alertmanager_takes_its_configuration() -> None:
    """Its own tool says so, and each severity has a receiver."""
    done = run_prometheus_tool("amtool", "check-config", ALERTMANAGER / "alertmanager.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((ALERTMANAGER / "alertmanager.yml").read_text())
    names = {receiver["name"] for receiver in config["receivers"]}
    assert {alert["labels"]["severity"] for alert in alerts()} == names
    for name in at_least_one(names):
        words = ("config", "routes", "test", f"--config.file={ALERTMANAGER / 'alertmanager.yml'}", f"severity={name}")
        assert run_prometheus_tool("amtool", *words).stdout.strip() == name


def test_a_webhook_is_told_of_every_alert(tmp_path: Path) -> None:
    """The address of the environment is each receiver's, and nobody else can read it; without one nothing is sent."""
    script, made = REPOSITORY / "deployments" / "receivers.py", tmp_path / "alertmanager.yml"
    for address in ("https://hooks.example.com/x?key=s3cret", ""):
        subprocess.run([sys.executable, script, made], env={"ALERT_WEBHOOK": address}, check=True, timeout=60)
        assert made.stat().st_mode & 0o077 == 0
        done = run_prometheus_tool("amtool", "check-config", made, folders=[tmp_path])
        assert done.returncode == 0, done.stdout + done.stderr
        config = yaml.safe_load(made.read_text())
        hooks = [receiver.get("webhook_configs") for receiver in config["receivers"]]
        assert hooks == [[{"url": address, "send_resolved": True}] if address else None] * 2
    wrong = subprocess.run(
        [sys.executable, script, made], env={"ALERT_WEBHOOK": "s3cret"}, capture_output=True, timeout=60, check=False
    )
    assert wrong.returncode == 1
    assert b"ALERT_WEBHOOK is not an address" in wrong.stderr
    assert b"s3cret" not in wrong.stderr


def test_what_is_asked_for_is_there(tmp_path: Path) -> None:
    """Each metric and label of a rule or a panel is one that the service, monitoring or a rule makes."""
    known = exposed(tmp_path) | _OWN
    for rule in rules():
        if "record" in rule:
            made = {*rule.get("labels", ()), *grouped(rule["expr"])}
            parts = set().union(*(known.get(name, set()) for name in used(rule["expr"])))
            known[rule["record"]] = known.get(rule["record"], set()) | made | parts
    made = {"model", "le", "alertname", "alertstate", "severity"}
    queries = [(rule.get("record") or rule["alert"], rule["expr"]) for rule in rules()]
    queries += [(panel["title"], target["expr"]) for _, panel in panels() for target in panel["targets"]]
    assert len(queries) > 100
    for where, query in at_least_one(queries):
        metrics = used(query)
        assert metrics or query.startswith("vector("), (where, query)
        labels: set[str] = set(made)
        for name, matched in metrics.items():
            assert name in known, (where, name)
            has = known[name] | _SCRAPED | (set.union(*known.values()) if name == "ALERTS" else set())
            assert matched <= has, (where, name, matched - has)
            labels |= has
        assert grouped(query) <= labels, (where, grouped(query) - labels)


def test_every_alert_says_what_to_do() -> None:
    """Severity, one line, some more, and a place of the guide that exists."""
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


def test_thresholds_stand_in_one_place() -> None:
    """Other rules hold no number of their own to be compared with, and the burn rates are those of towline slo."""
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
        assert {f"towline:slo_burn:rate{length}" for length in (pair.long, pair.short)} < set(used(alert["expr"]))


def test_slos_are_counted_as_monitoring_counts_them() -> None:
    """The same routes predict, and the seconds in the rules are edges that the service has."""
    text = (PROMETHEUS / "rules" / "recorded.yml").read_text()
    assert set(re.findall(r'route=~"([^"]*)"', text)) == {f".*({'|'.join(PREDICTION_ROUTES)})"}
    thresholds = (PROMETHEUS / "rules" / "thresholds.yml").read_text()
    listed_edges = thresholds[thresholds.index("at or above it: ") : thresholds.index("; another number")]
    assert [float(number) for number in re.findall(r"\d+(?:\.\d+)?", listed_edges)] == list(LATENCY_BUCKETS_S)
    (edge,) = re.findall(r"towline_slo_p95_edge_seconds\[1d\]\)\) or vector\((.*)\)", thresholds)
    assert float(edge) in LATENCY_BUCKETS_S


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    """Each panel has a title, a text, a unit, the chosen data source, a legend where there are lines, and a place."""
    board = json.loads(path.read_text())
    variables = {variable["name"] for variable in board["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    assert "datasource" in variables
    assert board["uid"] == f"towline-{path.stem}"
    for panel in at_least_one(board["panels"]):
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert {part["datasource"]["uid"] for part in (panel, *panel["targets"])} == {"${datasource}"}
        for target in at_least_one(panel["targets"]):
            named = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
            assert named <= variables, panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_grafana_finds_its_data_source_and_dashboards() -> None:
    """It asks the stack's Prometheus, and reads the folder that the stack mounts."""
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
