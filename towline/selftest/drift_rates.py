"""The drift alarm on many windows of the table: without drift, and with planted drift of known size."""

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from towline.config import PipelineConfig
from towline.data.schema.columns import convert_numbers
from towline.data.schema.contract import Column, Contract
from towline.monitoring.drift.detector import detect
from towline.selftest.rates import MeasuredRate, measure_rate, smallest_detected

WINDOW_ROWS = 500
WINDOW_DAYS = 7
ALARM_TRIALS, PLANTED_TRIALS = 60, 15
SHIFTS = (0.1, 0.25, 0.5, 1.0, 2.0)  # of a number, in standard deviations
SHARES = (0.05, 0.1, 0.25, 0.5)  # of rows whose value is replaced

Plant = Callable[[pd.DataFrame, Column, float, np.random.Generator], pd.DataFrame]


class _Window(NamedTuple):
    rows: pd.DataFrame
    start: dt.datetime | None = None
    end: dt.datetime | None = None


def measure_drift(
    config: PipelineConfig, release: Path, contract: Contract, rows: pd.DataFrame
) -> tuple[list[MeasuredRate], list[str]]:
    """Measures the false-alarm rate and the detection rates of the drift check of the inputs.

    Args:
        config: ``drift`` sets the budget; ``data.time`` makes windows consecutive.
        release: folder with the contract and the drift reference.
        contract: of the rows.
        rows: raw rows that are like those of the reference.

    Returns:
        The rates, and the smallest detected drift as notes.
    """
    rng = np.random.default_rng(config.seed)
    names = [column.name for column in contract.input_columns]

    def raises_alarm(window: _Window) -> bool:
        table = pa.Table.from_pandas(window.rows[names], preserve_index=False)
        return detect(release, [table], config.drift, start=window.start, end=window.end).state == "drift"

    windows = [_draw_window(config, rows, rng) for _ in range(ALARM_TRIALS)]
    size = int(np.median([len(window.rows) for window in windows]))
    if size < config.drift.min_rows:
        return [], [f"drift: windows have {size:,} rows, and drift.min_rows is {config.drift.min_rows:,}"]
    budget = min(0.5, config.drift.false_alarms_per_year / 365)
    expected = f"{budget:.1%} ({config.drift.false_alarms_per_year:g} a year)"
    rates = [measure_rate("drift", "no drift", "raises an alarm", list(map(raises_alarm, windows)), expected=expected)]
    notes = []
    for label, size_text, columns, effects, plant in _list_planted_drifts(config, contract, rows):
        detected = []
        for effect in effects if columns else ():
            outcomes = []
            for window in windows[:PLANTED_TRIALS]:
                column = columns[int(rng.integers(len(columns)))]
                outcomes.append(raises_alarm(window._replace(rows=plant(window.rows, column, effect, rng))))
            case = f"{label} {size_text.format(effect)}"
            detected.append(measure_rate("drift", case, "raises an alarm", outcomes, effect=effect))
        rates += detected
        smallest = smallest_detected(detected)
        if detected:
            finding = f"detected {size_text.format(smallest)} and more" if smallest else "no simulated size is detected"
            notes.append(f"drift: {label}: {finding}, in windows of {size:,} rows")
    return rates, notes


def _draw_window(config: PipelineConfig, rows: pd.DataFrame, rng: np.random.Generator) -> _Window:
    """A week of consecutive rows if the table has times and enough of them; else rows at random."""
    if config.by_time:
        times = rows[config.data.time]
        span = dt.timedelta(days=WINDOW_DAYS)
        first, last = times.min(), times.max() - span
        if last > first:
            start = first + (last - first) * float(rng.random())
            inside = rows[((times >= start) & (times < start + span)).to_numpy()]
            if len(inside) >= config.drift.min_rows:
                utc = start.to_pydatetime().replace(tzinfo=dt.UTC)
                return _Window(inside.reset_index(drop=True), utc, utc + span)
    size = min(WINDOW_ROWS, max(1, len(rows) // 2))
    return _Window(rows.iloc[rng.permutation(len(rows))[:size]].reset_index(drop=True))


def _list_planted_drifts(
    config: PipelineConfig, contract: Contract, rows: pd.DataFrame
) -> Iterator[tuple[str, str, list[Column], tuple[float, ...], Plant]]:
    """Each kind of planted drift: its name, the text of its size, the columns, the sizes, and the function."""
    columns = [
        column
        for column in contract.input_columns
        if column.role == "feature" and column.name not in config.drift.ignore and not column.pii
        if rows[column.name].notna().any()
    ]
    numeric = [column for column in columns if column.kind == "numeric"]
    categories = [column for column in columns if column.kind == "category" and column.categories]
    spread = {column.name: float(np.nanstd(convert_numbers(rows[column.name], column.format))) for column in numeric}
    rarest = {column.name: rows[column.name].value_counts().index[-1] for column in categories}

    def shift(window: pd.DataFrame, column: Column, effect: float, _rng: np.random.Generator) -> pd.DataFrame:
        numbers = convert_numbers(window[column.name], column.format)
        return window.assign(**{column.name: numbers + effect * spread[column.name]})

    def replace(window: pd.DataFrame, column: Column, effect: float, rng: np.random.Generator) -> pd.DataFrame:
        chosen = rng.random(len(window)) < effect
        return window.assign(**{column.name: window[column.name].astype(object).mask(chosen, rarest[column.name])})

    yield "a number is shifted", "by {:g} standard deviations", numeric, SHIFTS, shift
    yield "a category gets its rarest level", "in {:.0%} of rows", categories, SHARES, replace
    yield "a column is null", "in {:.0%} of rows", columns, SHARES, _remove_values


def _remove_values(rows: pd.DataFrame, column: Column, effect: float, rng: np.random.Generator) -> pd.DataFrame:
    return rows.assign(**{column.name: rows[column.name].where(rng.random(len(rows)) >= effect)})
