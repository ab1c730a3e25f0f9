"""From traffic to drift to a training to the service that has reloaded, with nobody at hand."""

import datetime as dt
import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks.kill import MODEL, REPOSITORY, Line, write_config
from benchmarks.swaps import Serving
from towline.cli import servers

RETRAIN = {"need": 1, "of": 1, "min_rows": 50, "cooldown": "1d"}


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    """A champion trained on four weeks of winter."""
    line = Line(tmp_path / "store", write_config(tmp_path, retrain=RETRAIN, quality={"delay": "0h", "window": "1h"}))
    try:
        code, _, err = line.run()
        assert code == 0, err
        yield line
    finally:
        servers.stop(line.settings)


def summer(*, shifted: bool = True) -> list[dict[str, Any]]:
    """Four hundred hours that follow the training table, warmer by fifteen degrees where shifted."""
    table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").iloc[600:1000]
    table = table.assign(datetime=table["datetime"].astype(str))
    if shifted:
        table = table.assign(temp_c=table["temp_c"] + 15, feels_like_c=table["feels_like_c"] + 15)
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def ask(serving: Serving, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row a request, as programs send them."""
    answers = []
    for row in rows:
        sent = {key: value for key, value in row.items() if key not in ("rentals", "casual", "registered")}
        body = json.dumps({"rows": [sent]}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{serving.port}/predict", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answers.append(json.load(answer))
    return answers


def round_of(line: Line, flow: str, *words: str) -> dict[str, Any]:
    code, out, err = line.run(str(line.config), "--json", *words, command=flow)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def learn(line: Line, rows: list[dict[str, Any]]) -> None:
    """The source has grown by these rows since."""
    path = Path(yaml.safe_load(line.config.read_text())["data"]["source"])
    pd.concat([pd.read_csv(path), pd.DataFrame(rows)]).to_csv(path, index=False)


def test_drift_is_seen_trained_away_and_served(line: Line) -> None:
    """The night's rows differ, a report says how, a training takes them in, and the service answers with its model."""
    rows = summer()
    with ExitStack() as running:
        serving = running.enter_context(Serving(line.settings, MODEL))
        assert {answer["model"]["version"] for answer in ask(serving, rows)} == {1}
        learn(line, rows)
        seen = round_of(line, "drift")
        assert seen["drift"]["state"] == "drift", seen
        assert {"temp_c", "feels_like_c"} <= {f["column"] for f in seen["drift"]["findings"] if f["alarm"]}
        assert "temp_c" in Path(seen["report"]).read_text()
        assert (seen["decision"]["action"], seen["decision"]["trigger"]) == ("retrain", "drift")
        running.enter_context(_waiting(serving, version=2))

        flows = {run["id"]: run for run in line.api("flow_runs")}
        (child,) = [run for run in flows.values() if run["parameters"].get("trigger") == "drift"]
        (task,) = line.api("task_runs", task_runs={"id": {"any_": [child["parent_task_run_id"]]}})
        assert flows[task["flow_run_id"]]["state_name"] == "Retrain"

        again = round_of(line, "drift")
        assert again["decision"]["action"] == "nothing"
        assert [entry.version for entry in line.ledger.versions(MODEL)] == [1, 2]
    told = [(row.event, row.evidence.get("action")) for row in reversed(line.ledger.history(MODEL))]
    assert [one for one in told if one[0] == "decided"] == [("decided", "retrain"), ("decided", "nothing")]


def _waiting(serving: Serving, version: int) -> ExitStack:
    """Until the service answers with a version."""
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)
    while ask(serving, summer()[:1])[0]["model"]["version"] != version:
        assert dt.datetime.now(dt.UTC) < until, "the service still answers with the version before"
    return ExitStack()
