"""Alerts: each is notified once, secrets are not logged, and a failing webhook does not stop monitoring."""

import datetime as dt
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from towline.config import AlertConfig, PipelineConfig, Settings, build_config
from towline.config.monitoring import PolicyTrigger
from towline.errors import ConfigError
from towline.monitoring.alerts import notifications, webhook
from towline.monitoring.alerts.notifications import (
    Alert,
    AlertStore,
    DeliveryReport,
    notify_decision,
    notify_slos,
    read_alerts,
    read_open_alerts,
)
from towline.monitoring.policy import Action, Decision
from towline.monitoring.reporting.metrics_exporter import ModelMetricsSnapshot, format_metrics
from towline.monitoring.results import DriftCheckResult, DriftResult, QualityResult
from towline.monitoring.slo.burn_rate import BurnRate, SloState, SloStatus
from towline.release.packaging import _render_config as stored
from towline.training.evaluation.predictions import Interval

NOW = dt.datetime(2026, 3, 10, 12, tzinfo=dt.UTC)
MODEL = "demo"
SECRET = "T0K3N-of-the-hook"
BODY = "answer-of-the-hook"


def open_alert(alert: Alert, config: AlertConfig, store: Path) -> DeliveryReport:
    open_subjects = [each.subject for each in read_open_alerts(store, alert.model)]
    return AlertStore(store, alert.model, config).replace(alert.kind, [alert], alert.at, open_subjects)


