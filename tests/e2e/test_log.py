"""The prediction log and its labels through the commands, with a real release and a service's writer."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.prediction_log import read_all_bytes
from tests.support.store_commands import MODEL, StoreCommands, write_bike_config
from towline.inference.predictor import Model, open_release
from towline.operations import servers
from towline.prediction_log.writer import PredictionLog

PRIVACY = {"join_on": ["customer"], "columns": {"temp_c": "bucket"}, "pii": ["humidity"]}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreCommands]:
    folder = tmp_path_factory.mktemp("log")
    commands = StoreCommands(folder / "store", write_bike_config(folder, privacy=PRIVACY))
    try:
        code, _, err = commands.run()
        assert code == 0, err
        yield commands
    finally:
        servers.stop(commands.settings)


@pytest.fixture(scope="module")
def model(commands: StoreCommands) -> Model:
    return open_release(commands.settings.store / commands.ledger.champion(MODEL).release)


def command(commands: StoreCommands, *arguments: str, code: int = 0) -> Any:
    """Runs a command and returns its JSON and its text."""
    ended, out, err = commands.run(*arguments[1:], "--json", command=arguments[0])
    assert ended == code, err
    return json.loads(out)


def test_log_is_written_shown_labelled_erased_and_purged(commands: StoreCommands, model: Model, tmp_path: Path) -> None:
    """A log is written by a service, then shown, labelled, erased and purged; each command reports its result."""
    rows = json.loads((model.directory / "probe.json").read_bytes())["rows"][:20]
    now = dt.datetime.now(dt.UTC)
    log = PredictionLog(commands.settings.store / "predictions" / MODEL, "w0", convert=False)
    for age in (200, 0):
        for number, row in enumerate(rows):
            logged = [row | {"customer": f"customer-{number}"}]
            at = now - dt.timedelta(days=age, hours=1)
            log.write(f"r{age}-{number}", at.timestamp(), model, logged, model.predict_rows(logged))
    log.close()

    output = command(commands, "log", "show", MODEL, "--tail", "3")
    assert (output["rows"], output["waiting"], len(output["days"])) == (40, 40, 2)
    policies = {field["name"]: field["policy"] for field in output["fields"]}
    assert [policies.get(n) for n in ("temp_c", "customer", "hour", "humidity")] == ["bucket", "hash", "keep", None]
    number = int(output["tail"][-1]["request_id"].removeprefix("r0-"))
    assert output["tail"][-1]["prediction"] == model.predict_rows([rows[number]]).predictions[0]
    assert command(commands, "log", "compact", MODEL) == {
        "model": MODEL, "segments": 1, "parts_before": 2, "parts": 2,
    }  # fmt: skip
    assert command(commands, "log", "show", MODEL)["waiting"] == 0
    assert b"customer-3" not in read_all_bytes(commands.settings.store / "predictions")

    file = tmp_path / "counted.csv"
    file.write_text("customer,rentals\ncustomer-3,41\ncustomer-4,17\ncustomer-99,3\n")
    added = command(commands, "labels", "add", MODEL, str(file), "--by", "customer")
    assert {name: added[name] for name in ("rows", "added", "known", "replaced", "waiting")} == {
        "rows": 3, "added": 3, "known": 0, "replaced": 0, "waiting": 1,
    }  # fmt: skip
    assert command(commands, "labels", "add", MODEL, str(file), "--by", "customer")["known"] == 3
    file.write_text("customer,rentals\ncustomer-3,42\n")
    assert "contradict" in command(commands, "labels", "add", MODEL, str(file), "--by", "customer", code=2)["what"]

    erased = command(commands, "log", "erase", MODEL, "--key", "customer=customer-3")
    assert (erased["predictions"], erased["labels"], erased["parts"], erased["not_searched"]) == (2, 1, 2, 0)
    assert b"r200-3'" not in read_all_bytes(commands.settings.store / "predictions")
    purged = command(commands, "log", "purge", MODEL, "--older-than", "90d")
    assert (purged["predictions"], purged["days"], len(purged["hash_keys"])) == (19, 1, 1)
    assert command(commands, "log", "show", MODEL)["rows"] == 19


def test_invalid_arguments_are_refused(commands: StoreCommands, model: Model, tmp_path: Path) -> None:
    """The error suggests the nearest name, lists the columns, or shows the expected format."""
    log = PredictionLog(commands.settings.store / "predictions" / MODEL, "w1", convert=False)
    row = json.loads((model.directory / "probe.json").read_bytes())["rows"][0]
    log.write("one", dt.datetime.now(dt.UTC).timestamp(), model, [row], model.predict_rows([row]))
    log.close()
    labels = tmp_path / "labels.csv"
    labels.write_text("request_id,rentals\none,many\n")
    for arguments, message in (
        (("log", "show", "bikez"), "did you mean bikes?"),
        (("log", "purge", MODEL, "--older-than", "soon"), "not a duration: 'soon'"),
        (("log", "erase", MODEL, "--key", "customer"), "write --key customer_id=4711"),
        (("log", "erase", MODEL, "--key", "humidity=3"), "'humidity' is not logged"),
        (("labels", "add", MODEL, str(labels)), "row 1: 'many'"),
        (("labels", "add", MODEL, str(tmp_path / "label.csv")), "did you mean labels.csv?"),
        (("labels", "add", MODEL, str(labels), "--by", "temp_c"), "not logged with 'temp_c'"),
    ):
        code, _, err = commands.run(*arguments[1:], command=arguments[0])
        assert (code, message in err) == (2, True), err


def test_text_output(commands: StoreCommands) -> None:
    """The same commands print text without --json."""
    assert "predictions" in commands.run("show", MODEL, "--tail", "2", command="log")[1]
    assert "segments converted" in commands.run("compact", MODEL, command="log")[1]
