"""All commands of the installed program: help, JSON output, exit codes, and no unrelated output."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.support.commands import run_command
from tests.support.paths import REPOSITORY
from tests.support.store_commands import MODEL, StoreCommands, write_bike_config
from towline.operations import servers

GUARD = """
import os, socket
_connect = socket.socket.connect
_resolve = socket.getaddrinfo

def record(line):
    with open(os.environ["ATTEMPTS"], "a") as file:
        print(line, file=file)

def check(host):
    if str(host) not in ("127.0.0.1", "localhost", "::1", "None", ""):
        record(host)

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        check(address[0])
    return _connect(self, address)

def resolve(host, *rest, **more):
    check(host)
    return _resolve(host, *rest, **more)

socket.socket.connect, socket.getaddrinfo = connect, resolve
record("guard loaded")
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreCommands]:
    """A store whose processes all record that they have the guard, and the addresses that they connect to."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    commands = StoreCommands(folder / "store", write_bike_config(folder))
    path = f"{folder / 'guard'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    commands.environment |= {"PYTHONPATH": path, "ATTEMPTS": str(folder / "attempts")}
    try:
        yield commands
    finally:
        servers.stop(commands.settings)


@pytest.fixture(scope="module")
def first_run(commands: StoreCommands) -> tuple[str, str]:
    """The output of the first run on the store: stdout and stderr."""
    code, out, err = commands.run()
    assert code == 0, err
    return out, err


def test_a_run_prints_only_steps_and_a_summary(first_run: tuple[str, str]) -> None:
    """No library prints a warning, log line or traceback; without a terminal, stderr has one plain line per step."""
    out, err = first_run
    assert [re.fullmatch(r"✓ [a-zA-Z -]+ +\d+\.\d s(  .+)?", text) for text in err.splitlines()].count(None) == 0
    steps = [re.split(r"  +", text.removeprefix("✓ "))[0] for text in err.splitlines()]
    assert (len(steps), len(set(steps))) == (17, 17)
    assert "compare with boosting" in steps  # its candidate has its own parameters
    shapes = (
        r"",
        r"(data|checked|split|verdict|version|release|report) +\S.*",
        r" +[·!] .+",
        r"  (candidate|holdout) +.*",
        r"  [→ ] [\w-]+ +[-\d.]+ ± [\d.]+ +[\d.]+ +–",
        r"  \w+ +[-\d.]+ +(–|[-\d.]+ … [-\d.]+)",
        r"  [✓✗?] [\w-]+: .+",
        r"next",
        r"  [A-Za-z ]+  +(from )?towline .+",
    )
    assert [text for text in out.splitlines() if not any(re.fullmatch(shape, text) for shape in shapes)] == []


def test_prefect_log_has_one_line_per_step(first_run: tuple[str, str], commands: StoreCommands) -> None:
    """Each step logs its end once; Prefect's own line for the task is not added."""
    server = servers.find_server(commands.settings, "prefect")
    assert server is not None
    (run,) = [run for run in commands.query_prefect("flow_runs") if run["name"].startswith(MODEL)][-1:]
    query = json.dumps({"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}).encode()
    deadline = time.monotonic() + 300
    lines: list[str] = []
    while not any(text.startswith("update MLflow done") for text in lines) and time.monotonic() < deadline:
        time.sleep(0.2)  # the server stores log lines from a queue
        request = Request(f"{server.url}/api/logs/filter", query, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as response:  # on loopback
            lines = [entry["message"] for entry in json.load(response)]
    step_names = [text.partition(" done in ")[0] for text in lines if " done in " in text]
    assert {"load", "validate", "split", "register", "decide promotion", "update MLflow"} <= set(step_names)
    assert len(step_names) == len(set(step_names))
    assert "Finished in state Completed()" not in lines


def test_only_loopback_addresses_are_used(first_run: tuple[str, str], commands: StoreCommands) -> None:
    """Neither the run nor the servers that it starts connect to a network."""
    attempts = Path(commands.environment["ATTEMPTS"])
    assert set(attempts.read_text().splitlines()) == {"guard loaded"}


def test_each_result_is_one_json_document(
    first_run: tuple[str, str], commands: StoreCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On success and on error, stdout holds one JSON document; errors include their code."""
    for name in ("TOWLINE_STORE", "TOWLINE_PROJECT"):
        monkeypatch.setenv(name, commands.environment[name])

    def check(arguments: list[str], expected: int, result: tuple[int, str, str]) -> None:
        code, out, err = result
        assert code == expected, (arguments, err)
        document = json.loads(out)
        if code:
            assert set(document) == {"error", "code", "what", "where", "remedy", "details"}, arguments
            assert "Traceback" not in err
            assert err.splitlines()[-1].startswith(("error", "  ")), arguments

    # as processes, to which libraries may write as well
    for arguments, expected in (
        (["models"], 0),
        (["run", str(commands.config)], 0),
        (["run", str(commands.config), "--set", "gate.max.mea=1"], 2),
        (["validate", str(commands.config), "--set", "data.drop=[]"], 3),
        (["nonsense"], 2),
    ):
        words = arguments[2:] if arguments[0] == "run" else arguments[1:]
        check(arguments, expected, commands.run(*words, "--json", command=arguments[0]))
    for arguments, expected in (
        (["models", MODEL], 0),
        (["show", MODEL], 0),
        (["show", "1"], 0),
        (["history"], 0),
        (["validate", str(commands.config)], 0),
        (["config", "schema"], 0),
        (["promote", f"{MODEL}@1", "--reason", "it serves already"], 0),
        (["rollback"], 4),
        (["models", "bikez"], 2),
        (["history", "bikez"], 2),
        (["served-at", MODEL, "2020-01-01"], 2),
        (["verify"], 0),
        (["approvals", MODEL], 0),
        (["show", f"{MODEL}@9"], 2),
        (["promote", f"{MODEL}@x", "--reason", "no"], 2),
        (["promote", MODEL], 2),
        (["validate", "nowhere.yaml"], 2),
    ):
        result = run_command(*arguments, "--json")
        check(arguments, expected, (result.code, result.out, result.err))


def test_misspelled_names_get_a_suggestion(first_run: tuple[str, str], commands: StoreCommands) -> None:
    """The error suggests the most similar model, command, option or key."""
    assert "did you mean bikes?" in commands.run("bikez", command="show")[2]
    assert "Did you mean 'models'?" in commands.run(command="modles")[2]
    assert "Did you mean '--json'?" in commands.run("--jsn", command="models")[2]
    assert "did you mean candidates?" in commands.run("--set", "candidats=[linear]")[2]


def test_shipped_configs_are_valid_under_the_json_schema(commands: StoreCommands) -> None:
    """Editors can complete and check a config with the schema; its text form names every key."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(commands.run("schema", "--json", command="config")[1])
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    text = commands.run("schema", command="config")[1]
    for key in ("name", "data.source", "candidates[].search.trials", "gate.champion_margin"):
        assert f"\n{key}: " in f"\n{text}"


def test_commands_on_an_empty_store_say_how_to_start(tmp_path: Path) -> None:
    """Commands that read the store name the first command, and create no file."""
    config = write_bike_config(tmp_path)
    commands = StoreCommands(tmp_path / "none", config, databases=False)
    assert "towline run" in commands.run(command="models")[1]
    assert "towline run" in commands.run(command="history")[1]
    assert commands.run("--json", command="models")[1].strip() == "[]"
    code, _, err = commands.run("bikes", command="show")
    assert code == 2
    assert "towline run" in err
    assert commands.run("--stop", command="ui")[0] == 0
    assert not (tmp_path / "none").exists()


def test_run_outside_a_project_is_refused(tmp_path: Path) -> None:
    """Without flows: exit code 2, and neither a store nor a server is created."""
    commands = StoreCommands(tmp_path / "store", write_bike_config(tmp_path))
    del commands.environment["TOWLINE_PROJECT"]
    code, _, err = commands.run()
    assert code == 2
    assert "there are no flows in this folder" in err
    assert str(tmp_path) in err
    assert not (tmp_path / "store" / "servers").exists()