@dataclass
class FakeWebhook:
    """A webhook on loopback that responds with the configured statuses, then with 200."""

    statuses: list[int] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    hold: threading.Event | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/{SECRET}?room=1"

    @property
    def config(self) -> AlertConfig:
        return AlertConfig(webhook=self.url, hosts=("127.0.0.1",))


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWebhook]:
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01))
    fake = FakeWebhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["content-length"])))
            fake.paths.append(self.path)
            if fake.hold is not None:
                fake.hold.wait(10)
            status = fake.statuses.pop(0) if fake.statuses else 200
            if status == 200:
                fake.received.append(document)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", f"http://localhost:{fake.port}/elsewhere")
            self.send_header("content-length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY.encode())

        def do_GET(self) -> None:
            fake.paths.append(f"GET {self.path}")
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield fake
    if fake.hold is not None:
        fake.hold.set()
    server.shutdown()
    server.server_close()


def alert(title: str = "demo: trouble", **changes: Any) -> Alert:
    defaults = {"model": MODEL, "kind": "slo", "severity": "ticket", "detail": "17 of 20 failed", "at": NOW}
    return Alert(**{**defaults, "title": title, "data": {"share": 0.85}, **changes})


def read_all_files(store: Path) -> str:
    return "".join(path.read_text() for path in store.rglob("*") if path.is_file())


def test_an_alert_and_its_resolution_are_notified_once(
    hook: FakeWebhook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log and to the webhook; the same problem in a later run is not notified, a new one after its end is."""
    with caplog.at_level(logging.INFO, "towline.monitoring"):
        assert open_alert(alert(), hook.config, tmp_path).opened == 1
        again = open_alert(alert(at=NOW + dt.timedelta(hours=1)), hook.config, tmp_path)
        assert (again.opened, again.webhook) == (0, "none")
        for _ in range(2):
            AlertStore(tmp_path, MODEL, hook.config).replace("slo", [], NOW + dt.timedelta(hours=2))
        open_alert(alert(at=NOW + dt.timedelta(hours=3)), hook.config, tmp_path)
    assert [(item["status"], item["at"][:13]) for item in hook.received] == [
        ("open", "2026-03-10T12"), ("resolved", "2026-03-10T12"), ("open", "2026-03-10T15"),
    ]  # fmt: skip
    assert hook.received[0]["id"] == hook.received[1]["id"] != hook.received[2]["id"]
    assert hook.received[0]["text"] == "[ticket] demo: trouble\n17 of 20 failed"
    assert hook.received[0]["data"] == {"share": 0.85}
    assert hook.received[1]["resolved"] == "2026-03-10T14:00:00+00:00"
    assert hook.paths[0] == f"/services/{SECRET}?room=1"
    assert [record.getMessage() for record in caplog.records] == [
        "demo: trouble: 17 of 20 failed",
        "resolved: demo: trouble: 17 of 20 failed",
        "demo: trouble: 17 of 20 failed",
    ]


def test_alerts_are_logged_and_stored_without_a_webhook(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A page is logged as an error, a ticket as a warning."""
    open_alert(alert(subject="a"), AlertConfig(), tmp_path)
    open_alert(alert(subject="b", severity="page"), AlertConfig(), tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert [item.subject for item in read_open_alerts(tmp_path, MODEL)] == ["a", "b"]
    assert read_open_alerts(tmp_path, "other") == ()


def test_a_ticket_that_becomes_a_page_is_notified_again(hook: FakeWebhook, tmp_path: Path) -> None:
    """A page that becomes a ticket is not."""
    for severity in ("ticket", "page", "ticket", "page"):
        open_alert(alert(severity=severity), hook.config, tmp_path)
    assert [item["severity"] for item in hook.received] == ["ticket", "page"]
    assert len(read_open_alerts(tmp_path, MODEL)) == 1


def test_alerts_of_other_kinds_or_unknown_state_stay_open(hook: FakeWebhook, tmp_path: Path) -> None:
    """Only alerts of the same kind with a known state are resolved."""
    open_alert(alert(kind="reaction"), hook.config, tmp_path)
    for subject in ("latency", "metric"):
        open_alert(alert(subject=subject), hook.config, tmp_path)
    result = AlertStore(tmp_path, MODEL, hook.config).replace("slo", [], NOW, unknown=["metric"])
    assert (result.opened, result.resolved) == (0, 1)
    assert {(item.kind, item.subject) for item in read_open_alerts(tmp_path, MODEL)} == {
        ("reaction", ""),
        ("slo", "metric"),
    }


@pytest.mark.parametrize("statuses", [[500, 503], [429], [408, 500]])
def test_a_failing_webhook_is_retried(hook: FakeWebhook, tmp_path: Path, statuses: list[int]) -> None:
    """A message is sent in at most three attempts."""
    hook.statuses = statuses
    assert open_alert(alert(), hook.config, tmp_path).webhook == "sent"
    assert len(hook.received) == 1


def test_failed_messages_are_sent_with_the_next_run(
    hook: FakeWebhook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next run sends them in order, each once, even if it has no new alert."""
    hook.statuses = [500] * 6
    first = open_alert(alert("first", subject="a"), hook.config, tmp_path)
    assert (first.opened, first.webhook, first.why) == (1, "failed", "it returns 500")
    assert open_alert(alert("second", subject="b"), hook.config, tmp_path).webhook == "failed"
    assert hook.received == []
    assert "it returns 500; it is repeated with the next monitoring run" in caplog.text
    assert open_alert(alert("second", subject="b"), hook.config, tmp_path).webhook == "sent"
    assert [item["title"] for item in hook.received] == ["first", "second"]
    assert open_alert(alert("second", subject="b"), hook.config, tmp_path).webhook == "none"


def test_a_rejected_alert_does_not_hold_up_others(hook: FakeWebhook, tmp_path: Path) -> None:
    """The webhook rejects a ticket, for example for its length: pages are sent, and before it."""
    hook.statuses = [500] * 6
    open_alert(alert("too long", subject="a"), hook.config, tmp_path)
    open_alert(alert("second", subject="b"), hook.config, tmp_path)
    hook.statuses = [200, 400]
    report = open_alert(alert("service down", subject="c", severity="page"), hook.config, tmp_path)
    assert (report.webhook, report.why) == ("failed", "it returns 400")
    assert [item["title"] for item in hook.received] == ["service down", "second"]
    assert open_alert(alert("second", subject="b"), hook.config, tmp_path).webhook == "sent"
    assert [item["title"] for item in hook.received] == ["service down", "second", "too long"]


def test_an_alert_resolved_before_delivery_is_sent_as_resolved(hook: FakeWebhook, tmp_path: Path) -> None:
    """One message is sent; after a day none."""
    hook.statuses = [500] * 9
    open_alert(alert("short", subject="a"), hook.config, tmp_path)
    open_alert(alert("long gone", subject="b", at=NOW - dt.timedelta(days=3)), hook.config, tmp_path)
    later = NOW - dt.timedelta(days=2)
    AlertStore(tmp_path, MODEL, hook.config).replace("slo", [alert("short", subject="a")], later)
    AlertStore(tmp_path, MODEL, hook.config).replace("slo", [], NOW)
    assert [(item["title"], item["status"]) for item in hook.received] == [("short", "resolved")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(hook: FakeWebhook, tmp_path: Path, status: int) -> None:
    """They may lead to a host that is not listed."""
    hook.statuses = [status]
    result = open_alert(alert(), hook.config, tmp_path)
    assert (result.webhook, result.why) == ("failed", "it redirects, which is not followed")
    assert hook.paths == [f"/services/{SECRET}?room=1"]


def test_a_webhook_that_hangs_times_out(hook: FakeWebhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the timeout the attempt ends and the alert stays pending."""
    monkeypatch.setattr(webhook, "TIMEOUT", 0.2)
    monkeypatch.setattr(webhook, "PAUSES", ())
    hook.hold = threading.Event()
    result = open_alert(alert(), hook.config, tmp_path)
    assert (result.opened, result.webhook) == (1, "failed")
    assert "no response" in result.why
    assert [item.notified for item in read_alerts(tmp_path, MODEL)] == [""]


def test_an_unreachable_webhook_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: FakeWebhook) -> None:
    """A closed port, and a host that does not exist."""
    for host, port in (("127.0.0.1", 1), ("no-such-host.invalid", 443)):
        scheme = "http" if host == "127.0.0.1" else "https"
        config = AlertConfig(webhook=f"{scheme}://{host}:{port}/{SECRET}", hosts=(host,))
        result = open_alert(alert(subject=host), config, tmp_path)
        assert result.webhook == "failed"
        assert SECRET not in result.why


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "the environment variable HOOK is not set"),
        ("https://evil.example/{secret}", "not one of alerts.hosts"),
        ("https://127.0.0.1.evil.example/{secret}", "not one of alerts.hosts"),
        ("https://127.0.0.1@evil.example/{secret}", "contains a user"),
        ("https://{secret}@127.0.0.1/", "contains a user"),
        ("http://hooks.example/{secret}", "not encrypted"),
        ("ftp://127.0.0.1/{secret}", "not an https:// address"),
        ("{secret}", "not an https:// address"),
        ("", "not an https:// address"),
        ("http://[/{secret}", "not an address"),
        ("http://127.0.0.1:{secret}/", "not an address"),
        ("http://127.0.0.1:1/{secret} with a space\r\nX-Evil: 1", "HTTP"),
    ],
)  # fmt: skip
def test_an_address_from_the_environment_must_be_listed(
    hook: FakeWebhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    value: str | None, why: str,
) -> None:  # fmt: skip
    """The reason does not contain the address, and the flow continues."""
    if value is not None:
        monkeypatch.setenv("HOOK", value.replace("{secret}", SECRET))
    config = AlertConfig(webhook="${HOOK}", hosts=("127.0.0.1", "hooks.example"))
    result = open_alert(alert(), config, tmp_path)
    assert result.webhook == "failed"
    assert why in result.why
    assert SECRET not in result.why + caplog.text + read_all_files(tmp_path)
    assert hook.paths == []


