"""Errors of a config: key, line and remedy."""

import gzip
import shlex
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from towline.config import (
    ConfigOrPath,
    HistoryConfig,
    PipelineConfig,
    PrivacyConfig,
    Settings,
    build_config,
    read_config,
)
from towline.errors import ConfigError

GOOD = """\
name: demo
data:
  source: table.csv
  target: y
gate:
  max: {mae: 3}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["Houses 2026.csv", "houses.tsv.gz", "houses.parquet", "gone.csv"])
def test_a_table_in_place_of_a_config_names_the_command_that_writes_one(name: str, tmp_path: Path) -> None:
    """The remedy is a command line that holds the path and the last column, quoted for a shell."""
    header = "sold on;rooms;price: total\n" if name.endswith("csv") else "sold on\trooms\tprice: total\n"
    if name != "gone.csv":
        (tmp_path / name).write_bytes(gzip.compress(header.encode()) if name.endswith("gz") else header.encode())
    with pytest.raises(ConfigError, match="this is a table") as caught:
        read_config(tmp_path / name)
    target = "price: total" if name[0] == "H" or name.endswith("gz") else "COLUMN"
    assert shlex.split(caught.value.remedy) == ["towline", "init", str(tmp_path / name), "--target", target]


@pytest.mark.parametrize("config", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(config: Path) -> None:
    """Each config of the repository is read without an error."""
    assert read_config(config).name


def test_unknown_key_names_line_and_nearest_key(tmp_path: Path) -> None:
    """A misspelt key is refused with its line and the most similar key."""
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, GOOD.replace("target: y", "target: y\n  widnow: 90d")))
    assert "did you mean window?" in str(caught.value)
    assert caught.value.where.endswith("demo.yaml:5:3")


def test_misspelt_key_deep_in_a_list(tmp_path: Path) -> None:
    """Keys of list items are named with their place."""
    text = GOOD + "candidates:\n  - estimator: forest\n    parms: {n_estimators: 3}\n"
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, text))
    assert "candidates.0.parms" in str(caught.value)
    assert "did you mean params?" in str(caught.value)
    assert caught.value.where.endswith(":9:5")


def test_bad_yaml_names_the_line(tmp_path: Path) -> None:
    """A YAML syntax error has the line."""
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, "name: demo\ndata: {source: [1, 2\ntarget: y\n"))
    assert "demo.yaml:" in caught.value.where


def test_repeated_keys_are_rejected(tmp_path: Path) -> None:
    """YAML would take the last of two equal keys without an error."""
    with pytest.raises(ConfigError, match="is repeated"):
        read_config(write(tmp_path, GOOD + "name: other\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
            "aliases expanded",
        ),
        ("description: " + "[" * 5000 + "]" * 5000 + "\n", "nested more than"),
        ("".join(" " * n + f"k{n}:\n" for n in range(500)), "nested more than"),
        ("description: &loop [*loop]\n", "inside its own anchor"),
        ("description: " + "x" * 2**21 + "\n", "longer than"),
        ("seed: " + "9" * 5000 + "\n", "bad YAML"),
        ("description: 2026-02-30\n", "bad YAML"),
        ("description: *nobody\n", "undefined alias"),
    ],
    ids=[
        "alias bomb",
        "flow nesting",
        "block nesting",
        "loop",
        "size",
        "long integer",
        "no such date",
        "no such anchor",
    ],
)
def test_hostile_yaml_is_rejected(tmp_path: Path, text: str, message: str) -> None:
    """Aliases, nesting or values that would exhaust or crash the parser are an error, in a file and in --set."""
    with pytest.raises(ConfigError, match=message):
        read_config(write(tmp_path, GOOD + text))
    value = text.partition(": ")[2] if text.startswith(("description", "seed")) else "{" + "a: [" * 90 + "]" * 90 + "}"
    with pytest.raises(ConfigError, match="not a YAML value"):
        read_config(write(tmp_path, GOOD), [f"description={value}"])


def test_aliases_within_the_limits_still_work(tmp_path: Path) -> None:
    """An anchor that is used a few times is read as its value."""
    text = (
        "candidates: [{estimator: linear, name: a, params: &p {alpha: 1}}, {estimator: linear, name: b, params: *p}]\n"
    )
    assert [candidate.params for candidate in read_config(write(tmp_path, GOOD + text)).candidates] == [
        {"alpha": 1}
    ] * 2


@pytest.mark.parametrize(
    ("text", "override", "expected"),
    [
        ("validation: {columns: {a: &r {max: 5}, b: *r}}", "validation.columns.b.min=1", [(None, 5), (1, 5)]),
        ("validation:\n  columns:", "validation.columns.a.min=1", [(1, None)]),
    ],
)
def test_an_override_changes_one_key_only(tmp_path: Path, text: str, override: str, expected: list[object]) -> None:
    """The anchor of an alias is unchanged; a section without keys gets its first key."""
    rules = read_config(write(tmp_path, f"{GOOD}{text}\n"), [override]).validation.columns.values()
    assert [(rule.min, rule.max) for rule in rules] == expected


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("slo: {metric: .nan}", "slo.metric"),
        ("drift: {min_effect: .inf}", "drift.min_effect"),
        ("candidates: [linear, {estimator: forest, params: {max_depth: -.inf}}]", "candidates.1.params.max_depth"),
        ("behaviour: {expect: [{row: {hour: .nan}, equals: 1}]}", "behaviour.expect.0.row.hour"),
        ("validation: {columns: {hour: {min: .nan}}}", "validation.columns.hour.min"),
    ],
)
def test_numbers_that_are_not_finite_are_rejected(tmp_path: Path, text: str, key: str) -> None:
    """A config is sent as JSON, which has no such numbers; the error names the key and its line."""
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, f"{GOOD}{text}\n"))
    assert caught.value.details[0].startswith(f"{key}: must be a finite number (line 7,")


@pytest.mark.parametrize("key", ["approval.expires", "data.window", "quality.delay", "rollout.until", "budget"])
@pytest.mark.parametrize("length", ["4000000d", "1000000000d", "99999999999999999999w", "-P1D"])
def test_durations_without_a_date_are_rejected(key: str, length: str) -> None:
    """The current time plus or minus a duration of a config must be a date."""
    section, _, name = key.partition(".")
    data = {"source": "t", "target": "y", "time": "t"}
    change = {section: {**(data if section == "data" else {}), name: length} if name else length}
    with pytest.raises(ConfigError) as caught:
        build_config({"name": "demo", "data": data, **change}, "demo.yaml")
    assert key in caught.value.details[0]


@pytest.mark.parametrize("window", ["0d", "30s", "36000d"])
def test_a_window_without_predictions_is_rejected(window: str) -> None:
    """A window of length zero would never have a label."""
    with pytest.raises(ConfigError, match=r"quality\.window: the window must be at least a minute"):
        build_config({"name": "demo", "data": {"source": "t", "target": "y"}, "quality": {"window": window}}, "x")


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600), ("90s", 90), ("2h", 7200), ("1d", 86_400), ("5 minutes", 300), ("null", None)]
)
def test_a_budget_is_a_duration_or_null(tmp_path: Path, text: str, seconds: int | None) -> None:
    """A budget is read in any unit, and is equal after it was written as JSON."""
    config = read_config(write(tmp_path, GOOD + f"budget: {text}\n"))
    assert config.budget == (None if seconds is None else timedelta(seconds=seconds))
    assert PipelineConfig.model_validate(config.model_dump(mode="json")).budget == config.budget


@pytest.mark.parametrize("text", ["fast", "10", "0m", "-5m", "true", "all", "[10m]", "''"])
def test_a_budget_that_is_no_duration_is_rejected(tmp_path: Path, text: str) -> None:
    """The error gives the line and an example."""
    with pytest.raises(ConfigError, match="must be a duration such as 10m or 2h, or null for no limit") as caught:
        read_config(write(tmp_path, GOOD + f"budget: {text}\n"))
    assert "budget" in str(caught.value)
    assert caught.value.where.endswith("demo.yaml:7:1")


def test_missing_config_suggests_a_similar_name(tmp_path: Path) -> None:
    """A wrong path suggests a file with a similar name."""
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "demmo.yaml")
    assert "demo.yaml?" in caught.value.remedy


@pytest.mark.parametrize(
    ("override", "reached"),
    [("gate.max.mae=50", 50.0), ("gate.max.mae=7.5", 7.5)],
)
def test_overrides_of_nested_keys(tmp_path: Path, override: str, reached: float) -> None:
    """--set changes one key and no other."""
    config = read_config(write(tmp_path, GOOD), [override])
    assert config.gate.max["mae"] == reached
    assert config.data.target == "y"


@pytest.mark.parametrize("override", ["gate.max.mae", "=3", "name.x=3", "gate.max.mae=[1"])
def test_invalid_overrides_are_rejected(tmp_path: Path, override: str) -> None:
    """An override of a key that does not exist is an error."""
    with pytest.raises(ConfigError):
        read_config(write(tmp_path, GOOD), [override])


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"source": "t", "target": "y", "time": "y"}},
        {"data": {"source": "t", "target": "y", "drop": ["y"]}},
        {"split": {"by": "time"}},
        {"split": {"holdout": "28d"}},
        {"split": {"holdout": 0.95}},
        {"split": {"holdout": "0d"}},
        {"candidates": ["forest", "forest"]},
        {"candidates": ["baseline"]},
        {"candidates": []},
        {"name": "Has Spaces"},
        {"validation": {"columns": {"a": {"min": 3, "max": 1}}}},
        {"gate": {"max": {"mea": 1}}},
        {"gate": {"max": {"mae": float("inf")}}},
        {"gate": {"champion_margin": float("nan")}},
        {"seed": -1},
        {"evaluation": {"threshold": "roc_auc"}},
        {"privacy": {"pii": ["phone"], "columns": {"phone": "keep"}}},
        {"privacy": {"join_on": ["order"], "columns": {"order": "drop"}}},
        {"privacy": {"join_on": ["order"], "columns": {"order": "bucket"}}},
        {"privacy": {"columns": {"age": "blur"}}},
        {"privacy": {"pii": ["y"]}},
    ],
)
def test_contradictions_are_rejected(change: dict[str, object]) -> None:
    """Settings that contradict each other are found before any data is read."""
    raw = {"name": "demo", "data": {"source": "t", "target": "y"}, **change}
    with pytest.raises(ConfigError):
        build_config(raw, "demo.yaml")


@pytest.mark.parametrize(
    ("change", "line", "remedy"),
    [
        ({"task": "regresion"}, "task: must be one of regression, binary, multiclass, not 'regresion'", "regression?"),
        ({"seed": "abc"}, "seed: must be a whole number, not 'abc'", "config schema"),
        ({"cross_validation": {"folds": 1}}, "cross_validation.folds: must be at least 2, not 1", "config schema"),
        ({"cross_validation": 5}, "cross_validation: must be a mapping of keys to values, not 5", "config schema"),
        ({"gate": {"max": {"mea": 1}}}, "gate.max.mea: unknown key", "did you mean mae?"),
        ({"data": {"target": "y"}}, "data.source: is missing", "config schema"),
        ({"data": {"source": {"url": "x"}, "target": "y"}}, "data.source.query: is missing", "config schema"),
        (
            {"data": {"source": 5, "target": "y"}},
            "data.source: must be a path, a list of paths, or a mapping with url and query", "config schema",
        ),
        ({"data": {"source": "t", "target": "y", "drop": "a"}}, "data.drop: must be a list, not 'a'", "write [a]"),
        ({"quality": {"delay": "soon"}}, "quality.delay: must be a duration such as 28d or 36h, not 'soon'", "schema"),
        ({"split": {"holdout": "x"}}, "split.holdout: must be a share below 0.9, or a duration such as 28d", "schema"),
        ({"candidates": [{"params": {}}]}, "candidates.0.estimator: is missing", "config schema"),
        ({"package": {"image": "maybe"}}, "package.image: must be true or false, not 'maybe'", "config schema"),
        ({"retrain": {"triggers": ["drft"]}}, "retrain.triggers.0: must be one of gain, drift, quality, not 'drft'",
            "drift?"),
    ],
)  # fmt: skip
def test_messages_for_invalid_values(change: dict[str, object], line: str, remedy: str) -> None:
    """One line has the key, the allowed and the actual value; the remedy is the most similar choice."""
    with pytest.raises(ConfigError) as caught:
        build_config({"name": "demo", "data": {"source": "t", "target": "y"}, **change}, "demo.yaml")
    assert caught.value.details == (line,)
    assert remedy in caught.value.remedy


def test_a_wrong_value_that_may_be_secret_is_not_repeated() -> None:
    """A URL with a password is not printed if it is the value of a wrong key."""
    raw = {"name": "demo", "data": {"source": {"url": ["postgresql://ann:hush@db/x"], "query": "s"}, "target": "y"}}
    with pytest.raises(ConfigError) as caught:
        build_config(raw, "demo.yaml")
    assert "data.source.url: must be text" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_formats_of_windows_and_holdouts() -> None:
    """One window or several, a share or a duration; a config that was written to YAML is read as equal."""
    data = {"source": "t", "target": "y", "time": "t", "window": ["30d", "36h", "all"], "half_life": "60d"}
    several = build_config({"name": "demo", "data": data, "split": {"holdout": "4w"}}, "")
    month, hours = timedelta(days=30), timedelta(hours=36)
    assert several.data.window == (month, hours, None)
    assert several.data.histories == tuple(
        HistoryConfig(window=window, half_life=timedelta(days=60)) for window in (month, hours, None)
    )
    assert several.data.reach is None
    written = several.model_dump(mode="json")
    assert written["data"]["window"] == ["30d", "36h", "all"]
    assert written["split"]["holdout"] == "28d"
    assert build_config(written, "") == several
    single = build_config({"name": "demo", "data": {**data, "window": "30d", "half_life": None}}, "")
    assert (single.data.reach, single.data.histories) == (month, (HistoryConfig(),))
    trended = build_config({"name": "demo", "data": {**data, "window": "30d", "detrend": ["7d", "all"]}}, "").data
    assert [option.detrend for option in trended.histories] == [timedelta(days=7), None]
    with pytest.raises(ConfigError, match="must be positive"):
        build_config({"name": "demo", "data": {**data, "detrend": "0d"}}, "")


def test_logging_policies() -> None:
    """Personal data is dropped, a key is hashed even if it is personal data; privacy.columns takes precedence."""
    raw = {
        "pii": ["phone", "customer", "zip"],
        "join_on": ["customer", "order"],
        "columns": {"zip": "bucket", "order": "keep"},
    }
    privacy = build_config({"name": "demo", "data": {"source": "t", "target": "y"}, "privacy": raw}, "").privacy
    policies = {name: privacy.of(name) for name in ("phone", "customer", "zip", "order", "age")}
    assert policies == {"phone": "drop", "customer": "hash", "zip": "bucket", "order": "keep", "age": "keep"}


def test_configs_have_no_field_called_keys() -> None:
    """Prefect calls dict() on a config, which a field with the name keys would break."""
    pending: list[object] = [read_config(path) for path in Path("configs").glob("*.yaml")]
    for part in pending:
        if isinstance(part, BaseModel):
            pending += dict(part).values()
    assert any(isinstance(part, PrivacyConfig) for part in pending)


def test_digest_ignores_order_and_defaults() -> None:
    """The run key does not change if a default is written or keys are reordered."""
    first = build_config({"name": "a", "data": {"source": "s", "target": "y"}}, "")
    second = build_config({"data": {"target": "y", "source": "s"}, "seed": 42, "name": "a"}, "")
    assert first.digest == second.digest
    assert first.digest != build_config({"name": "a", "seed": 1, "data": {"source": "s", "target": "y"}}, "").digest


def test_a_config_is_equal_after_yaml() -> None:
    """The config that is copied into a release is equal when read."""
    config = read_config(Path("configs/bank_subscription.yaml"))
    again = PipelineConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config


def test_unknown_setting_is_rejected() -> None:
    """A misspelt TOWLINE_ variable is an error."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_environment({"TOWLINE_STOER": "x"})
    assert "TOWLINE_STORE" in caught.value.remedy


