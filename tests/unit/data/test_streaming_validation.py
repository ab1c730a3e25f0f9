"""The streaming pass over a large table gives the results of Great Expectations, on tables that both can read."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towline.config import PipelineConfig
from towline.data import row_keys, snapshot
from towline.data.snapshot import SnapshotColumns, snapshot_to_frame
from towline.data.source import sources
from towline.data.validation import streaming, streaming_rules, suite
from towline.data.validation.custom_rules import RowExamples
from towline.data.validation.streaming_rules import RuleResult
from towline.data.workspace import Workspace
from towline.errors import ConfigError, DataValidationError

DATA = Path(__file__).parents[3] / "data"
NOW = dt.datetime.fromisoformat("2030-01-01")
BATCH = 7  # rows, so that small tables have several batches

TABLES = [("bike_hourly", "rentals", "datetime"), ("bank_marketing", "subscribed", "date")]

Suite = list[dict[str, Any]]


def make_suite(*expectations: tuple[str, dict[str, Any]]) -> Suite:
    """The suite of expectations, each given by its name without ``expect_`` and its arguments."""
    return [
        {
            "type": f"expect_{name}",
            "kwargs": kwargs,
            "severity": "critical",
            "meta": {"towline": {"id": number, "detail": "", "where": "test"}},
        }
        for number, (name, kwargs) in enumerate(expectations)
    ]


class Comparison:
    """Evaluates a suite in both ways."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "table.parquet"

    def write(self, table: pa.Table) -> SnapshotColumns:
        pq.write_table(table, self.path, row_group_size=max(3 * BATCH, table.num_rows // 3))
        return SnapshotColumns(self.path)

    def by_great_expectations(self, table: pa.Table, expectations: Suite) -> dict[int, RuleResult]:
        frame = snapshot_to_frame(table)
        return suite._run_great_expectations(frame, suite._build(expectations), expectations, RowExamples(frame))

    def check(self, table: pa.Table, expectations: Suite, *, all_compiled: bool = True) -> dict[int, RuleResult]:
        """Asserts that verdict, count, rows and observed value agree; returns the results of the pass."""
        exact = self.by_great_expectations(table, expectations)
        results = streaming.check_table(self.write(table), expectations)
        assert not all_compiled or len(results) == len(expectations)
        for number, result in results.items():
            other, what = exact[number], f"{expectations[number]['type']} {expectations[number]['kwargs']}"
            assert result.passed == other.passed, what
            assert result.broken == other.broken, what
            assert result.rows == other.rows or result.passed, what
            if other.observed is not None:
                assert result.observed == pytest.approx(other.observed), what
        return results


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "BATCH_ROWS", BATCH)


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    return Comparison(tmp_path)


def nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.none() | values, min_size=1, max_size=40)


WHOLE = st.integers(-4, 4) | st.sampled_from([2**53, 2**53 + 1, -(2**62)])
NUMBERS = st.sampled_from([-1.5, 0.0, 0.5, 1.0, 2.0, 3.0, 1e308, 2.0**53])
TEXTS = st.sampled_from(["a", "b", "A", "ab", "ba", "é", "日本", "a b", "1", "x" * 40])
TIMES = st.datetimes(pd.Timestamp("2024-01-01").to_pydatetime(), pd.Timestamp("2024-01-03").to_pydatetime())
MOSTLY = st.sampled_from([1.0, 0.9, 0.5, 0.0])


def for_any_column(mostly: float) -> Iterator[tuple[str, dict[str, Any]]]:
    column = {"column": "x", "mostly": mostly}
    yield "column_values_to_not_be_null", column
    yield "column_values_to_be_null", column
    yield "column_values_to_be_unique", column
    yield "column_unique_value_count_to_be_between", {"column": "x", "min_value": 2, "max_value": 5}
    yield (
        "column_proportion_of_unique_values_to_be_between",
        {"column": "x", "min_value": 0.5, "max_value": 1, "strict_max": True},
    )
    share = {"column": "x", "min_value": 0.0, "strict_min": True}
    yield "column_proportion_of_non_null_values_to_be_between", share
    yield "table_row_count_to_be_between", {"min_value": 5, "max_value": 20}


