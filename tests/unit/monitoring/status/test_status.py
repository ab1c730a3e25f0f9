"""The status of a model: read from the store, and rendered as text, as a page and over HTTP."""

import datetime as dt
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from tests.support.monitoring_records import DAY, NOW, make_drift, make_gain_windows, make_quality
from tests.support.sample_store import MODEL, SampleStore
from towline.config import PipelineConfig, build_config
from towline.monitoring.alerts.notifications import notify_decision
from towline.monitoring.journal import Journal
from towline.monitoring.policy import Decision
from towline.monitoring.results import DriftResult, QualityResult
from towline.monitoring.slo.burn_rate import SloStatus, evaluate_slos
from towline.monitoring.slo.metrics_scraper import RequestCounters
from towline.monitoring.slo.slo_history import FILE, CounterTotals
from towline.monitoring.status.links import Links, evidently_project
from towline.monitoring.status.page import render_index, render_status
from towline.monitoring.status.summary import FlowStatus, ModelStatus, count_predictions, read_status
from towline.prediction_log import parquet_store
from towline.training.evaluation.predictions import Interval

SCRIPT = "<script>alert('&')</script>"


def config(**slo: Any) -> PipelineConfig:
    return build_config({"name": MODEL, "data": {"source": "x", "target": "value"}, "slo": slo}, "")


def look(sample_store: SampleStore, **more: Any) -> ModelStatus:
    return read_status(sample_store.settings, MODEL, NOW, more.pop("config", config()), **more)


def journal(sample_store: SampleStore, *records: DriftResult | QualityResult) -> None:
    for record in records:
        Journal.of(sample_store.settings, MODEL).add(record, NOW)