def test_project_is_found_from_a_folder_below(tmp_path: Path) -> None:
    """Commands work from any folder of the project."""
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "training.py").touch()
    below = tmp_path / "notebooks" / "deep"
    below.mkdir(parents=True)
    assert Settings.from_environment({}, cwd=below).project == tmp_path


def test_a_setting_without_a_value_is_not_set(tmp_path: Path) -> None:
    """docker compose sets variables without a value; the store must not become the project folder."""
    empty = {f"TOWLINE_{name}": "" for name in ("PROJECT", "STORE", "LEDGER_URL", "LEDGER_KEY", "SEARCH_URL")}
    assert Settings.from_environment(empty, cwd=tmp_path) == Settings.from_environment({}, cwd=tmp_path)


def test_an_sqlite_file_is_found_from_a_folder_below(tmp_path: Path) -> None:
    """The relative path of a ledger starts at the project, so each working folder has the same ledger."""
    urls = {"TOWLINE_PROJECT": str(tmp_path), "TOWLINE_LEDGER_URL": "sqlite:///ledgers/a.db"}
    urls |= {"TOWLINE_TRACKING_URI": "sqlite+pysqlite:///m.db?timeout=9", "TOWLINE_SEARCH_URL": "sqlite:////var/s.db"}
    settings = Settings.from_environment(urls, cwd=Path("/"))
    assert settings.ledger_url == f"sqlite:///{tmp_path}/ledgers/a.db"
    assert settings.tracking_uri == f"sqlite+pysqlite:///{tmp_path}/m.db?timeout=9"
    assert settings.search_url == "sqlite:////var/s.db"
    for url in ("sqlite://", "sqlite:///:memory:", "postgresql://ann@db/x", "http://mlflow:5000"):
        assert Settings.from_environment({"TOWLINE_LEDGER_URL": url}, cwd=tmp_path).ledger_url == url


