"""The prediction log and its labels through the commands, with a real release and a service's writer."""

import datetime as dt
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.commands import CommandResult
from tests.support.prediction_log import read_all_bytes
from tests.support.releases import make_house_table, train_run
from tests.support.sample_store import MODEL, PASS, store_settings
from towline.inference.predictor import Model, open_release
from towline.manifest import read_manifest
from towline.prediction_log.parquet_store import read_predictions
from towline.prediction_log.shadow_log import ShadowLog
from towline.prediction_log.writer import PredictionLog
from towline.registry.ledger import JudgedVersion, Ledger

PRIVACY = {"join_on": ["customer"], "columns": {"size": "bucket"}, "pii": ["doors"]}
Command = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a champion whose log has a bucket, a hash, and no column with personal data."""
    folder = tmp_path_factory.mktemp("log")
    frame = make_house_table(200).drop(columns="sold")
    run = train_run(folder, frame, "linear", target="value", time="at", privacy=PRIVACY)
    package, key = run.package(1), run.work.run_key(run.config)
    ledger = Ledger(store_settings(run.settings.store).ledger_url)
    ledger.register(MODEL, "ann", "trained", {}, key)
    evidence = PASS | {"release": read_manifest(run.settings.store / package.path).digest}
    ledger.promote(MODEL, JudgedVersion(1, key, package.path, evidence), None, "ann", "better")
    return run.settings.store


@pytest.fixture
def model(trained: Path, store: Path) -> Model:
    shutil.copytree(trained, store)
    return open_release(next((store / "releases" / MODEL).glob("v1-*")))


def write_log(store: Path, model: Model) -> list[dict[str, object]]:
    """Logs twenty rows of this hour and of 200 days ago, as a service does."""
    rows = json.loads((model.directory / "probe.json").read_bytes())["rows"][:20]
    now = dt.datetime.now(dt.UTC)
    log = PredictionLog(store / "predictions" / MODEL, "w0", convert=False)
    for age in (200, 0):
        for number, row in enumerate(rows):
            logged = [row | {"customer": f"customer-{number}"}]
            at = now - dt.timedelta(days=age, hours=1)
            log.write(f"r{age}-{number}", at.timestamp(), model, logged, model.predict_rows(logged))
    log.close()
    return list(rows)


def test_log_is_written_shown_labelled_erased_and_purged(
    command: Command, store: Path, model: Model, tmp_path: Path
) -> None:
    """A log is written by a service, then shown, labelled, erased and purged; each command reports its result."""
    rows = write_log(store, model)

    def run(*words: object, code: int = 0) -> dict[str, object]:
        result = command(*words, "--json")
        assert result.code == code, result.err
        return result.json

    output = run("log", "show", MODEL, "--tail", "3")
    assert (output["rows"], output["waiting"], len(output["days"])) == (40, 40, 2)
    policies = {field["name"]: field["policy"] for field in output["fields"]}
    assert [policies.get(n) for n in ("size", "customer", "sunny", "doors")] == ["bucket", "hash", "keep", None]
    number = int(output["tail"][-1]["request_id"].removeprefix("r0-"))
    assert output["tail"][-1]["prediction"] == model.predict_rows([rows[number]]).predictions[0]
    assert run("log", "compact", MODEL) == {
        "model": MODEL, "segments": 1, "parts_before": 2, "parts": 2,
    }  # fmt: skip
    assert run("log", "show", MODEL)["waiting"] == 0
    assert b"customer-3" not in read_all_bytes(store / "predictions")

    file = tmp_path / "counted.csv"
    file.write_text("customer,value\ncustomer-3,41\ncustomer-4,17\ncustomer-99,3\n")
    added = run("labels", "add", MODEL, str(file), "--by", "customer")
    assert {name: added[name] for name in ("rows", "added", "known", "replaced", "waiting")} == {
        "rows": 3, "added": 3, "known": 0, "replaced": 0, "waiting": 1,
    }  # fmt: skip
    assert run("labels", "add", MODEL, str(file), "--by", "customer")["known"] == 3
    file.write_text("customer,value\ncustomer-3,42\n")
    assert "contradict" in run("labels", "add", MODEL, str(file), "--by", "customer", code=2)["what"]

    erased = run("log", "erase", MODEL, "--key", "customer=customer-3")
    assert (erased["predictions"], erased["labels"], erased["parts"], erased["not_searched"]) == (2, 1, 2, 0)
    assert b"r200-3'" not in read_all_bytes(store / "predictions")
    purged = run("log", "purge", MODEL, "--older-than", "90d")
    assert (purged["predictions"], purged["days"], len(purged["hash_keys"])) == (19, 1, 1)
    assert run("log", "show", MODEL)["rows"] == 19


def test_shadow_answers_are_erased_and_purged_with_the_predictions(command: Command, store: Path, model: Model) -> None:
    """Shadow answers of all rollouts are erased; rows of other persons in the same request remain."""
    rows = write_log(store, model)
    folders = [store / "rollouts" / MODEL / rollout / "shadow" for rollout in ("a1", "b2")]
    for folder, age in zip(folders, (200, 0), strict=True):
        shadow, at = ShadowLog(folder, "w0"), dt.datetime.now(dt.UTC) - dt.timedelta(days=age, hours=1)
        for number in range(20):
            shadow.add(f"r{age}-{number}", at.timestamp(), model, 0, model.predict_rows([rows[number], rows[0]]))
        shadow.close()

    def run(*words: str) -> dict[str, object]:
        return dict(command("log", *words, "--json").json)

    assert run("erase", MODEL, "--key", "customer=customer-3")["shadow_answers"] == 2
    answers = pa.concat_tables(read_predictions(folder, columns=["request_id", "row"]) for folder in folders)
    left = set(zip(*(answers[name].to_pylist() for name in ("request_id", "row")), strict=True))
    assert ("r0-3", 0) not in left
    assert {("r0-3", 1), ("r200-3", 1), ("r0-4", 0)} <= left
    assert run("erase", MODEL, "--key", "request_id=r0-5")["shadow_answers"] == 2
    assert b"r0-5'" not in read_all_bytes(store / "rollouts")
    assert run("purge", MODEL, "--older-than", "90d")["shadow_answers"] == 39
    assert b"r200-" not in read_all_bytes(store / "rollouts")
    assert len(read_predictions(folders[1])) == 37


def test_invalid_arguments_are_refused(command: Command, store: Path, model: Model, tmp_path: Path) -> None:
    """The error suggests the nearest name, lists the columns, or shows the expected format."""
    write_log(store, model)
    labels = tmp_path / "labels.csv"
    labels.write_text("request_id,value\nr0-1,many\n")
    for arguments, message in (
        (("log", "show", "house-valu"), "did you mean house-value?"),
        (("log", "purge", MODEL, "--older-than", "soon"), "'soon' is not a duration"),
        (("log", "erase", MODEL, "--key", "customer"), "write --key customer_id=4711"),
        (("log", "erase", MODEL, "--key", "doors=3"), "'doors' is not logged"),
        (("labels", "add", MODEL, str(labels)), "row 1: 'many'"),
        (("labels", "add", MODEL, str(tmp_path / "label.csv")), "did you mean labels.csv?"),
        (("labels", "add", MODEL, str(labels), "--by", "size"), "not logged with 'size'"),
    ):
        result = command(*arguments)
        assert (result.code, message in result.err) == (2, True), result.err


def test_text_output(command: Command, store: Path, model: Model) -> None:
    """The same commands print text without --json."""
    write_log(store, model)
    assert "predictions" in command("log", "show", MODEL, "--tail", "2").out
    assert "segments converted" in command("log", "compact", MODEL).out
