"""A canary from a passed gate to the promotion, and an aborted one, with the commands of a user."""

import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.paths import REPOSITORY
from tests.support.serve_process import ServeProcess
from tests.support.store_commands import MODEL, StoreCommands, write_bike_config
from tests.support.up_process import UpProcess
from towline.registry.ledger import Entry
from towline.registry.rollouts import active_rollout
from towline.rollout.service_counts import read_counts

CANARY = {"steps": [0, 50, 100], "bake": "1s", "min_rows": 20, "key": "hour", "promote_if": "better"}
WEAK = {"candidates": [{"estimator": "forest", "params": {"max_depth": 1, "n_estimators": 5}}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, prefect: str) -> StoreCommands:
    """A weak champion, and a config whose boosted trees pass the gate and start a canary."""
    folder = tmp_path_factory.mktemp("rollout")
    commands = StoreCommands(folder / "store", write_bike_config(folder, **WEAK))
    commands.environment |= {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    assert commands.run()[0] == 0
    boosting = {
        "candidates": [
            {"estimator": "boosting", "params": {"max_iter": 60, "early_stopping": False, "max_leaf_nodes": 31}}
        ],
        "rollout": CANARY,
    }
    commands.config = write_bike_config(folder, **boosting)
    return commands


def read_rows(start: int, count: int) -> pd.DataFrame:
    """Hours after those of the training, with their true rentals."""
    table = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").iloc[start : start + count]
    return table.assign(hour=table["datetime"].dt.hour, datetime=table["datetime"].astype(str))


def predict(service: ServeProcess, rows: pd.DataFrame) -> list[tuple[str, int]]:
    """Sends each row as a request; returns the request ids and the versions that answered."""
    answers = []
    for row in rows.drop(columns=["rentals", "casual", "registered"]).to_dict("records"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{service.port}/predict", json.dumps({"rows": [row]}).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as response:
            document = json.load(response)
        answers.append((document["request_id"], document["model"]["version"]))
    return answers


def send_in_one_request(service: ServeProcess, rows: pd.DataFrame) -> None:
    records = rows.drop(columns=["rentals", "casual", "registered"]).to_dict("records")
    body = json.dumps({"rows": records}).encode()
    address, head = f"http://127.0.0.1:{service.port}/predict", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, body, head), timeout=60) as response:
        assert set(json.load(response)["versions"]) == {1, 2}


def add_labels(commands: StoreCommands, rows: pd.DataFrame, answers: list[tuple[str, int]]) -> None:
    path = commands.config.parent / "labels.csv"
    frame = pd.DataFrame({"request_id": [name for name, _ in answers], "rentals": rows["rentals"].to_numpy()})
    frame.to_csv(path, index=False)
    code, out, err = commands.run("add", MODEL, str(path), command="labels")
    assert code == 0, out + err


def run_rollout_command(commands: StoreCommands, *words: str) -> dict[str, Any]:
    code, out, err = commands.run(*words, "--json", command="rollout")
    assert code == 0, err
    return dict(json.loads(out))


def evaluate(commands: StoreCommands) -> dict[str, Any]:
    return run_rollout_command(commands, "evaluate", str(commands.config))


def test_a_canary_from_the_run_to_the_promotion(store: StoreCommands) -> None:
    """Shadow, half of the keys, all keys; then promoted by late labels. A key keeps the challenger once it has it."""
    code, out, err = store.run()
    assert code == 0, err
    assert "passed" in out
    assert "towline rollout status bikes" in out
    assert store.ledger.aliases(MODEL)["champion"] == 1
    with ServeProcess(store.settings, MODEL) as service:
        shadow_rows = read_rows(600, 300)
        answers = predict(service, shadow_rows)
        assert {version for _, version in answers} == {1}
        assert evaluate(store)["evaluation"]["action"] == "advance"
        wait_for_weight(service, 50)
        half = predict(service, read_rows(900, 96))
        versions = {hour: version for hour, (_, version) in zip(read_rows(900, 96)["hour"], half, strict=True)}
        assert set(versions.values()) == {1, 2}
        assert [version for _, version in half] == [versions[hour] for hour in read_rows(900, 96)["hour"]]
        send_in_one_request(service, read_rows(1100, 200))
        add_labels(store, shadow_rows, answers)
        run = evaluate(store)
        assert (run["evaluation"]["verdict"], run["evaluation"]["action"]) == ("promote", "advance"), run
        wait_for_weight(service, 100)
        assert {version for _, version in predict(service, read_rows(1000, 30))} == {2}
        assert evaluate(store)["evaluation"]["action"] == "promote"
    assert store.ledger.aliases(MODEL) == {"champion": 2, "challenger": None, "previous": 1}
    code, out, _ = store.run("status", MODEL, command="rollout")
    assert "no rollout is under way" in out


def wait_for_weight(service: ServeProcess, weight: int) -> None:
    """Waits until the service has read the new weight from the ledger."""
    import time

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if f"weight {weight} %" in service.log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(service.log.read_text())


def test_commands_of_an_operator(store: StoreCommands) -> None:
    """Start, pause, resume, abort; a refused command has a remedy."""
    code, _, err = store.run("pause", MODEL, command="rollout")
    assert (code, "no rollout is under way" in err) == (4, True)
    begun = run_rollout_command(
        store, f"{MODEL}@1", "--strategy", "canary", "--step", "5", "--step", "100", "--bake", "1s"
    )
    assert (begun["rollout"]["champion"], begun["rollout"]["challenger"]) == (2, 1)
    code, _, err = store.run(f"{MODEL}@1", "--key", "hours", command="rollout")
    assert code != 0
    assert "did you mean" in err
    assert run_rollout_command(store, "pause", MODEL)["rollout"]["paused"]
    assert not run_rollout_command(store, "resume", MODEL)["rollout"]["paused"]
    assert run_rollout_command(store, "abort", MODEL, "--reason", "enough")["rollout"] is None
    assert store.ledger.history(MODEL)[0].reason == "enough"
    code, _, err = store.run(f"{MODEL}@1", "--step", "50", "--step", "5", command="rollout")
    assert code == 2
    assert "must rise to 100 percent" in err


def test_towline_up_evaluates_a_rollout(store: StoreCommands, tmp_path: Path) -> None:
    """Its scheduler runs the flow, which raises the weight after enough shadow answers; Prefect has the runs."""
    begun = run_rollout_command(store, f"{MODEL}@1")["rollout"]
    with ServeProcess(store.settings, MODEL) as service:
        predict(service, read_rows(600, 60))
        wait_for_shadow_answers(store, 20)
    up = UpProcess(tmp_path, store)
    up.start()
    try:
        (change,) = up.wait_until(lambda: weight_changes(store, begun["id"]))
        assert (change.evidence["weight"], change.version) == (50, 1)
        assert "without a fault" in change.reason
        up.wait_until(lambda: "Advance" in up.states("rollout"))
    finally:
        up.stop()


def weight_changes(commands: StoreCommands, rollout_id: str) -> list[Entry]:
    rows = [row for row in commands.ledger.rows(MODEL) if row.event == "rollout_changed"]
    return [row for row in rows if row.evidence["id"] == rollout_id]


def wait_for_shadow_answers(commands: StoreCommands, count: int) -> None:
    """Waits until the service has written the counts of at least this number of shadow answers."""
    import time

    active = active_rollout(commands.ledger.rows(MODEL))
    assert active is not None
    folder, deadline = commands.settings.layout.rollout(MODEL, active.id), time.monotonic() + 120
    while read_counts(folder).asked_rows < count:
        assert time.monotonic() < deadline, read_counts(folder)
        time.sleep(0.1)
