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
from towline.cli.status_server import Pages
from towline.config import PipelineConfig, build_config
from towline.monitoring.evidence import Drift, Estimate, Finding, Quality
from towline.monitoring.journal import Journal
from towline.monitoring.looks import Counts
from towline.monitoring.page import index, render
from towline.monitoring.status import Day, Goal, Run, Status, gather, traffic
from towline.monitoring.traffic import FILE, Total
from towline.serving import parts
from towline.training.interval import Interval

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)
SCRIPT = "<script>alert('&')</script>"


def night(ago: float = 0, state: Any = "quiet", column: str = "rooms", **more: Any) -> Drift:
    end = NOW - ago * DAY
    moved = state == "drift"
    found = Finding(column=column, what="distribution", value=0.6 if moved else 0.1, threshold=0.3, alarm=moved)
    facts = {"version": 1, "rows": 500, "findings": (found,), "budget": 4.0, "reason": f"{state} it is"}
    return Drift(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def window(ago: int = 0, state: Any = "good", **more: Any) -> Quality:
    end = NOW - ago * DAY
    facts = {
        "version": 1, "metric": "mae", "value": Interval(value=21.5, low=20.5, high=22.5), "holdout": 20.0,
        "bound": 25.0, "rows": 400, "labelled": 300, "due": 350, "reason": f"{state} it is",
        "estimate": Estimate(value=23.75, trusted=False, why="the inputs have drifted"),
    }  # fmt: skip
    return Quality(state=state, **{**facts, "start": end - DAY, "end": end, **more})


def config(**slo: Any) -> PipelineConfig:
    return build_config({"name": MODEL, "data": {"source": "x", "target": "value"}, "slo": slo}, "")


def look(shelf: Shelf, **more: Any) -> Status:
    return gather(shelf.settings, MODEL, NOW, more.pop("config", config()), **more)


def journal(shelf: Shelf, *records: Drift | Quality) -> None:
    for record in records:
        Journal.of(shelf.settings, MODEL).add(record, NOW)


def log(folder: Path, day: dt.date, rows: int, source: str = "s") -> None:
    path = parts.part_path(folder, day, source, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row": list(range(rows))}), path)


def test_a_new_model_has_a_status(shelf: Shelf) -> None:
    """Before anything was asked or watched it says what serves, from when on and of what age; nothing is alarming."""
    found = look(shelf)
    assert found.champion
    assert (found.champion.version, found.champion.rows, found.champion.previous) == (1, 200, None)
    assert found.champion.holdout
    assert found.champion.trained <= found.champion.since <= dt.datetime.now(dt.UTC)  # type: ignore[operator]
    assert (found.traffic.rows, found.goals, found.drift, found.quality, found.alarms) == (0, (), (), (), ())
    assert found.health == "unknown"
    page = render(found)
    assert "No prediction is logged yet" in page
    assert "No night was looked at yet" in page


def test_a_release_that_is_gone_leaves_a_status(shelf: Shelf) -> None:
    """What the ledger knows of the champion is told without its release."""
    shelf.release(1).rename(shelf.settings.store / "away")
    found = gather(shelf.settings, MODEL, NOW)
    assert found.champion
    assert (found.champion.version, found.champion.trained) == (1, None)
    assert "version</span> <b>1" in render(found)


def test_what_is_wrong_is_an_alarm(shelf: Shelf) -> None:
    """Drift, broken input and bad quality of the version that serves are alarms until a window is well again."""
    journal(shelf, night(2), night(1, "drift"), window(2))
    assert [(one.what, one.reason) for one in look(shelf).alarms] == [("drift", "drift it is")]
    assert look(shelf).health == "bad"
    journal(shelf, night(0.5, "broken"), window(1, "bad"))
    assert [one.what for one in look(shelf).alarms] == ["input is broken", "quality is bad"]
    journal(shelf, night(0), window(0))
    assert look(shelf).alarms == ()
    assert look(shelf).health == "good"
    journal(shelf, night(0, "drift", version=7))
    assert look(shelf).alarms == (), "of a version that does not serve"


def test_a_watch_that_stands_still_is_told(shelf: Shelf) -> None:
    """Two days without a night are no all-clear, where nights are scheduled."""
    journal(shelf, night(2))
    assert [(one.what, one.bad) for one in look(shelf).alarms] == [("no watch", False)]
    assert look(shelf).health == "warn"
    never = build_config({"name": MODEL, "data": {"source": "x", "target": "value"}, "schedule": {"drift": None}}, "")
    assert look(shelf, config=never).alarms == ()


def test_promises_are_told_with_their_budget(shelf: Shelf) -> None:
    """A service that was looked at has its objectives; one that failed too often is an alarm."""
    assert look(shelf).goals == ()
    begun = Total(at=NOW - 2 * DAY, service="http://s", looks=1, counts=Counts())
    ended = Total(at=NOW, service="http://s", looks=2000, counts=Counts(requests=10_000, errors=40))
    path = Journal.of(shelf.settings, MODEL).folder / FILE
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(total.model_dump_json() for total in (begun, ended)) + "\n")
    found = look(shelf, config=config(availability=0.99))
    goals = {goal.name: goal for goal in found.goals}
    assert goals["availability"].budget == pytest.approx(0.6)
    assert goals["answering"].state == "met"
    assert "60%" in render(found)
    spent = look(shelf, config=config(availability=0.999))
    assert {goal.name: goal.state for goal in spent.goals}["availability"] in ("burning", "spent")
    assert any(alarm.what.startswith("availability") for alarm in spent.alarms)


def test_decisions_stand_between_promotions(shelf: Shelf) -> None:
    """The newest first; rounds that came to nothing are counted; a block of sound-looking nights is an alarm."""
    for number, (action, reason) in enumerate(
        [("nothing", "calm"), ("nothing", "calm"), ("block", "labels are broken")]
    ):
        shelf.ledger.decide(MODEL, "watch", f"{action}: {reason}", {"action": action}, f"cause {number}")
    found = look(shelf)
    assert (found.steps[0].what, found.steps[0].reason) == ("block", "labels are broken")
    assert "nothing" not in [step.what for step in found.steps]
    assert found.calm == 2
    assert [alarm.what for alarm in found.alarms] == ["blocked"]
    shelf.promote(2)
    assert look(shelf).alarms == ()
    assert [step.what for step in look(shelf).steps][:2] == ["promoted", "block"]


def test_traffic_is_counted_by_day(tmp_path: Path) -> None:
    """Rows of all parts of a day, of 30 days; what is damaged or not a table yet does not stop the count."""
    today = NOW.date()
    log(tmp_path, today, 5)
    log(tmp_path, today, 6, "t")
    log(tmp_path, today - 29 * DAY, 7)
    log(tmp_path, today - 30 * DAY, 8)
    parts.part_path(tmp_path, today, "damaged", 1).write_bytes(b"PAR1")
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "w0.jsonl").write_bytes(b"x" * 70)
    found = traffic(tmp_path, today)
    assert found.days == (Day(day=today - 29 * DAY, rows=7), Day(day=today, rows=11))
    assert (found.rows, found.waiting) == (18, 70)
    assert not (tmp_path / ".lock").exists()
    assert traffic(tmp_path / "none", today).rows == 0


