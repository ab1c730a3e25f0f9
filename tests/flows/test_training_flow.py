"""The training flow on a small real table: results in the ledger, in MLflow and on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.commands import CommandResult
from towline.config import Candidate
from towline.store import StoreLayout
from towline.training.model_selection import reference_model

Command = Callable[..., CommandResult]


def test_a_run_promotes_and_a_repeated_run_does_nothing(towline: Command, config: Path, store: Path) -> None:
    """The first run ends with a champion; the same command again reports it and creates no second version.

    Behaviour tests are checks of the gate, and are in the model card.
    """
    tested = ("--set", "behaviour={robustness: {}, expect: [{name: a day, row: {hour: 8}, between: [-500, 1500]}]}")
    first = towline("run", config, *tested, "--json")
    assert first.code == 0, first.err
    outcome = first.json
    assert outcome["event"] == "promoted"
    names = [check["name"] for check in outcome["verdict"]["checks"]]
    assert {"expect a day", "robustness nulls"} <= set(names)
    assert "expect a day" in (store / outcome["release"] / "card.md").read_text()
    assert (store / outcome["release"] / "card.html").exists()
    assert not any((store / "work").iterdir())

    ended = StoreLayout(store).last_training("bikes").read_text()
    again = towline("run", config, *tested, "--json").json
    assert again["repeated"]
    assert StoreLayout(store).last_training("bikes").read_text() > ended
    assert again["version"] == outcome["version"] == 1
    assert [row["version"] for row in towline("models", "--json").json] == [1]


def test_a_changed_table_gives_a_new_version(towline: Command, config: Path) -> None:
    """One more row gives another run key; a rollback restores the previous version, and the history has all events."""
    assert towline("run", config).code == 0
    path = Path(yaml.safe_load(config.read_text())["data"]["source"])
    table = pd.read_csv(path)
    table.iloc[:-1].to_csv(path, index=False)
    second = towline("run", config, "--json", "--set", "gate.champion_margin=5").json
    assert (second["version"], second["event"], second["previous"]) == (2, "promoted", 1)
    back = towline("rollback", "bikes", "--reason", "odd on Sundays", "--json").json
    assert (back["event"], back["version"]) == ("rolled_back", 1)
    events = [(row["event"], row["version"]) for row in towline("history", "--json").json]
    assert events == [("rolled_back", 1), ("promoted", 2), ("registered", 2), ("promoted", 1), ("registered", 1)]
    assert towline("rollback", "bikes").code == 4


def test_a_rejected_model_does_not_serve(towline: Command, config: Path) -> None:
    """A bound that is not met: exit code 4, a recorded refusal and no champion; later commands show the remedy."""
    result = towline("run", config, "--set", "gate.max.mae=0.5", "--json")
    assert result.code == 4
    assert result.json["event"] == "refused"
    failed = [check for check in result.json["verdict"]["checks"] if check["outcome"] == "fail"]
    assert [check["bound"] for check in failed] == [0.5]
    assert towline("models", "--json").json[0]["state"] == "refused"
    promoted = towline("promote", "bikes@1", "--reason", "please")
    assert promoted.code == 4
    again = towline("run", config, "--set", "gate.max.mae=0.5")
    assert again.code == 4
    assert "nothing to do" in again.out
    for text in (promoted.err, again.out):
        assert "gate.max.mae" in text
        assert "towline run CONFIG --force" in text
    assert towline("show", "bikes").code == 2


def test_a_version_waits_for_approval(towline: Command, config: Path, tmp_path: Path) -> None:
    """The run ends with exit code 0 and without a champion; the last approval promotes the complete version."""
    words = ("--set", "approval={required: 1, expires: 1d}")
    result = towline("run", config, *words)
    assert result.code == 0, result.err
    assert "towline approve bikes@1" in result.out
    assert towline("models", "--json").json[0]["state"] == "awaiting approval"
    again = towline("run", config, *words)
    assert (again.code, "awaits approval: 1 approval until" in again.out) == (0, True)
    assert towline("promote", "bikes@1", "--reason", "please").code == 4
    key_file = tmp_path / "key"
    key_file.write_text(towline("keys", "create", "bob", "--scope", "admin").out)
    approved = towline("approve", "bikes@1", "--key-file", key_file, "--json")
    assert (approved.code, approved.json["state"]) == (0, "promoted"), approved.err
    assert towline("models", "--json").json[0]["state"] == "champion"
    whole = towline("verify", "bikes")
    assert whole.code == 0, whole.out


def test_another_gate_reuses_the_fits_and_another_split_does_not(towline: Command, config: Path, store: Path) -> None:
    """After a refusal with a relaxed bound, cross-validation is not repeated: its measured times are the same."""
    rejected = towline("run", config, "--set", "gate.max.mae=0.5", "--json").json
    assert rejected["event"] == "refused"
    (workspace,) = (store / "work").iterdir()
    fitted = (workspace / "model.skops").stat().st_mtime_ns

    other_split = towline("run", config, "--set", "split.holdout=0.3", "--set", "gate.max.mae=0.4", "--json").json
    assert [row["seconds"] for row in other_split["candidates"]] != [row["seconds"] for row in rejected["candidates"]]
    assert (workspace / "model.skops").stat().st_mtime_ns == fitted

    promoted = towline("run", config, "--set", "gate.max.mae=500", "--json").json
    assert (promoted["event"], promoted["version"]) == ("promoted", 3)
    assert promoted["candidates"] == rejected["candidates"]
    assert promoted["metrics"] == rejected["metrics"]
    assert promoted["run_key"] != rejected["run_key"]
    assert not workspace.exists()


def test_as_of_leaves_out_later_rows(towline: Command, config: Path) -> None:
    """A run as of an earlier day has no row after it."""
    outcome = towline("run", config, "--as-of", "2011-02-10", "--json").json
    assert outcome["dataset"]["end"] <= "2011-02-10T00:00:00"
    assert outcome["dataset"]["rows"] < 1000


def test_mlflow_mirrors_the_ledger(towline: Command, config: Path, store: Path) -> None:
    """MLflow has the version with aliases, nested runs of candidates, plots, release and digest."""
    outcome = towline("run", config, "--json").json
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db", f"sqlite:///{store}/mlflow.db")
    version = client.get_model_version_by_alias("bikes", "champion")
    assert int(version.version) == outcome["version"]
    assert version.tags["verdict"] == "pass"
    run = client.get_run(outcome["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["mae"] == pytest.approx(outcome["metrics"]["mae"]["value"])
    nested = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    assert len(nested) == 3
    there = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"plots", "release", "data_docs.html"} <= there


def test_a_wrong_behaviour_test_stops_the_run_before_it_trains(towline: Command, config: Path, store: Path) -> None:
    """A column that the table does not have: exit code 2 with the config key, and no fit."""
    result = towline("run", config, "--set", "behaviour={directional: [{column: temp, delta: 1}]}")
    assert result.code == 2
    assert "behaviour.directional.0.column" in result.err
    assert not list(store.glob("work/*/model.skops"))


def test_without_a_time_column_rows_are_split_at_random(towline: Command, config: Path) -> None:
    """The same table without a time column is trained, too; rejected data changes no store."""
    words = ["--set", "data.time=null", "--set", "data.drop=[casual, registered, datetime]"]
    assert towline("run", config, *words, "--json").json["split"]["by"] == "random"


def test_leaks_are_rejected(towline: Command, config: Path, store: Path) -> None:
    """Columns that add up to the target end the run with exit code 3 before any fit."""
    result = towline("run", config, "--set", "data.drop=[]")
    assert result.code == 3
    assert "casual" in result.err
    assert "registered" in result.err
    assert not (store / "ledger.db").exists()
    assert not (store / "releases").exists()


def test_end_states_in_prefect(towline: Command, config: Path, prefect: str) -> None:
    """Refused version, rejected data, repeated run and promotion have different states in Prefect, with reasons."""

    def ask(what: str, **query: Any) -> list[dict[str, Any]]:
        body = json.dumps(query).encode()
        request = Request(f"{prefect}/api/{what}/filter", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as response:  # on loopback
            return list(json.load(response))

    def last() -> dict[str, str]:
        started = {"state": {"type": {"not_any_": ["SCHEDULED"]}}}  # other tests have created schedules
        run = ask("flow_runs", limit=1, sort="START_TIME_DESC", flow_runs=started)[0]
        return run["state"] | {"tag": run["tags"][0]}

    code, state = towline("run", config).code, last()
    assert (code, state["name"], state["type"]) == (0, "Completed", "COMPLETED")
    assert state["tag"].startswith("version 1 of bikes, promoted: passed")
    code, state = towline("run", config).code, last()
    assert (code, state["name"], state["type"]) == (0, "Unchanged", "COMPLETED")
    for name in ("Refused", "Unchanged"):
        code, state = towline("run", config, "--set", "gate.max.mae=0.5").code, last()
        assert (code, state["name"], state["type"]) == (4, name, "FAILED")
        assert "version 2 of bikes, refused: fail: max mae" in state["message"]
        assert state["tag"] == state["message"]
    code, state = towline("run", config, "--set", "data.drop=[]").code, last()
    assert (code, state["name"], state["type"]) == (3, "Data refused", "FAILED")
    assert "casual + registered = rentals" in state["message"]
    assert state["tag"].startswith("data refused: the table breaks")


def test_a_candidate_beyond_the_budget_is_left_out_and_named(towline: Command, config: Path, store: Path) -> None:
    """The run promotes the other candidate; screen, model card and MLflow name the candidate that was left out."""
    candidates = "candidates=[linear, {estimator: forest, params: {n_estimators: 3000}}]"
    result = towline("run", config, "--set", candidates, "--set", "budget=2s")
    assert result.code == 0, result.err
    reduction = "forest is left out: its fits on all 1,400 rows would take about"
    assert f"  · {reduction}" in result.out
    assert "left out (budget)" in result.out
    (card,) = store.glob("releases/**/card.html")
    assert reduction in card.read_text()

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db", f"sqlite:///{store}/mlflow.db")
    version = client.get_model_version_by_alias("bikes", "champion")
    run = client.get_run(version.run_id)
    assert run.data.params["candidate"] == "linear"
    assert run.data.params["budget"] == "2s"
    assert run.data.tags["training_notes"].startswith(reduction)
    assert reduction in version.description


def test_a_small_table_is_trained_as_without_a_budget(towline: Command, config: Path) -> None:
    """The default budget changes neither scores nor metrics, and no step measures fits."""
    limited = towline("run", config, "--json")
    free = towline("run", config, "--set", "budget=null", "--json")
    for result in (limited, free):
        assert result.json["training_notes"] == []
        assert "plan fits" not in result.err
    assert free.json["metrics"] == limited.json["metrics"]
    scores = [[each["mean"] for each in result.json["candidates"]] for result in (limited, free)]
    assert scores[0] == scores[1]


def test_a_model_far_below_boosting_is_reported(
    towline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A linear model cannot learn the sign of a product; the summary compares it with boosting and gives advice."""
    monkeypatch.setattr(reference_model, "REFERENCE", Candidate(estimator="boosting"))
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(800, 3)), columns=["a", "b", "c"])
    table["y"] = np.where(table.a * table.b + 0.3 * table.c > 0, "yes", "no")
    table.to_csv(tmp_path / "signs.csv", index=False)
    raw = {"name": "signs", "data": {"source": str(tmp_path / "signs.csv"), "target": "y"}, "candidates": ["linear"]}
    (tmp_path / "signs.yaml").write_text(yaml.safe_dump(raw))
    result = towline("run", tmp_path / "signs.yaml")
    assert "compare with boosting" in result.err
    assert "linear is far below default boosting" in result.out
    assert "add boosting to candidates" in result.out