def for_order(mostly: float) -> Iterator[tuple[str, dict[str, Any]]]:
    for order in ("increasing", "decreasing"):
        for strictly in (False, True):
            yield f"column_values_to_be_{order}", {"column": "x", "mostly": mostly, "strictly": strictly}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    values=nullable(WHOLE) | st.lists(WHOLE, min_size=1, max_size=40) | nullable(NUMBERS),
    low=st.sampled_from([-1, 0, 0.5, 1, 1.0, 2**53]),
    width=st.sampled_from([0, 1, 2.0]),
    strict=st.tuples(st.booleans(), st.booleans()),
    mostly=MOSTLY,
)
def test_numbers(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[Any],
    low: float,
    width: float,
    strict: tuple[bool, bool],
    mostly: float,
) -> None:
    """Rules about numbers agree, with ties of whole numbers and floats, nulls and large numbers."""
    kind = pa.float64() if None in values or any(isinstance(value, float) for value in values) else pa.int64()
    table = pa.table({"x": pa.array([None if v is None else kind.to_pandas_dtype()(v) for v in values], kind)})
    ends = {"min_value": low, "max_value": low + width, "strict_min": strict[0], "strict_max": strict[1]}
    members = {"column": "x", "value_set": ["1", "-4", 1.0, 2, 0.5, True], "mostly": mostly}
    rules = make_suite(
        *for_any_column(mostly),
        *for_order(mostly),
        ("column_values_to_be_between", {"column": "x", "mostly": mostly, **ends}),
        ("column_values_to_be_between", {"column": "x", "min_value": low}),
        ("column_values_to_be_between", {"column": "x", "max_value": low, "strict_max": strict[1]}),
        ("column_values_to_be_in_set", members),
        ("column_values_to_not_be_in_set", members),
        ("column_min_to_be_between", {"column": "x", **ends}),
        ("column_max_to_be_between", {"column": "x", **ends}),
    )
    if all(value is None for value in values):
        rules = rules[:7]
    Comparison(tmp_path_factory.mktemp("numbers")).check(table, rules)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(values=nullable(TEXTS), mostly=MOSTLY)
def test_texts(tmp_path_factory: pytest.TempPathFactory, values: list[Any], mostly: float) -> None:
    """Rules about texts agree: sets, regular expressions, lengths and uniqueness."""
    column = {"column": "x", "mostly": mostly}
    rules = make_suite(
        *for_any_column(mostly),
        ("column_values_to_be_in_set", {**column, "value_set": ["a", "b", 1.0]}),
        ("column_values_to_not_be_in_set", {**column, "value_set": ["a", "日本"]}),
        ("column_values_to_match_regex", {**column, "regex": "^[a-z]+$"}),
        ("column_values_to_match_regex", {**column, "regex": "a(?!b)"}),
        ("column_values_to_not_match_regex", {**column, "regex": "é|1"}),
        ("column_values_to_match_regex_list", {**column, "regex_list": ["a", "b"]}),
        ("column_values_to_match_regex_list", {**column, "regex_list": ["a", "b"], "match_on": "all"}),
        ("column_values_to_not_match_regex_list", {**column, "regex_list": ["^A", " "]}),
        ("column_value_lengths_to_be_between", {**column, "min_value": 1, "max_value": 2, "strict_max": True}),
        ("column_value_lengths_to_equal", {**column, "value": 2}),
    )
    if all(value is None for value in values):
        rules = rules[:7]
    Comparison(tmp_path_factory.mktemp("texts")).check(pa.table({"x": pa.array(values, pa.large_string())}), rules)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(values=nullable(TIMES), flags=nullable(st.booleans()), mostly=MOSTLY)
def test_times_and_booleans(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], flags: list[Any], mostly: float
) -> None:
    """Rules about times and booleans agree."""
    comparison = Comparison(tmp_path_factory.mktemp("times"))
    noon, column = pd.Timestamp("2024-01-02 12:00").to_pydatetime(), {"column": "x", "mostly": mostly}
    rules = make_suite(
        *for_any_column(mostly),
        *for_order(mostly),
        ("column_values_to_be_between", {**column, "max_value": noon}),
        ("column_values_to_be_in_set", {**column, "value_set": [noon, *[v for v in values if v][:2]]}),
    )
    known = any(value is not None for value in values)
    comparison.check(pa.table({"x": pa.array(values, pa.timestamp("us"))}), rules if known else rules[:7])
    rules = make_suite(
        *for_any_column(mostly),
        ("column_values_to_be_between", {**column, "min_value": 0.5}),
        ("column_values_to_be_in_set", {**column, "value_set": ["True", True]}),
    )
    known = any(value is not None for value in flags)
    comparison.check(pa.table({"x": pa.array(flags, pa.bool_())}), rules if known else rules[:7])


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.none() | st.integers(0, 2), st.none() | NUMBERS, st.none() | TEXTS), min_size=1, max_size=40
    ),
    mostly=MOSTLY,
)
def test_several_columns(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], mostly: float) -> None:
    """Keys of several columns and comparisons of two columns agree, for each way to treat nulls."""
    first, second, third = ([row[place] for row in rows] for place in range(3))
    table = pa.table(
        {
            "a": pa.array([None if value is None else float(value) for value in first], pa.float64()),
            "b": pa.array(second, pa.float64()),
            "c": pa.array(third, pa.large_string()),
        }
    )
    pair = {"column_A": "a", "column_B": "b", "mostly": mostly}
    rules = [
        ("compound_columns_to_be_unique", {"column_list": names, "ignore_row_if": ignored, "mostly": mostly})
        for names in (["a", "b"], ["a", "b", "c"])
        for ignored in ("all_values_are_missing", "any_value_is_missing", "never")
    ]
    for ignored in ("both_values_are_missing", "either_value_is_missing", "neither"):
        rules += [
            ("column_pair_values_to_be_equal", {**pair, "ignore_row_if": ignored}),
            ("column_pair_values_a_to_be_greater_than_b", {**pair, "ignore_row_if": ignored}),
            ("column_pair_values_a_to_be_greater_than_b", {**pair, "or_equal": True, "ignore_row_if": ignored}),
        ]
    Comparison(tmp_path_factory.mktemp("several")).check(table, make_suite(*rules))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bike_hourly", "bank_marketing"])