def test_the_last_runs_are_told_by_whoever_knows(shelf: Shelf) -> None:
    """What Prefect says of a flow comes before what the store knows of it."""
    journal(shelf, night(0), window(1))
    told = Run(flow="drift", started=NOW, state="Completed", next=NOW + DAY)
    assert look(shelf, runs=[told]).runs[0] == told
    assert {run.flow: run.state for run in look(shelf).runs} == {
        "training": "promoted",
        "drift": "quiet",
        "quality": "good",
    }


def full(**more: Any) -> Status:
    nights = [night(2, column=SCRIPT, reason=SCRIPT), night(1, "drift", SCRIPT), night(0, version=2)]
    facts: dict[str, Any] = {
        "model": SCRIPT, "at": NOW, "drift": tuple(nights), "quality": (window(1, "bad"), window(0, "unknown")),
        "goals": (Goal(name="availability", target=SCRIPT, now=SCRIPT, budget=-0.5, state="spent", reason=SCRIPT),),
        "runs": (Run(flow=SCRIPT, state=SCRIPT),),
    }  # fmt: skip
    return Status(**{**facts, **more})


def test_the_page_is_text_that_loads_nothing() -> None:
    """No script, no address, whatever a column or a reason is called; one style, which the policy names."""
    page = render(full())
    assert "<script" not in page + index([full()], NOW)
    assert re.findall(r"(?:src|href|action)=", page) == []
    assert re.findall(r" (?:on\w+|style)=", page) == []
    assert "default-src 'none'" in page


