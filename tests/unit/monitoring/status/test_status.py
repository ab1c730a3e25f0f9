"""The status of a model: what the store says, on one screen, one page, and over HTTP."""

import datetime as dt
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Done
from tests.shelf import MODEL, Shelf
from towline.cli.status_server import StatusServer
from towline.config import PipelineConfig, build_config
from towline.monitoring.alerts.notifications import notify_decision
from towline.monitoring.journal import Journal
from towline.monitoring.policy import Decision
from towline.monitoring.results import DriftCheckResult, DriftResult, PerformanceEstimate, QualityResult
from towline.monitoring.slo.burn_rate import SloStatus, evaluate_slos
from towline.monitoring.slo.metrics_scraper import RequestCounters
from towline.monitoring.slo.slo_history import FILE, CounterTotals
from towline.monitoring.status.links import Links, evidently_project
from towline.monitoring.status.page import render_index, render_status
from towline.monitoring.status.summary import DailyCount, FlowStatus, ModelStatus, count_predictions, read_status
from towline.prediction_log import parquet_store
from towline.training.evaluation.predictions import Interval

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)
SCRIPT = "<script>alert('&')</script>"


def night(ago: float = 0, state: Any = "ok", column: str = "rooms", **more: Any) -> DriftResult:
    end = NOW - ago * DAY
    moved = state == "drift"
    found = DriftCheckResult(
        column=column, name="distribution", value=0.6 if moved else 0.1, threshold=0.3, alarm=moved
    )
    facts = {"version": 1, "rows": 500, "checks": (found,), "budget": 4.0, "reason": f"{state} it is"}
    return DriftResult(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def window(ago: int = 0, state: Any = "ok", **more: Any) -> QualityResult:
    end = NOW - ago * DAY
    facts = {
        "version": 1, "metric": "mae", "value": Interval(value=21.5, low=20.5, high=22.5), "holdout": 20.0,
        "bound": 25.0, "rows": 400, "labelled": 300, "due": 350, "reason": f"{state} it is",
        "estimate": PerformanceEstimate(value=23.75, trusted=False, why="the inputs have drifted"),
    }  # fmt: skip
    return QualityResult(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def config(**slo: Any) -> PipelineConfig:
    return build_config({"name": MODEL, "data": {"source": "x", "target": "value"}, "slo": slo}, "")


def look(shelf: Shelf, **more: Any) -> ModelStatus:
    return read_status(shelf.settings, MODEL, NOW, more.pop("config", config()), **more)


def journal(shelf: Shelf, *records: DriftResult | QualityResult) -> None:
    for record in records:
        Journal.of(shelf.settings, MODEL).add(record, NOW)


def log(folder: Path, day: dt.date, rows: int, source: str = "s") -> None:
    path = parquet_store.part_path(folder, day, source, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": list(range(rows))}), path)


def test_a_new_model_has_a_status(shelf: Shelf) -> None:
    """Before anything was asked or watched it says what serves, from when on and of what age; nothing is alarming."""
    found = look(shelf)
    assert found.champion
    assert (found.champion.version, found.champion.rows, found.champion.previous) == (1, 200, None)
    assert found.champion.holdout
    assert found.champion.trained <= found.champion.since <= dt.datetime.now(dt.UTC)  # type: ignore[operator]
    assert (found.traffic.rows, found.slos, found.drift, found.quality, found.alarms) == (0, (), (), (), ())
    assert found.health == "unknown"
    page = render_status(found)
    assert "No prediction is logged yet" in page
    assert "No window was checked yet" in page


def test_a_release_that_is_gone_leaves_a_status(shelf: Shelf) -> None:
    """What the ledger knows of the champion is told without its release."""
    shelf.release(1).rename(shelf.settings.store / "away")
    found = read_status(shelf.settings, MODEL, NOW)
    assert found.champion
    assert (found.champion.version, found.champion.trained) == (1, None)
    assert "version</span> <b>1" in render_status(found)


def test_what_is_wrong_is_an_alarm(shelf: Shelf) -> None:
    """Drift, broken input and bad quality of the version that serves are alarms until a window is well again."""
    journal(shelf, night(2), night(1, "drift"), window(2))
    assert [(one.title, one.reason) for one in look(shelf).alarms] == [("drift", "drift it is")]
    assert look(shelf).health == "alarm"
    journal(shelf, night(0.5, "invalid_schema"), window(1, "degraded"))
    assert [one.title for one in look(shelf).alarms] == ["invalid input", "degraded quality"]
    journal(shelf, night(0), window(0))
    assert look(shelf).alarms == ()
    assert look(shelf).health == "ok"
    journal(shelf, night(0, "drift", version=7))
    assert look(shelf).alarms == (), "of a version that does not serve"


def test_missing_monitoring_runs_are_an_alarm(shelf: Shelf) -> None:
    """Two days without a night are no all-clear, where nights are scheduled."""
    journal(shelf, night(2))
    assert [(one.title, one.severe) for one in look(shelf).alarms] == [("no monitoring", False)]
    assert look(shelf).health == "warning"
    never = build_config({"name": MODEL, "data": {"source": "x", "target": "value"}, "schedule": {"drift": None}}, "")
    assert look(shelf, config=never).alarms == ()


def test_slos_have_their_budget(shelf: Shelf) -> None:
    """A service that was looked at has its objectives; one that failed too often is an alarm."""
    assert look(shelf).slos == ()
    path = Journal.of(shelf.settings, MODEL).folder / FILE
    path.parent.mkdir(parents=True)

    def looked(errors: int) -> tuple[CounterTotals, ...]:
        begun = CounterTotals(at=NOW - 2 * DAY, service="http://s", scrapes=1, counters=RequestCounters())
        ended = CounterTotals(
            at=NOW, service="http://s", scrapes=2000, counters=RequestCounters(requests=10_000, errors=errors)
        )
        path.write_text("\n".join(total.model_dump_json() for total in (begun, ended)) + "\n")
        return begun, ended

    promised = config(availability=0.99)
    expected = {one.name: one for one in evaluate_slos(looked(40), promised.slo, NOW, metric="mae")}
    found = look(shelf, config=promised)
    assert {goal.name: goal.budget for goal in found.slos} == {name: one.budget for name, one in expected.items()}
    assert {goal.state for goal in found.slos} == {"met"}
    assert f"{expected['availability'].budget:.0%}</td>" in render_status(found)
    looked(9000)
    spent = look(shelf, config=promised)
    assert {slo.name: slo.state for slo in spent.slos}["availability"] in ("burning", "exhausted")
    assert any(alarm.title.startswith("availability") for alarm in spent.alarms)


def test_open_alerts_are_told(shelf: Shelf) -> None:
    """What somebody was told and is not over stands among the alarms, unless the alarm is there already."""
    journal(shelf, night(0))
    pipeline = config()
    decision = Decision(action="retrain", trigger="drift", reason="two bad nights", cause="c" * 20)
    notify_decision(shelf.settings, pipeline, None, decision)
    assert [(one.title, one.reason) for one in look(shelf).alarms] == [("a training was started", "two bad nights")]
    assert look(shelf).health == "warning"
    notify_decision(shelf.settings, pipeline, None, Decision(action="nothing", trigger=None, reason="calm", cause="d"))
    assert look(shelf).alarms == ()


def test_decisions_stand_between_promotions(shelf: Shelf) -> None:
    """The newest first; rounds that came to nothing are counted; a block of sound-looking nights is an alarm."""
    for number, (action, reason) in enumerate(
        [("nothing", "calm"), ("nothing", "calm"), ("block", "labels are broken")]
    ):
        shelf.ledger.decide(MODEL, "watch", f"{action}: {reason}", {"action": action}, f"cause {number}")
    found = look(shelf)
    assert (found.events[0].what, found.events[0].reason) == ("block", "labels are broken")
    assert "nothing" not in [step.what for step in found.events]
    assert found.idle_decisions == 2
    assert [alarm.title for alarm in found.alarms] == ["blocked"]
    shelf.promote(2)
    assert look(shelf).alarms == ()
    assert [step.what for step in look(shelf).events][:2] == ["promoted", "block"]


def test_traffic_is_counted_by_day(tmp_path: Path) -> None:
    """Rows of all parts of a day, of 30 days, and those that a service has yet to make a table of.

    What is damaged, or is not written to its end, does not stop the count.
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
    (tmp_path / "segments" / "t.jsonl").write_text(json.dumps(lines[1]) + "\n")  # part t is made of it
    found = count_predictions(tmp_path, today)
    assert found.days == (DailyCount(day=today - 29 * DAY, rows=7 + 3), DailyCount(day=today, rows=11 + 3))
    assert found.rows == 24
    assert not (tmp_path / ".lock").exists()
    assert count_predictions(tmp_path / "none", today).rows == 0


def test_a_decision_is_shown_once(shelf: Shelf) -> None:
    """Two flows of a night that warn of the same are one line, and so are a rollback and the decision for it."""
    for number in range(2):
        shelf.ledger.decide(MODEL, "watch", "warn: rooms moved", {"action": "warn"}, f"night {number}")
    assert [(step.what, step.times) for step in look(shelf).events][:1] == [("warn", 2)]
    assert "warn</b> 2×" in render_status(look(shelf))
    shelf.promote(2)
    shelf.ledger.decide(MODEL, "watch", "roll back: 1 does better", {"action": "roll back"}, "worse")
    shelf.ledger.rollback(MODEL, "watch", "1 does better")
    assert [step.what for step in look(shelf).events][:3] == ["rolled back", "promoted", "warn"]


def test_the_last_runs_are_told_by_whoever_knows(shelf: Shelf) -> None:
    """What Prefect says of a flow comes before what the store knows of it."""
    journal(shelf, night(0), window(1))
    told = FlowStatus(flow="drift", started=NOW, state="Completed", next=NOW + DAY)
    assert look(shelf, flows=[told]).flows[0] == told
    assert {run.flow: run.state for run in look(shelf).flows} == {
        "training": "promoted",
        "drift": "ok",
        "quality": "ok",
    }


LINKS = Links(prefect="http://p", mlflow="http://m", evidently="http://e", experiments={MODEL: "7"})


def test_a_served_page_leads_to_everything(shelf: Shelf) -> None:
    """The other interfaces, the run, the version, its card, the report of the night, each where it is."""
    journal(shelf, night(0, "drift"))
    (shelf.settings.store / "watch" / MODEL / f"drift-{NOW:%Y-%m-%d}.html").touch()
    found = look(shelf, flows=[FlowStatus(flow="training", run_id="r1", started=NOW, state="Completed")])
    page = render_status(found, LINKS)
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
    assert f'href="/{MODEL}"' in render_index([found], NOW, LINKS)
    away = render_status(found, Links())
    assert [address for address in re.findall('href="([^"]*)"', away) if not address.startswith("/")] == []


def test_headers_stand_above_their_columns(shelf: Shelf) -> None:
    """A column of numbers is to the right in its head and in each of its rows; text is to the left in both."""
    journal(shelf, night(1), night(0, "drift"), window(0))
    found = look(shelf, flows=[FlowStatus(flow="training", started=NOW, state="Completed")])
    tables = re.findall(r"<table>.*?</table>", render_status(found) + render_index([found], NOW), re.DOTALL)
    assert len(tables) == 4
    for table in tables:
        head, *rows = [
            re.findall(r"<t[hd]( class=.number.)?[^>]*>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        ]
        assert rows == [head] * len(rows)


def test_text_has_enough_contrast() -> None:
    """Text on a pill, and coloured words on the page, have a contrast of 4.5 to 1 at least, by day and by night."""
    style = re.search("<style>(.*?)</style>", render_status(full()), re.DOTALL)[1]  # type: ignore[index]
    assert not re.search(r"td \.(ok|warning|alarm)", style), "a pill in a table would be written in its own colour"
    for scheme in re.findall(r":root \{(.*?)\}", style, re.DOTALL):
        colours = dict(re.findall(r"--(\w+): (#\w+)", scheme))
        for name in ("ok", "warning", "alarm", "soft", "ink", "mark"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, (name, scheme)


def contrast(one: str, other: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted([luminance(one), luminance(other)])
    return (light + 0.05) / (dark + 0.05)


def full(**more: Any) -> ModelStatus:
    nights = [night(2, column=SCRIPT, reason=SCRIPT), night(1, "drift", SCRIPT), night(0, version=2)]
    facts: dict[str, Any] = {
        "model": SCRIPT, "at": NOW, "drift": tuple(nights), "quality": (window(1, "degraded"), window(0, "unknown")),
        "slos": (SloStatus(name="availability", goal=SCRIPT, target=0.999, period=dt.timedelta(days=30), current=SCRIPT,
            budget=-0.5, state="exhausted", reason=SCRIPT),),
        "flows": (FlowStatus(flow=SCRIPT, state=SCRIPT),),
    }  # fmt: skip
    return ModelStatus(**{**facts, **more})


def test_the_page_is_text_that_loads_nothing() -> None:
    """No script, no address, whatever a column or a reason is called; one style, which the policy names."""
    page = render_status(full())
    assert "<script" not in page + render_index([full()], NOW)
    assert re.findall(r"(?:src|href|action)=", page) == []
    assert re.findall(r" (?:on\w+|style)=", page) == []
    assert "default-src 'none'" in page


def test_the_page_shows_what_was_found() -> None:
    """Each night and column has its cell, alarms are marked; each window has interval, bound, estimate, labels."""
    nights = [night(ago, "drift" if ago == 1 else "ok", f"c{column}") for column in range(1) for ago in (2, 1, 0)]
    page = render_status(full(drift=tuple(nights)))
    drift = page[page.index("<h2>Drift") :]
    assert len(re.findall(r'<rect[^>]*class="heat"', drift)) == 2
    assert len(re.findall(r'<rect[^>]*class="alarm"', drift)) == 1
    quality = page[page.index("<h2>Quality") : page.index("<h2>Drift")]
    for text in ("21.5 [20.5, 22.5]", "estimate 23.75", "not trusted", "75% have a label", "350 are due"):
        assert text in quality
    assert len(re.findall('class="bound"', quality)) == len(re.findall('class="whisker', quality)) == 2
    assert len(re.findall('class="estimate untrusted"', quality)) == 2


def test_odd_records_have_a_page() -> None:
    """Nights of no rows and windows without any value are drawn like the others, as far as there is something."""
    nothing = Interval(value=None)
    bare = window(
        0, "unknown", value=nothing, estimate=None, rows=0, labelled=0, due=0, holdout=None, start=None, end=None
    )
    for status in (
        full(drift=(night(0, "unknown", checks=(), start=None, end=None),)),
        full(quality=(bare,)),
        full(quality=(window(0, bound=0.0, value=Interval(value=0.0, low=0.0, high=0.0), estimate=None),)),
        full(drift=tuple(night(ago) for ago in range(400))),
    ):
        assert render_status(status).endswith("</html>\n")


@pytest.fixture
def shown(shelf: Shelf, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command on the shelf's store; no Prefect server is known."""
    monkeypatch.setenv("TOWLINE_STORE", str(shelf.settings.store))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return command


def test_the_status_command(shelf: Shelf, shown: Callable[..., Done], tmp_path: Path) -> None:
    """Version, age, traffic, quality, drift by column over nights, decisions, alarms; the page beside it."""
    journal(shelf, night(2), night(1, "drift"), window(1, "degraded"))
    log(shelf.settings.store / "predictions" / MODEL, NOW.date(), 12)
    shelf.ledger.decide(MODEL, "watch", "warn: it moved", {"action": "warn"}, "c")
    done = shown("status", "--page", tmp_path / "page.html")
    for text in (MODEL, "alarm", "12 predictions", "mae 21.5 [20.5, 22.5]", "300 of 400", "rooms", "0.6", "it moved"):
        assert text in done.out
    assert re.search(r"rooms +distribution +0\.6 +0\.3 +.!$", done.out, re.MULTILINE)
    assert "<h2>Drift" in (tmp_path / "page.html").read_text()
    document = shown("status", MODEL, "--json").json
    assert (document["model"], document["health"], document["champion"]["version"]) == (MODEL, "alarm", 1)
    assert [one["model"] for one in shown("status", "--json").json] == [MODEL]


def test_a_config_says_which_model_and_what_is_promised(
    shelf: Shelf, shown: Callable[..., Done], tmp_path: Path
) -> None:
    """The promises of the file count, not those of the release."""
    text = f"name: {MODEL}\ndata: {{source: x, target: value}}\nslo: {{metric: 20}}\n"
    (tmp_path / "house.yaml").write_text(text)
    journal(shelf, window(1))
    document = shown("status", tmp_path / "house.yaml", "--json").json
    assert [goal["name"] for goal in document["slos"]] == ["metric"]
    assert shown("status", MODEL, "--json").json["slos"] == []
    wrong = shown("status", "nothing")
    assert (wrong.code, MODEL in wrong.err) == (2, True)


def test_an_empty_store_has_a_status(command: Callable[..., Done], store: Path) -> None:
    """It says how to begin, and makes nothing."""
    assert "towline run" in command("status").out
    assert command("status", "--json").json == []
    assert not store.exists()


@pytest.fixture
def address(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with StatusServer(0, shelf.settings) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_pages_are_served_as_things_are_now(shelf: Shelf, address: str) -> None:
    """The one model stands at /, each at its name; another name is 404, and another host's name gets nothing."""
    assert get(f"{address}/health") == (200, "ok")
    assert "drift it is" not in get(address)[1]
    journal(shelf, night(0, "drift"))
    assert "drift it is" in get(address)[1]
    assert MODEL in get(f"{address}/{MODEL}")[1]
    assert get(f"{address}/..%2f..%2fetc")[0] == 404
    assert "Models" in get(f"{address}/_all")[1]
    assert "Performance on the holdout" in get(f"{address}/{MODEL}/v2/card")[1]
    assert get(f"{address}/{MODEL}/v9/card")[0] == 404
    (shelf.settings.store / "watch" / MODEL / "drift-2026-02-28.html").write_text("<p>a night</p>")
    assert get(f"{address}/{MODEL}/drift/2026-02-28") == (200, "<p>a night</p>")
    assert get(f"{address}/{MODEL}/drift/2026-02-27")[0] == 404
    with urllib.request.urlopen(f"{address}/{MODEL}/drift/2026-02-28", timeout=30) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert get(address, Host="evil.example")[0] == 403
    shelf.ledger_file.write_text("no database")
    code, text = get(address)
    assert code == 503
    assert "remedy" in text
    assert json.dumps(text)