def test_secrets_of_the_address_are_not_logged(
    hook: FakeWebhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the log nor the file contains them, nor the body of the response."""
    monkeypatch.setenv("HOOK_KEY", SECRET)
    config = AlertConfig(webhook=f"http://127.0.0.1:{hook.port}/${{HOOK_KEY}}", hosts=("127.0.0.1",))
    hook.statuses = [403, 500, 500, 500]
    with caplog.at_level(logging.DEBUG):
        for subject in "abc":
            open_alert(alert(subject=subject), config, tmp_path)
    assert hook.paths[-1] == f"/{SECRET}"
    assert len(hook.received) == 3
    texts = caplog.text + read_all_files(tmp_path)
    assert SECRET not in texts
    assert BODY not in texts


def test_values_cannot_forge_log_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A category with line breaks stays on one line."""
    open_alert(alert("drift in 'a\nERROR all is lost\x1b[2J'", detail="x\r\ny"), AlertConfig(), tmp_path)
    assert caplog.records[0].getMessage() == "drift in 'a ERROR all is lost [2J': x y"
    assert len(read_alerts(tmp_path, MODEL)) == 1


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    """An interrupted write or an editor may leave them."""
    open_alert(alert(subject="a"), AlertConfig(), tmp_path)
    path = tmp_path / "monitoring" / MODEL / notifications.FILE
    path.write_text(path.read_text() + "{half\n")
    open_alert(alert(subject="b"), AlertConfig(), tmp_path)
    assert [item.subject for item in read_open_alerts(tmp_path, MODEL)] == ["a", "b"]


def test_concurrent_runs_notify_once(hook: FakeWebhook, tmp_path: Path) -> None:
    """Two monitoring runs detect the same problem at the same time."""
    threads = [threading.Thread(target=open_alert, args=(alert(), hook.config, tmp_path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hook.received) == 1
    assert len(read_alerts(tmp_path, MODEL)) == 1


def config(**changes: Any) -> PipelineConfig:
    return build_config({"name": MODEL, "data": {"source": "x.csv", "target": "y"}, "alerts": changes}, "x.yaml")


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"webhook": f"https://hooks.example/{SECRET}"}, "add hosts"),
        ({"webhook": "${HOOK}"}, "add hosts"),
        ({"webhook": f"https://hooks.example/{SECRET}", "hosts": ["other.example"]}, "alerts.hosts (other.example)"),
        ({"webhook": "https://hooks.example/${KEY}", "hosts": ["other.example"]}, "not one of alerts.hosts"),
        ({"webhook": f"http://hooks.example/{SECRET}", "hosts": ["hooks.example"]}, "write https://"),
        ({"webhook": f"hooks.example/{SECRET}", "hosts": ["hooks.example"]}, "not an https:// address"),
        ({"hosts": ["https://hooks.example"]}, "not a host"),
    ],
)  # fmt: skip
def test_an_invalid_webhook_is_a_config_error(changes: dict[str, Any], check: str) -> None:
    """The error names the place in the config and does not repeat a secret."""
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert check in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook": "${HOOK}", "hosts": ["hooks.example"]},
        {"webhook": "https://${HOST}/x", "hosts": ["hooks.example"]},
        {"webhook": "https://Hooks.Example:8443/${KEY}", "hosts": ["hooks.example"]},
        {"webhook": "http://localhost:9093/x", "hosts": ["localhost"]},
        {"webhook": "http://[::1]:9093/x", "hosts": ["::1"]},
        {"hosts": ["hooks.example"]},
    ],
)
def test_valid_webhooks_are_accepted(changes: dict[str, Any]) -> None:
    """The address may come from the environment, have a port, and be on loopback."""
    assert config(**changes).alerts.hosts == tuple(changes["hosts"])