def test_the_page_shows_what_was_found() -> None:
    """Each night and column has its cell, alarms are marked; each window has interval, bound, estimate, labels."""
    nights = [night(ago, "drift" if ago == 1 else "quiet", f"c{column}") for column in range(1) for ago in (2, 1, 0)]
    page = render(full(drift=tuple(nights)))
    drift = page[page.index("<h2>Drift") :]
    assert len(re.findall(r'<rect[^>]*class="heat"', drift)) == 2
    assert len(re.findall(r'<rect[^>]*class="bad"', drift)) == 1
    quality = page[page.index("<h2>Quality") : page.index("<h2>Drift")]
    for text in ("21.5 [20.5, 22.5]", "estimate 23.75", "not to be trusted", "75% have a label", "350 are due"):
        assert text in quality
    assert len(re.findall('class="bound"', quality)) == len(re.findall('class="whisker', quality)) == 2
    assert len(re.findall('class="guess doubted"', quality)) == 2


def test_odd_records_have_a_page() -> None:
    """Nights of no rows and windows without any value are drawn like the others, as far as there is something."""
    nothing = Interval(value=None)
    bare = window(
        0, "unknown", value=nothing, estimate=None, rows=0, labelled=0, due=0, holdout=None, start=None, end=None
    )
    for status in (
        full(drift=(night(0, "unknown", findings=(), start=None, end=None),)),
        full(quality=(bare,)),
        full(quality=(window(0, bound=0.0, value=Interval(value=0.0, low=0.0, high=0.0), estimate=None),)),
        full(drift=tuple(night(ago) for ago in range(400))),
    ):
        assert render(status).endswith("</html>\n")


@pytest.fixture
def shown(shelf: Shelf, command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command on the shelf's store; no Prefect server is known."""
    monkeypatch.setenv("TOWLINE_STORE", str(shelf.settings.store))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return command


def test_the_screen_tells_it_at_a_glance(shelf: Shelf, shown: Callable[..., Done], tmp_path: Path) -> None:
    """Version, age, traffic, quality, drift by column over nights, decisions, alarms; the page beside it."""
    journal(shelf, night(2), night(1, "drift"), window(1, "bad"))
    log(shelf.settings.store / "predictions" / MODEL, NOW.date(), 12)
    shelf.ledger.decide(MODEL, "watch", "warn: it moved", {"action": "warn"}, "c")
    done = shown("status", "--page", tmp_path / "page.html")
    for text in (MODEL, "alarm", "12 predictions", "mae 21.5 [20.5, 22.5]", "300 of 400", "rooms", "0.6", "it moved"):
        assert text in done.out
    assert re.search(r"rooms +distribution +0\.6 +0\.3 +.!$", done.out, re.MULTILINE)
    assert "<h2>Drift" in (tmp_path / "page.html").read_text()
    document = shown("status", MODEL, "--json").json
    assert (document["model"], document["health"], document["champion"]["version"]) == (MODEL, "bad", 1)
    assert [one["model"] for one in shown("status", "--json").json] == [MODEL]


def test_a_config_says_which_model_and_what_is_promised(
    shelf: Shelf, shown: Callable[..., Done], tmp_path: Path
) -> None:
    """The promises of the file count, not those of the release."""
    text = f"name: {MODEL}\ndata: {{source: x, target: value}}\nslo: {{metric: 20}}\n"
    (tmp_path / "house.yaml").write_text(text)
    journal(shelf, window(1))
    document = shown("status", tmp_path / "house.yaml", "--json").json
    assert [goal["name"] for goal in document["goals"]] == ["metric"]
    assert shown("status", MODEL, "--json").json["goals"] == []
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
    with Pages(0, shelf.settings) as server:
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
    assert get(address, Host="evil.example")[0] == 403
    shelf.ledger_file.write_text("no database")
    code, text = get(address)
    assert code == 503
    assert "remedy" in text
    assert json.dumps(text)