def test_real_tables(comparison: Comparison, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On real tables all rules that apply to a column agree; other rules are evaluated by Great Expectations."""
    table = pq.read_table(DATA / f"{name}.parquet").replace_schema_metadata(None)
    table = table.slice(0, 6_000).cast(pa.schema([(f.name, _snapshot_type(f.type)) for f in table.schema]))
    rules = list[tuple[str, dict[str, Any]]]()
    for field in table.schema:
        values = table[field.name].drop_null().unique().to_pylist()
        column = {"column": field.name}
        rules += [(each, {**kwargs, **column}) for each, kwargs in for_any_column(0.9) if "column" in kwargs]
        rules.append(("column_values_to_be_in_set", {**column, "value_set": values[: len(values) // 2 + 1]}))
        if pa.types.is_large_string(field.type):
            rules.append(("column_values_to_match_regex", {**column, "regex": "e"}))
        elif not pa.types.is_boolean(field.type) and values:
            rules += [(each, {**kwargs, **column}) for each, kwargs in for_order(0.5)]
            rules.append(("column_values_to_be_between", {**column, "max_value": sorted(values)[len(values) // 2]}))
    rules.append(("compound_columns_to_be_unique", {"column_list": table.column_names[:3]}))
    monkeypatch.setattr(snapshot, "BATCH_ROWS", 1_000)
    comparison.check(table, make_suite(*rules))


def _snapshot_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_integer(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return pa.timestamp("us")
    return kind if pa.types.is_boolean(kind) else pa.large_string()


def test_keys_in_several_parts(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """If few keys fit into memory, the table is read several times, with the same result."""
    rng = np.random.default_rng(0)
    table = pa.table(
        {"x": rng.integers(0, 900, 500), "k": pa.array(rng.choice(list("abcdef"), 500), pa.large_string())}
    )
    monkeypatch.setattr(row_keys, "MAX_KEYS", 60)
    compound = ("compound_columns_to_be_unique", {"column_list": ["x", "k"]})
    comparison.check(table, make_suite(*for_any_column(1.0), compound))


def test_equal_hashes_of_different_rows_are_no_copies(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose hashes collide are compared by their values."""
    monkeypatch.setattr(streaming_rules, "row_keys", lambda columns, names: np.zeros(len(columns[0]), np.uint64))
    table = pa.table({"x": [1, 2, 3, 1, 5], "k": pa.array(["a", "a", "b", "a", "a"], pa.large_string())})
    results = comparison.check(table, make_suite(("compound_columns_to_be_unique", {"column_list": ["x", "k"]})))
    assert results[0].rows == (0, 3)


def test_other_expectations_are_left_to_great_expectations(comparison: Comparison) -> None:
    """Expectations that are not compiled are evaluated by Great Expectations on their columns, with all rows."""
    table = pa.table({"x": np.arange(50), "k": pa.array(["a", "b"] * 25, pa.large_string()), "z": np.zeros(50)})
    rules = make_suite(
        ("column_mean_to_be_between", {"column": "x", "min_value": 24, "max_value": 25}),
        (
            "column_values_to_be_between",
            {"column": "x", "max_value": 10, "row_condition": "k == 'a'", "condition_parser": "pandas"},
        ),
        ("column_values_to_not_be_null", {"column": "x"}),
        ("table_columns_to_match_set", {"column_set": ["x", "k", "z"]}),
        ("column_distinct_values_to_be_in_set", {"column": "k", "value_set": ["a", "b"]}),
    )
    large, examples = comparison.write(table), RowExamples(comparison.write(table))
    assert list(streaming.check_table(large, rules)) == [2]
    evaluated, notes = suite._evaluate(large, examples, rules, 0)
    frame = snapshot_to_frame(table)
    assert evaluated == suite._evaluate(frame, RowExamples(frame), rules, 0)[0]
    assert [(rule.passed, rule.count) for rule in evaluated] == [(True, 0), (False, 19), *[(True, 0)] * 3]
    assert "50 rows" in notes[0]
    broken = make_suite(("column_values_to_be_between", {"column": "k", "min_value": 3}))
    with pytest.raises(ConfigError, match="could not be evaluated"):
        suite._evaluate(large, examples, broken, 0)


@pytest.mark.slow
def test_dictionaries(comparison: Comparison) -> None:
    """A text column that the file stores as a dictionary is read as a dictionary, with the same results."""
    rng = np.random.default_rng(0)
    texts = pa.array(np.where(rng.random(5_000) < 0.1, None, rng.choice(["a", "b", "é"], 5_000)), pa.large_string())
    table = pa.table({"x": texts, "n": np.arange(5_000) // 2})
    batches = list(comparison.write(table).batches(["x"], 5_000))
    assert pa.types.is_dictionary(batches[0].column("x").type)
    rules = make_suite(
        *for_any_column(0.5),
        ("column_values_to_be_in_set", {"column": "x", "value_set": ["a", "b"]}),
        ("column_values_to_match_regex", {"column": "x", "regex": "[a-z]"}),
        ("compound_columns_to_be_unique", {"column_list": ["x", "n"]}),
    )
    comparison.check(table, rules)
    assert (
        comparison.write(table)
        .take(np.array([4_000, 1]))["x"]
        .equals(table.to_pandas()["x"].iloc[[4_000, 1]].reset_index(drop=True))
    )


def test_copies_of_rows(comparison: Comparison) -> None:
    """Copies of rows are found as in memory: the later rows, of any types."""
    table = pa.table(
        {"x": [1.5, None, 1.5, None, 2.5, 1.5], "k": pa.array(["a", None, "a", None, "a", "a"], pa.large_string())}
    )
    assert streaming.find_copies(comparison.write(table)) == (3, [2, 3, 5])
    assert streaming.find_copies(comparison.write(table.slice(0, 2))) == (0, [])


@pytest.mark.parametrize(("name", "target", "time"), TABLES)
def test_a_large_table_has_the_contract_and_the_rules_of_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str, time: str
) -> None:
    """Contract, verdicts, counts and examples are equal for a table in memory and a table that is read by column."""
    monkeypatch.setattr(snapshot, "BATCH_ROWS", 5_000)
    table = pd.read_parquet(DATA / f"{name}.parquet").drop(columns="duration", errors="ignore")
    table = pd.concat([table.head(3_000), table.iloc[[5, 7]]])  # two copies, which are also out of order
    table.to_parquet(tmp_path / "t.parquet", index=False)
    unique = {"unique": [time], "columns": {target: {"nullable": False}}}
    config = PipelineConfig(
        name="sample",
        data={"source": "t.parquet", "target": target, "time": time},
        validation={**unique, "expectations": [{"type": "expect_table_column_count_to_equal", "kwargs": {"value": 3}}]},
    )
    dataset = sources.load_dataset(config.data, tmp_path, tmp_path, None)
    results = []
    for cells in (10**9, 0):
        monkeypatch.setattr(snapshot, "MAX_CELLS", cells)
        work = Workspace(store=tmp_path, key=f"{cells:016}", token="t", dataset=dataset)
        with pytest.raises(DataValidationError) as refusal:
            suite.validate_table(work, config, config.validation, None, NOW)
        validation = suite.Validation.model_validate_json(work.file("validation.json").read_bytes())
        results.append((work.contract(), validation.rules, refusal.value.details))
        notes = [note for note in validation.notes if "on a sample of" in note]
        assert len(notes) == (cells == 0)
    assert results[0] == results[1]
    broken = {rule.rule: rule.count for rule in results[0][1] if not rule.passed}
    assert broken["rows_distinct"] == 2
    assert broken["expect_column_values_to_be_unique"] > 0


@pytest.mark.parametrize("value", [2**53 - 1, 2**53 + 1, 2**53 + 2, -(2**62)])
def test_bounds_beyond_the_whole_numbers_of_a_float(tmp_path: Path, value: int) -> None:
    """A whole number next to 2^53 is compared as Great Expectations compares it."""
    bounds = {"column": "x", "min_value": 2**53, "max_value": 2**53}
    rules = make_suite(
        ("column_values_to_be_between", bounds), ("column_min_to_be_between", bounds),
        ("column_max_to_be_between", bounds),
    )  # fmt: skip
    Comparison(tmp_path).check(pa.table({"x": [value] * 4}), rules)
