"""The column with the time at which a row was observed."""

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd
import pytest

from towline.data.schema.detection.time_column import suggest_time_column
from towline.data.schema.values import parse_time

DAYS = pd.date_range("2024-01-03", periods=400, freq="36h")


def table(**columns: Any) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame({"price": random.normal(size=len(DAYS)), **columns})


@pytest.mark.parametrize(
    ("name", "values", "date_format"),
    [
        ("x", DAYS, None),
        ("x", DAYS.strftime("%Y-%m-%d"), None),
        ("x", DAYS.strftime("%Y-%m-%dT%H:%M:%SZ"), None),
        ("sold", DAYS.strftime("%m/%d/%Y"), "%m/%d/%Y"),
        ("sold", DAYS.strftime("%d.%m.%Y %H:%M"), "%d.%m.%Y %H:%M"),
        ("Opened", DAYS.strftime("%d.%m.%Y %H:%M"), "%d.%m.%Y %H:%M"),
        ("month", DAYS.strftime("%b-%Y"), "%b-%Y"),
        ("week", DAYS.strftime("%G-W%V"), "week"),
        ("day", [f"{day.year}-{day.month}-{day.day}" for day in DAYS], "%Y-%m-%d"),
        ("day", DAYS.strftime("%d/%m/%Y, %H:%M:%S"), "%d/%m/%Y, %H:%M:%S"),
        ("day", DAYS.strftime("%b %d %Y %I:%M%p"), "%b %d %Y %I:%M%p"),
        ("day", DAYS.strftime("%Y%m%d").astype(int), "%Y%m%d"),
        ("period", DAYS.strftime("%Y%m").astype(int), "%Y%m"),
        ("ymd", DAYS.strftime("%Y%m%d").astype(int), "%Y%m%d"),
        ("monat", np.repeat([year * 100 + month for year in range(2015, 2019) for month in range(1, 11)], 10), "%Y%m"),
        ("created_at", (DAYS - pd.Timestamp("1970")) // pd.Timedelta("1s"), "epoch_s"),
        ("epoch", (DAYS - pd.Timestamp("1970")) // pd.Timedelta("1s"), "epoch_s"),
        ("timestamp", (DAYS - pd.Timestamp("1970")) / pd.Timedelta("1s") + 0.123456, "epoch_s"),
        ("ts", ((DAYS - pd.Timestamp("1970")) / pd.Timedelta("1s") + 0.25).astype(str), "epoch_s"),
        ("ts", (DAYS - pd.Timestamp("1970")) // pd.Timedelta("1ms"), "epoch_ms"),
        ("ts", (DAYS - pd.Timestamp("1970")) // pd.Timedelta("1us"), "epoch_us"),
        ("ts", (DAYS - pd.Timestamp("1970")) // pd.Timedelta("1ns"), "epoch_ns"),
        ("ts", DAYS.strftime("%Y%m%d%H%M%S").astype(int), "%Y%m%d%H%M%S"),
        ("Order Date", 45292 + np.arange(400) / 4, "excel"),
        ("date", np.repeat(2000 + np.arange(40) / 12, 10), "decimal_year"),
        ("year", np.tile(np.arange(1990, 2000), 40), "%Y"),
        ("yearSold", np.tile(np.arange(1990, 2000), 40), "%Y"),
        ("survey_yr", np.tile(np.arange(85, 95), 40), "%y"),
    ],
)
def test_times_are_recognized_and_can_be_read(name: str, values: Any, date_format: str | None) -> None:
    """The suggested format can read the values."""
    suggested = suggest_time_column(table(**{name: values, "age": 30}), "price")
    assert suggested is not None
    assert (suggested.name, suggested.date_format) == (name, date_format)
    assert suggested.evidence
    assert parse_time(pd.Series(values).iloc[0], suggested.date_format) is not None


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("birth_year", np.tile(np.arange(1950, 1990), 10)),
        ("model_year", np.tile(np.arange(1990, 2000), 40)),
        ("YearBuilt", np.tile(np.arange(1950, 1990), 10)),
        ("date_of_birth", DAYS),
        ("Geburtsdatum", DAYS),
        ("date de naissance", DAYS),
        ("opened", DAYS.strftime("%d.%m.%Y")),
        ("years_employed", np.tile(np.arange(40), 10)),
        ("year", 2013),
        ("month", np.tile(np.arange(1, 11), 40)),
        ("time", np.random.default_rng(0).integers(2_000, 9_000, 400)),
        ("revenue", np.random.default_rng(0).integers(1_600_000_000, 1_700_000_000, 400)),
        ("revenue", np.random.default_rng(0).uniform(1_600_000_000, 1_700_000_000, 400)),
        ("time", np.random.default_rng(0).uniform(2_000, 9_000, 400)),
        ("day", 2026_01_01.5 + np.arange(20).repeat(20)),
        ("code", np.random.default_rng(0).integers(1_950, 2_050, 400)),
        ("order_no", np.arange(400_000_000, 400_400_000, 1_000)),
        ("price_update", 45292 + np.arange(400)),
        ("tax_revenue", np.random.default_rng(0).integers(600_000_000, 2_000_000_000, 400)),
        ("order", np.arange(400_000_000, 400_400_000, 1_000)),
        ("article", np.random.default_rng(0).integers(2000_01_01, 2020_12_31, 400)),
        ("lot", np.random.default_rng(0).integers(2010_01, 2019_12, 400)),
        ("geburt", np.tile([2010_01, 2010_02, 2010_03], 134)[:400]),
    ],
)
def test_other_numbers_and_dates_are_no_time_of_the_row(name: str, values: Any) -> None:
    assert suggest_time_column(table(**{name: values}), "price") is None


def test_the_finest_time_is_taken() -> None:
    frame = table(year=DAYS.year, date=DAYS.strftime("%Y-%m-%d"), decimal=2000 + np.arange(400) / 12)
    suggested = suggest_time_column(frame)
    assert suggested is not None
    assert suggested.name == "date"


def test_a_time_that_many_rows_lack_is_not_taken() -> None:
    dates = pd.Series(DAYS)
    dates[::10] = None
    assert suggest_time_column(table(returned=dates)) is None


def test_day_and_month_that_may_be_exchanged_are_decided_by_the_order_of_the_rows() -> None:
    days = pd.to_datetime([f"2026-{month:02}-{day:02}" for month in range(1, 13) for day in (1, 5, 12)])
    suggested = suggest_time_column(pd.DataFrame({"x": days.strftime("%d/%m/%Y")}))
    assert suggested is not None
    assert suggested.date_format == "%d/%m/%Y"
    assert "%m/%d/%Y" in suggested.evidence


def test_the_target_is_not_taken() -> None:
    assert suggest_time_column(pd.DataFrame({"date": DAYS}), "date") is None


def test_a_column_with_later_times_than_now_is_not_taken() -> None:
    future = ((DAYS - pd.Timestamp("1970")) // pd.Timedelta("1s")) + 10**9
    now = dt.datetime(2026, 1, 1)  # noqa: DTZ001 - naive UTC
    assert suggest_time_column(table(created=future), "price") is not None
    assert suggest_time_column(table(created=future), "price", now) is None


def test_the_moment_is_the_time_and_not_its_day() -> None:
    """Whatever the two are called; a moment of another day, such as that of a payment, is no closer time."""
    day, moment = DAYS.floor("D"), DAYS + pd.Timedelta("17min")
    for name in ("Dates", "x"):
        assert suggest_time_column(table(date=day, **{name: moment})).name == name
    assert suggest_time_column(table(date=day, paid=moment + pd.Timedelta("2D"))).name == "date"
    assert suggest_time_column(table(date=day, x=day)).name == "date"
