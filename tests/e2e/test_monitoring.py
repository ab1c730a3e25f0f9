"""From predictions to drift, to a retraining, to a service with the new version, without an operator."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.paths import REPOSITORY
from tests.support.store_commands import MODEL
from tests.support.up_process import UpProcess
from towline.data.schema.contract import Contract
from towline.monitoring.journal import Journal

SECTIONS = {
    "schedule": {"drift": "0 0 1 1 *", "quality": None},  # the test starts the runs
    "retrain": {"bad_windows": 1, "recent_windows": 1, "min_rows": 50, "cooldown": "1d"},
}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UpProcess]:
    write_lookup(tmp_path, 0.5)
    lookup = {"table": str(tmp_path / "skies.csv"), "key": "weather", "columns": ["light"]}
    up = UpProcess(tmp_path, lookups={"skies": lookup}, features={"glare": "light * temp_c"}, **SECTIONS)
    try:
        yield up
    finally:
        up.stop()


def write_lookup(folder: Path, clear: float) -> None:
    (folder / "skies.csv").write_text(f"weather,light\nclear,{clear}\nmist,0.3\nlight_precip,0.2\nheavy_precip,0.1\n")


def make_warmer_rows() -> list[dict[str, Any]]:
    """Four hundred hours that follow the training table, 15 degrees warmer."""
    table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").iloc[600:1000]
    table = table.assign(datetime=table["datetime"].astype(str))
    table = table.assign(temp_c=table["temp_c"] + 15, feels_like_c=table["feels_like_c"] + 15)
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def predict_version(up: UpProcess, row: dict[str, Any]) -> int:
    """Sends a prediction request and returns the version that answered."""
    row_sent = {key: value for key, value in row.items() if key not in ("rentals", "casual", "registered")}
    content, head = json.dumps({"rows": [row_sent]}).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{up.port}/predict", content, head)
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(json.load(response)["model"]["version"])


def append_to_source(up: UpProcess, rows: list[dict[str, Any]]) -> None:
    """Appends these rows to the source."""
    path = Path(yaml.safe_load(up.commands.config.read_text())["data"]["source"])
    pd.concat([pd.read_csv(path), pd.DataFrame(rows)]).to_csv(path, index=False)


def run_drift_check(up: UpProcess) -> str:
    """Starts a run of the flow `drift`, waits for its end, and returns its state."""
    number = up.start_run("drift")
    ended = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return str(
        up.wait_until(
            lambda: (state := up.call_prefect(f"flow_runs/{number}")["state"])["type"] in ended and state["name"]
        )
    )


def test_drift_alarm_triggers_one_retraining_that_is_served(up: UpProcess, tmp_path: Path) -> None:
    """Rows of warmer days cause a drift alarm, one retraining, and a service that predicts with the new version.

    The new version has the current entries of its lookup table.
    """
    up.start()
    up.wait_until(up.is_ready)
    rows = make_warmer_rows()
    append_to_source(up, rows)
    write_lookup(tmp_path, 0.9)
    assert {predict_version(up, row) for row in rows} == {1}
    commands, ledger = up.commands, up.commands.ledger
    up.wait_until(lambda: run_drift_check(up) == "Retrain")  # the first check may run before all rows are in the log
    # requests during a long training would cause drift in another window
    up.wait_until(lambda: (champion := ledger.champion(MODEL)) and champion.version == 2)
    up.wait_until(lambda: predict_version(up, rows[0]) == 2)

    contracts = [Contract.read(*(commands.store / "releases" / MODEL).glob(f"v{version}-*")) for version in (1, 2)]
    assert [contract.lookups[0].table.read_values(0, np.arange(1)).tolist() for contract in contracts] == [[0.5], [0.9]]
    results = Journal.of(commands.settings, MODEL).drift(version=1)
    (drifted,) = [entry for entry in results if entry.state == "drift"]
    assert {"temp_c", "feels_like_c"} <= {check.column for check in drifted.checks if check.alarm}
    (page,) = (commands.store / "monitoring" / MODEL).glob("drift-*.html")
    assert "temp_c" in page.read_text()
    decided = [(row.evidence["action"], row.evidence["trigger"]) for row in ledger.decisions(MODEL)]
    assert [entry for entry in decided if entry[0] != "nothing"] == [("retrain", "drift")]

    (child,) = [run for run in up.runs("training") if run["parameters"].get("trigger") == "drift"]
    (task,) = commands.query_prefect("task_runs", task_runs={"id": {"any_": [child["parent_task_run_id"]]}})
    parents = {run["id"]: run["state_name"] for run in up.runs("drift")}
    assert parents[task["flow_run_id"]] == "Retrain"

    assert run_drift_check(up) == "Completed"
    assert [entry.version for entry in ledger.versions(MODEL)] == [1, 2]