def log(folder: Path, day: dt.date, rows: int, source: str = "s") -> None:
    path = parquet_store.part_path(folder, day, source, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": list(range(rows))}), path)


def test_a_new_model_has_a_status(sample_store: SampleStore) -> None:
    """Before the first prediction and window, it has version, time and age of the champion, and no alarm."""
    result = look(sample_store)
    assert result.champion
    assert (result.champion.version, result.champion.rows, result.champion.previous) == (1, 200, None)
    assert result.champion.holdout
    assert result.champion.trained <= result.champion.since <= dt.datetime.now(dt.UTC)  # type: ignore[operator]
    assert (result.traffic, result.slos, result.drift, result.quality, result.alarms) == ({}, (), (), (), ())
    assert result.health == "unknown"
    page = render_status(result)
    assert "No prediction is logged yet" in page
    assert "No window was checked yet" in page


def test_a_missing_release_leaves_a_status(sample_store: SampleStore) -> None:
    """The ledger's facts about the champion are reported."""
    sample_store.release(1).rename(sample_store.settings.store / "away")
    result = read_status(sample_store.settings, MODEL, NOW)
    assert result.champion
    assert (result.champion.version, result.champion.trained) == (1, None)
    assert "version</span> <b>1" in render_status(result)


def test_bad_windows_of_the_champion_are_alarms(sample_store: SampleStore) -> None:
    """Drift, invalid input and degraded quality are alarms until a window is ok again."""
    journal(sample_store, make_drift(2), make_drift(1, "drift"), make_quality(2))
    assert [(each.title, each.reason) for each in look(sample_store).alarms] == [("drift", "drift it is")]
    assert look(sample_store).health == "alarm"
    journal(sample_store, make_drift(0.5, "invalid_schema"), make_quality(1, "degraded"))
    assert [each.title for each in look(sample_store).alarms] == ["invalid input", "degraded quality"]
    journal(sample_store, make_drift(0), make_quality(0))
    assert look(sample_store).alarms == ()
    assert look(sample_store).health == "ok"
    journal(sample_store, make_drift(0, "drift", version=7))
    assert look(sample_store).alarms == (), "of a version that does not serve"


def test_the_page_shows_the_gain_of_a_training(sample_store: SampleStore) -> None:
    """Each window has both losses, and there is a verdict; after a training the evidence starts again."""
    champion = sample_store.ledger.champion(MODEL)
    assert champion is not None
    since = dt.datetime.fromisoformat(champion.time)
    for window in make_gain_windows(since + 4 * DAY, refit=0.7):
        Journal.of(sample_store.settings, MODEL).add(window, NOW)
    result = read_status(sample_store.settings, MODEL, since + 5 * DAY, config())
    assert result.gain_verdict
    assert (len(result.gain), result.gain_verdict.pays) == (3, True)
    page = render_status(result)
    assert "a training would lower the absolute error by 30.0%" in page
    assert page.count("+30.0%") == 3
    evidence = {"action": "retrain", "at": (since + 4.5 * DAY).isoformat()}
    sample_store.ledger.decide(MODEL, "policy", "it pays", evidence, "cause")
    result = read_status(sample_store.settings, MODEL, since + 5 * DAY, config())
    assert (len(result.gain), result.gain_verdict) == (3, None)


def test_missing_monitoring_runs_are_an_alarm(sample_store: SampleStore) -> None:
    """If drift is scheduled, two days without a window are an alarm."""
    journal(sample_store, make_drift(2))
    assert [(each.title, each.severe) for each in look(sample_store).alarms] == [("no monitoring", False)]
    assert look(sample_store).health == "warning"
    never = build_config({"name": MODEL, "data": {"source": "x", "target": "value"}, "schedule": {"drift": None}}, "")
    assert look(sample_store, config=never).alarms == ()


def test_slos_have_their_budget(sample_store: SampleStore) -> None:
    """The SLOs of a scraped service are listed; a breach is an alarm."""
    assert look(sample_store).slos == ()
    path = Journal.of(sample_store.settings, MODEL).folder / FILE
    path.parent.mkdir(parents=True)

    def record_scrapes(errors: int) -> tuple[CounterTotals, ...]:
        begun = CounterTotals(at=NOW - 2 * DAY, service="http://s", scrapes=1, counters=RequestCounters())
        ended = CounterTotals(
            at=NOW, service="http://s", scrapes=2000, counters=RequestCounters(requests=10_000, errors=errors)
        )
        path.write_text("\n".join(total.model_dump_json() for total in (begun, ended)) + "\n")
        return begun, ended

    configured = config(availability=0.99)
    expected = {each.name: each for each in evaluate_slos(record_scrapes(40), configured.slo, NOW, metric="mae")}
    result = look(sample_store, config=configured)
    assert {goal.name: goal.budget for goal in result.slos} == {name: each.budget for name, each in expected.items()}
    assert {goal.state for goal in result.slos} == {"met"}
    assert f"{expected['availability'].budget:.0%}</td>" in render_status(result)
    record_scrapes(9000)
    spent = look(sample_store, config=configured)
    assert {slo.name: slo.state for slo in spent.slos}["availability"] in ("burning", "exhausted")
    assert any(alarm.title.startswith("availability") for alarm in spent.alarms)


def test_open_alerts_are_alarms(sample_store: SampleStore) -> None:
    """An open alert is listed, unless the status has the alarm already."""
    journal(sample_store, make_drift(0))
    pipeline = config()
    decision = Decision(action="retrain", trigger="drift", reason="two bad windows", cause="c" * 20)
    notify_decision(sample_store.settings, pipeline, None, decision)
    assert [(each.title, each.reason) for each in look(sample_store).alarms] == [
        ("a training was started", "two bad windows")
    ]
    assert look(sample_store).health == "warning"
    notify_decision(
        sample_store.settings, pipeline, None, Decision(action="nothing", trigger=None, reason="calm", cause="d")
    )
    assert look(sample_store).alarms == ()


def test_events_are_newest_first(sample_store: SampleStore) -> None:
    """Decisions to do nothing are only counted; a block without an invalid window is an alarm."""
    for number, (action, reason) in enumerate(
        [("nothing", "calm"), ("nothing", "calm"), ("block", "labels are broken")]
    ):
        sample_store.ledger.decide(MODEL, "watch", f"{action}: {reason}", {"action": action}, f"cause {number}")
    result = look(sample_store)
    assert (result.events[0].what, result.events[0].reason) == ("block", "labels are broken")
    assert "nothing" not in [step.what for step in result.events]
    assert result.idle_decisions == 2
    assert [alarm.title for alarm in result.alarms] == ["blocked"]
    sample_store.promote(2)
    assert look(sample_store).alarms == ()
    assert [step.what for step in look(sample_store).events][:2] == ["promoted", "block"]


def test_traffic_is_counted_by_day(tmp_path: Path) -> None:
    """Rows in parts and in segments that are not converted yet, for 30 days.

    Damaged files and incomplete lines do not stop the count.
    """
    today = NOW.date()
    log(tmp_path, today, 5)
    log(tmp_path, today, 6, "t")
    log(tmp_path, today - 29 * DAY, 7)
    log(tmp_path, today - 30 * DAY, 8)
    parquet_store.part_path(tmp_path, today, "damaged", 1).write_bytes(b"PAR1")
    (tmp_path / "segments").mkdir()
    at = [round((NOW - ago * DAY).timestamp() * 1e6) for ago in (0, 29, 31)]
    lines = [{"version": 1}, *({"of": 1, "at": moment, "rows": [[1], [2], [3]]} for moment in at)]
    under_way = '\nno line\n{"of": 1, "at": 0, "rows'
    (tmp_path / "segments" / "w0.jsonl").write_text("\n".join(map(json.dumps, lines)) + under_way)
    (tmp_path / "segments" / "t.jsonl").write_text(json.dumps(lines[1]) + "\n")  # part t was made of it
    assert count_predictions(tmp_path, today) == {today - 29 * DAY: 7 + 3, today: 11 + 3}
    assert not (tmp_path / ".lock").exists()
    assert count_predictions(tmp_path / "none", today) == {}


def test_a_decision_is_shown_once(sample_store: SampleStore) -> None:
    """Equal decisions of two flows are one event, and so are a rollback and its decision."""
    for number in range(2):
        sample_store.ledger.decide(MODEL, "watch", "warn: rooms moved", {"action": "warn"}, f"night {number}")
    assert [(step.what, step.times) for step in look(sample_store).events][:1] == [("warn", 2)]
    assert "warn</b> 2×" in render_status(look(sample_store))
    sample_store.promote(2)
    sample_store.ledger.decide(MODEL, "watch", "roll back: 1 does better", {"action": "roll back"}, "worse")
    sample_store.ledger.rollback(MODEL, "watch", "1 does better")
    assert [step.what for step in look(sample_store).events][:3] == ["rolled back", "promoted", "warn"]


def test_the_last_runs_come_from_prefect_or_the_store(sample_store: SampleStore) -> None:
    """The state in Prefect takes precedence over that in the store."""
    journal(sample_store, make_drift(0), make_quality(1))
    texts = FlowStatus(flow="drift", started=NOW, state="Completed", next=NOW + DAY)
    assert look(sample_store, flows=[texts]).flows[0] == texts
    assert {run.flow: run.state for run in look(sample_store).flows} == {
        "training": "promoted",
        "drift": "ok",
        "quality": "ok",
    }


LINKS = Links(prefect="http://p", mlflow="http://m", evidently="http://e", experiments={MODEL: "7"})


def test_a_served_page_has_links(sample_store: SampleStore) -> None:
    """It links the other interfaces, the run, the version, its model card and the drift report."""
    journal(sample_store, make_drift(0, "drift"))
    (sample_store.settings.store / "monitoring" / MODEL / f"drift-{NOW:%Y-%m-%d}.html").touch()
    result = look(sample_store, flows=[FlowStatus(flow="training", run_id="r1", started=NOW, state="Completed")])
    page = render_status(result, LINKS)
    classic = "workflowType=machine_learning"
    for address in (
        "/_all",
        "http://p/runs",
        f"http://m/#/models?{classic}",
        "http://e",
        f"/{MODEL}/v1/card",
        f"/{MODEL}/drift/{NOW:%Y-%m-%d}",
        f"http://m/#/models/{MODEL}/versions/1?{classic}",
        f"http://m/#/experiments/7/runs?viewStateShareKey=towline&amp;{classic}",
        f"http://e/projects/{evidently_project(MODEL)}",
        "http://p/runs/flow-run/r1",
    ):
        assert f'href="{address}"' in page
    assert f'href="/{MODEL}"' in render_index([result], NOW, LINKS)
    plain_page = render_status(result, Links())
    assert [address for address in re.findall('href="([^"]*)"', plain_page) if not address.startswith("/")] == []


def test_headers_are_aligned_with_their_columns(sample_store: SampleStore) -> None:
    """Columns of numbers are right-aligned in header and rows, text is left-aligned."""
    journal(sample_store, make_drift(1), make_drift(0, "drift"), make_quality(0))
    result = look(sample_store, flows=[FlowStatus(flow="training", started=NOW, state="Completed")])
    tables = re.findall(r"<table>.*?</table>", render_status(result) + render_index([result], NOW), re.DOTALL)
    assert len(tables) == 4
    for table in at_least_one(tables):
        head, *rows = [
            re.findall(r"<t[hd]( class=.number.)?[^>]*>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        ]
        assert rows == [head] * len(rows)


def test_text_has_enough_contrast() -> None:
    """Text on a pill and coloured words have a contrast of at least 4.5 to 1, in both colour schemes."""
    style = re.search("<style>(.*?)</style>", render_status(full()), re.DOTALL)[1]  # type: ignore[index]
    assert not re.search(r"td \.(ok|warning|alarm)", style), "a pill in a table would be written in its own colour"
    for scheme in at_least_one(re.findall(r":root \{(.*?)\}", style, re.DOTALL)):
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for name in ("ok", "warning", "alarm", "soft", "ink", "mark"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, (name, scheme)


def contrast(first: str, second: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted([luminance(first), luminance(second)])
    return (light + 0.05) / (dark + 0.05)


def full(**more: Any) -> ModelStatus:
    windows = [make_drift(2, column=SCRIPT, reason=SCRIPT), make_drift(1, "drift", SCRIPT), make_drift(0, version=2)]
    facts: dict[str, Any] = {
        "model": SCRIPT, "at": NOW, "drift": tuple(windows),
        "quality": (make_quality(1, "degraded"), make_quality(0, "unknown")),
        "slos": (SloStatus(name="availability", goal=SCRIPT, target=0.999, period=dt.timedelta(days=30), current=SCRIPT,
            budget=-0.5, state="exhausted", reason=SCRIPT),),
        "flows": (FlowStatus(flow=SCRIPT, state=SCRIPT),),
    }  # fmt: skip
    return ModelStatus(**{**facts, **more})


def test_the_page_loads_nothing() -> None:
    """For any values the page has no script and no address; the policy allows only the page's own style."""
    page = render_status(full())
    assert "<script" not in page + render_index([full()], NOW)
    assert re.findall(r"(?:src|href|action)=", page) == []
    assert re.findall(r" (?:on\w+|style)=", page) == []
    assert "default-src 'none'" in page


def test_the_page_draws_every_window() -> None:
    """Each window and column has a cell, alarms are marked, and each quality window has its marks."""
    windows = [make_drift(ago, "drift" if ago == 1 else "ok", f"c{column}") for column in range(1) for ago in (2, 1, 0)]
    page = render_status(full(drift=tuple(windows)))
    drift = page[page.index("<h2>Drift") :]
    assert len(re.findall(r'<rect[^>]*class="heat"', drift)) == 2
    assert len(re.findall(r'<rect[^>]*class="alarm"', drift)) == 1
    quality = page[page.index("<h2>Quality") : page.index("<h2>Drift")]
    for text in ("21.5 [20.5, 22.5]", "estimate 23.75", "not trusted", "75% have a label", "350 are due"):
        assert text in quality
    assert len(re.findall('class="bound"', quality)) == len(re.findall('class="whisker', quality)) == 2
    assert len(re.findall('class="estimate untrusted"', quality)) == 2


def test_windows_without_values_are_drawn() -> None:
    """Windows without rows are also drawn."""
    nothing = Interval(value=None)
    bare = make_quality(
        0, "unknown", value=nothing, estimate=None, rows=0, labelled=0, due=0, holdout=None, start=None, end=None
    )
    for status in (
        full(drift=(make_drift(0, "unknown", checks=(), start=None, end=None),)),
        full(quality=(bare,)),
        full(quality=(make_quality(0, bound=0.0, value=Interval(value=0.0, low=0.0, high=0.0), estimate=None),)),
        full(drift=tuple(make_drift(ago) for ago in range(400))),
    ):
        assert render_status(status).endswith("</html>\n")


@pytest.fixture
def run_status(
    sample_store: SampleStore, command: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """The command on the sample_store's store; no Prefect server is known."""
    monkeypatch.setenv("TOWLINE_STORE", str(sample_store.settings.store))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return command


def test_the_status_command(
    sample_store: SampleStore, run_status: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """It prints version, age, traffic, quality, drift by column, decisions and alarms, and writes the page."""
    journal(sample_store, make_drift(2), make_drift(1, "drift"), make_quality(1, "degraded"))
    log(sample_store.settings.store / "predictions" / MODEL, NOW.date(), 12)
    sample_store.ledger.decide(MODEL, "watch", "warn: it moved", {"action": "warn"}, "c")
    result = run_status("status", "--page", tmp_path / "page.html")
    for text in (MODEL, "alarm", "12 predictions", "mae 21.5 [20.5, 22.5]", "300 of 400", "rooms", "0.6", "it moved"):
        assert text in result.out
    assert re.search(r"rooms +distribution +0\.6 +0\.3 +.!$", result.out, re.MULTILINE)
    assert "<h2>Drift" in (tmp_path / "page.html").read_text()
    document = run_status("status", MODEL, "--json").json
    assert (document["model"], document["health"], document["champion"]["version"]) == (MODEL, "alarm", 1)
    assert [each["model"] for each in run_status("status", "--json").json] == [MODEL]


def test_a_config_gives_the_model_and_its_slos(
    sample_store: SampleStore, run_status: Callable[..., CommandResult], tmp_path: Path
) -> None:
    """The SLOs of the config are used, not those of the release."""
    text = f"name: {MODEL}\ndata: {{source: x, target: value}}\nslo: {{metric: 20}}\n"
    (tmp_path / "house.yaml").write_text(text)
    journal(sample_store, make_quality(1))
    document = run_status("status", tmp_path / "house.yaml", "--json").json
    assert [goal["name"] for goal in document["slos"]] == ["metric"]
    assert run_status("status", MODEL, "--json").json["slos"] == []
    wrong = run_status("status", "nothing")
    assert (wrong.code, MODEL in wrong.err) == (2, True)


def test_an_empty_store_has_a_status(command: Callable[..., CommandResult], store: Path) -> None:
    """The output names the first command, and nothing is written."""
    assert "towline run" in command("status").out
    assert command("status", "--json").json == []
    assert not store.exists()