def test_a_store_that_no_url_can_name_is_refused(tmp_path: Path) -> None:
    """Text after a question mark would not be part of the path: several stores would share one file."""
    with pytest.raises(ConfigError, match="question mark"):
        Settings.from_environment({}, cwd=tmp_path / "what?")


def test_a_flow_takes_a_config_or_the_path_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The path in a deployment is read when the flow runs; an invalid one is reported."""
    adapter = TypeAdapter[PipelineConfig](ConfigOrPath)
    monkeypatch.setenv("TOWLINE_PROJECT", str(tmp_path))
    (tmp_path / "a.yaml").write_text("name: bikes\ndata: {source: b.csv, target: y}\n")
    read = adapter.validate_python("a.yaml")
    assert read == adapter.validate_python(read) == adapter.validate_python(read.model_dump(mode="json"))
    with pytest.raises(ConfigError, match="no such config"):
        adapter.validate_python("b.yaml")


def test_the_error_for_an_old_key_has_the_new_name() -> None:
    """The error for a key of an earlier version has the key that replaces it."""
    with pytest.raises(ConfigError) as error:
        build_config({"name": "demo", "data": {"source": "t.csv", "target": "y", "time": "t", "level": "7d"}}, "")
    assert error.value.details == ("data.level: is now data.detrend",)
    assert error.value.remedy == "rename it to data.detrend"