def test_the_config_of_a_release_masks_secrets() -> None:
    """It names the host; literal secrets are masked, names of variables stay."""
    texts = stored(config(webhook=f"https://hooks.example/s/{SECRET}/${{KEY}}", hosts=["hooks.example"]))
    assert SECRET not in texts
    assert "https://hooks.example/***${KEY}" in texts
    assert "${HOOK}" in stored(config(webhook="${HOOK}", hosts=["hooks.example"]))


def test_only_the_webhook_gets_the_secret(hook: FakeWebhook, tmp_path: Path) -> None:
    """The config does not contain it, so Prefect does not store it."""
    literal = AlertConfig(webhook=f"{hook.url.rpartition('/')[0]}/{SECRET}", hosts=("127.0.0.1",))
    assert SECRET not in literal.model_dump_json() + repr(literal)
    handed_on = AlertConfig.model_validate(literal.model_dump(mode="json"))
    assert handed_on == literal
    assert open_alert(alert(), handed_on, tmp_path).webhook == "sent"
    assert hook.paths == [f"/services/{SECRET}"]


def objective(name: str, state: SloState, **changes: Any) -> SloStatus:
    return SloStatus(
        name=name,
        state=state,
        goal="99.9 %",
        target=0.999,
        period=dt.timedelta(days=30),
        reason=f"{name}: {state}",
        **changes,
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(project=tmp_path, store=tmp_path, tracking_uri="", ledger_url="")


def test_breaches_of_slos_are_notified(settings: Settings) -> None:
    """Breach and exhausted budget are two alerts; an unknown state resolves nothing."""

    def open_alerts() -> set[tuple[str, str]]:
        return {(item.subject, item.severity) for item in read_open_alerts(settings.store, MODEL)}

    def notify(state: SloState, **changes: Any) -> str:
        result = [objective("availability", state, **changes), objective("latency", "met")]
        return notify_slos(settings, config(), result, NOW).text()

    assert notify("met") == "no change"
    assert notify("burning", severity="page") == "1 opened"
    assert open_alerts() == {("availability", "page")}
    assert notify("unknown") == "no change"
    assert notify("exhausted") == "1 opened, 1 resolved"
    assert open_alerts() == {("availability budget", "ticket")}
    assert notify("burning", severity="ticket") == "1 opened"
    assert open_alerts() == {("availability", "ticket"), ("availability budget", "ticket")}
    assert notify("met") == "2 resolved"
    assert open_alerts() == set()


def decision(action: Action, cause: str = "c" * 64, trigger: PolicyTrigger | None = "quality") -> Decision:
    return Decision(action=action, trigger=trigger, reason="mae 90 against 60", cause=cause)


def test_decisions_are_notified(settings: Settings) -> None:
    """Each training is an alert, a warning is notified once, a block is a page; the decision nothing resolves all."""

    def notify_all(*steps: Decision) -> list[str]:
        return [notify_decision(settings, config(), None, step) for step in steps]

    assert notify_all(decision("warn"), decision("warn", "d" * 64)) == ["1 opened", "no change"]
    assert notify_all(decision("retrain", "e" * 64), decision("retrain", "f" * 64)) == ["1 opened, 1 resolved"] * 2
    notify_all(decision("block"))
    (page,) = read_open_alerts(settings.store, MODEL)
    assert (page.severity, page.detail) == ("page", "mae 90 against 60")
    assert notify_all(decision("nothing", trigger=None)) == ["1 resolved"]
    assert notify_all(decision("warn", trigger="slo")) == ["no change"]  # the SLO has its own alert


def test_known_values_are_exported_to_prometheus() -> None:
    """Columns, quality, budgets, burn rates, alerts and the model's age; unknown values are absent."""
    check = DriftCheckResult(column="temp", name="distribution", value=0.4, threshold=0.2, alarm=True)
    normal = check.model_copy(update={"column": 'a "b"\n', "alarm": False})
    drift = DriftResult(state="drift", version=3, rows=90, checks=(check, normal), budget=4, reason="")
    quality = QualityResult(
        state="degraded", version=3, metric="mae", value=Interval(value=71.5), holdout=50, bound=60, rows=9, labelled=9,
        due=9, reason="",
    )  # fmt: skip
    burns = (BurnRate(window="1h", rate=15.0), BurnRate(window="6h", rate=None))
    objectives = (
        objective("availability", "burning", budget=-0.5, burns=burns, severity="page"),
        objective("latency", "unknown"),
    )
    snapshot = ModelMetricsSnapshot(
        model="demo", version=3, since=NOW - dt.timedelta(hours=1), drift=drift, quality=quality, slos=objectives,
        alerts=(alert(severity="page"),),
    )  # fmt: skip
    text = format_metrics([snapshot, ModelMetricsSnapshot(model="new")], NOW)
    result = {
        (sample.name.removeprefix("towline_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert result == {
        ("monitoring_readable", "demo"): 1,
        ("monitoring_readable", "new"): 1,
        ("champion_version", "demo"): 3,
        ("input_invalid", "demo"): 0,
        ("drift_rows", "demo"): 90,
        ("drift_alarm", "temp", "demo"): 1,
        ("drift_alarm", 'a "b"\n', "demo"): 0,
        ("drift_ratio", "temp", "demo"): 2,
        ("drift_ratio", 'a "b"\n', "demo"): 2,
        ("quality", "mae", "demo"): 71.5,
        ("quality_bound", "mae", "demo"): 60,
        ("quality_headroom", "mae", "demo"): -11.5,
        ("quality_coverage", "demo"): 1,
        ("quality_degraded", "demo"): 1,
        ("slo_breached", "demo", "availability"): 1,
        ("slo_budget_remaining", "demo", "availability"): -0.5,
        ("slo_burn_rate", "demo", "availability", "1h"): 15,
        ("alerts_open", "demo", "page"): 1,
        ("alerts_open", "demo", "ticket"): 0,
        ("alerts_open", "new", "page"): 0,
        ("alerts_open", "new", "ticket"): 0,
        ("model_age_seconds", "demo"): 3600,
    }
