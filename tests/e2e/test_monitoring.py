"""From traffic to drift to a training to the service that has reloaded, with nobody at hand."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks.kill import MODEL, REPOSITORY
from tests.whole import Whole
from towline.monitoring.journal import Journal

WATCH = {
    "schedule": {"drift": "* * * * *", "quality": None},
    "retrain": {"bad_windows": 1, "recent_windows": 1, "min_rows": 50, "cooldown": "1d"},
}


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Whole]:
    whole = Whole(tmp_path, **WATCH)
    try:
        yield whole
    finally:
        whole.end()


def warm() -> list[dict[str, Any]]:
    """Four hundred hours that follow the training table, fifteen degrees warmer."""
    table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").iloc[600:1000]
    table = table.assign(datetime=table["datetime"].astype(str))
    table = table.assign(temp_c=table["temp_c"] + 15, feels_like_c=table["feels_like_c"] + 15)
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def ask(whole: Whole, row: dict[str, Any]) -> int:
    """The version that answers."""
    sent = {key: value for key, value in row.items() if key not in ("rentals", "casual", "registered")}
    content, head = json.dumps({"rows": [sent]}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{whole.port}/predict", content, head)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(json.load(answer)["model"]["version"])


def learn(whole: Whole, rows: list[dict[str, Any]]) -> None:
    """The source has grown by these rows."""
    path = Path(yaml.safe_load(whole.line.config.read_text())["data"]["source"])
    pd.concat([pd.read_csv(path), pd.DataFrame(rows)]).to_csv(path, index=False)


def test_drift_is_seen_trained_away_and_served(whole: Whole) -> None:
    """Warmer days are asked about: a round alarms, a report says where, a training follows, its model answers; once."""
    whole.start()
    whole.until(whole.answers)
    rows = warm()
    learn(whole, rows)
    assert {ask(whole, row) for row in rows} == {1}
    whole.until(lambda: ask(whole, rows[0]) == 2, 400)

    line, ledger = whole.line, whole.line.ledger
    nights = Journal.of(line.settings, MODEL).drift(version=1)
    (night,) = [one for one in nights if one.state == "drift"]
    assert {"temp_c", "feels_like_c"} <= {check.column for check in night.checks if check.alarm}
    (page,) = (line.store / "watch" / MODEL).glob("drift-*.html")
    assert "temp_c" in page.read_text()
    decided = [(row.evidence["action"], row.evidence["trigger"]) for row in ledger.decisions(MODEL)]
    assert [one for one in decided if one[0] != "nothing"] == [("retrain", "drift")]

    (child,) = [run for run in whole.runs("training") if run["parameters"].get("trigger") == "drift"]
    (task,) = line.api("task_runs", task_runs={"id": {"any_": [child["parent_task_run_id"]]}})
    parents = {run["id"]: run["state_name"] for run in whole.runs("drift")}
    assert parents[task["flow_run_id"]] == "Retrain"

    def ended() -> int:
        return sum(state in ("Completed", "Retrain") for state in whole.states("drift"))

    before = ended()
    whole.until(lambda: ended() > before, 200)
    assert [entry.version for entry in ledger.versions(MODEL)] == [1, 2]
