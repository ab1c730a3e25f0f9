from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from towline.config import PipelineConfig
from towline.data.schema.inference import infer_contract
from towline.data.validation.leakage import Leak, find_leaks

DATA = Path(__file__).parents[3] / "data"


def leaks(table: pd.DataFrame, target: str, time: str | None = None, seed: int = 0) -> tuple[Leak, ...]:
    config = PipelineConfig(name="t", data={"source": "-", "target": target, "time": time})
    return find_leaks(table, infer_contract(table, config), seed)


@pytest.fixture(scope="module")
def bike() -> pd.DataFrame:
    return pd.read_parquet(DATA / "bike_hourly.parquet")


@pytest.fixture(scope="module")
def bank() -> pd.DataFrame:
    return pd.read_parquet(DATA / "bank_marketing.parquet")


@pytest.fixture(scope="module")
def clean(bike: pd.DataFrame) -> pd.DataFrame:
    return bike.drop(columns=["casual", "registered"])


def test_columns_of_a_sum_are_found(bike: pd.DataFrame) -> None:
    """The columns casual and registered of the bike table add up to its target."""
    (leak,) = leaks(bike, "rentals", "datetime")
    assert (leak.kind, leak.columns, leak.detail) == (
        "sum",
        ("casual", "registered"),
        "casual + registered = rentals",
    )


def test_a_weighted_sum_with_a_constant_is_found_among_related_columns(clean: pd.DataFrame) -> None:
    """The smallest set of columns is reported although other columns are correlated with it."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, len(clean)))
    table = clean.assign(a=a, b=b, near=a + 0.1 * b + rng.normal(size=len(a)), rentals=3 * a - b / 2 + 7)
    (leak,) = leaks(table, "rentals", "datetime")
    assert (leak.kind, leak.columns) == ("sum", ("a", "b"))
    assert leak.detail == "3 × a + -0.5 × b + 7 = rentals"


def test_all_parts_of_a_total_or_a_mean_are_found() -> None:
    """Columns that add up to the target with equal weights leak it, however many they are; other formulas may be."""
    parts = pd.DataFrame(np.random.default_rng(2).integers(0, 100, (300, 6)), columns=list("abcdef"))
    for target in (parts[list("abcde")].sum(axis=1), parts[list("abcde")].mean(axis=1)):
        (leak,) = leaks(parts.assign(y=target.astype(float)), "y")
        assert (leak.kind, leak.columns) == ("sum", ("a", "b", "c", "d", "e"))
    assert leaks(parts.assign(y=parts[list("abcde")] @ [1, 2, 3, 4, 5.5]), "y") == ()


def test_the_total_of_a_part_is_the_leak() -> None:
    """The other parts do not give the target away without the total."""
    parts = pd.DataFrame(np.random.default_rng(3).poisson(9, (300, 4)), columns=["y", "silver", "bronze", "other"])
    table = parts.assign(total=parts.sum(axis=1))
    (leak,) = leaks(table, "y")
    assert (leak.kind, leak.columns) == ("sum", ("total",))
    assert leak.detail == "-1 × silver + -1 × bronze + -1 × other + total = y"
    assert leaks(table.drop(columns="total"), "y") == ()


@pytest.mark.parametrize("seed", range(2))
def test_the_call_duration_is_dominant(bank: pd.DataFrame, seed: int) -> None:
    """The duration of a call, which is known only after it, predicts as well as all other columns together."""
    (leak,) = leaks(bank, "subscribed", "date", seed)
    assert (leak.kind, leak.columns) == ("dominant", ("duration",))


def test_one_part_of_the_sum_is_dominant(bike: pd.DataFrame) -> None:
    """The column registered alone is no sum, but it is still a leak."""
    (leak,) = leaks(bike.drop(columns="casual"), "rentals", "datetime")
    assert (leak.kind, leak.columns) == ("dominant", ("registered",))


@pytest.mark.parametrize("seed", range(4))
def test_tables_without_leaks_have_no_findings(bank: pd.DataFrame, clean: pd.DataFrame, seed: int) -> None:
    """The two tables without their leaks have no findings with any seed."""
    assert leaks(clean, "rentals", "datetime", seed) == ()
    assert leaks(bank.drop(columns="duration"), "subscribed", "date", seed) == ()


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "wine", "iris", "digits"])
def test_strong_features_are_no_leaks(name: str) -> None:
    """A feature that predicts well is no leak if other features also predict well."""
    from sklearn import datasets

    assert leaks(getattr(datasets, f"load_{name}")(as_frame=True).frame, "target") == ()


def test_two_equally_strong_columns_are_no_leak() -> None:
    """Two columns that predict equally well are not dominant."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(3000, 6)), columns=list("abcdef"))
    table["y"] = np.where(table.a + table.b + 0.5 * rng.normal(size=3000) > 0, "yes", "no")
    assert leaks(table, "y") == ()


def test_copies_of_a_number(clean: pd.DataFrame) -> None:
    """Copies are found if they are equal, on another scale, or in the same order, also if equal targets have ranks."""
    rentals = clean["rentals"]
    copies = {
        "same": rentals, "scaled": 5 - rentals * 1e-3, "curve": np.sqrt(rentals),
        "rank": rentals.rank(method="first", ascending=False), "tens": rentals // 10,
    }  # fmt: skip
    findings = leaks(clean.assign(**copies), "rentals", "datetime")
    assert {leak.columns[0]: leak.kind for leak in findings} == dict.fromkeys(copies, "copy")


def test_a_text_that_only_one_class_has_is_a_leak() -> None:
    """Its words are not examined, but whether there are any."""
    rng = np.random.default_rng(5)
    words = [f"{a} because of {b} and {c}" for a, b, c in rng.choice(list("abcdefghij"), (400, 3))]
    kind = rng.choice(["plain", "other", "mixed"], 400, p=[0.6, 0.1, 0.3])
    table = pd.DataFrame({"x": rng.normal(size=400), "remark": words, "reason": words, "kind": kind})
    table.loc[table["kind"] != "other", "reason"] = None
    table.loc[rng.random(400) < 0.3, "remark"] = None
    (leak,) = leaks(table, "kind")
    assert (leak.kind, leak.columns) == ("nulls", ("reason",))


def listed_houses(rows: int = 1_500) -> pd.DataFrame:
    """Houses with a list price, with which the price for which they are sold has a correlation of 0.9."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"listed": rng.lognormal(5, 1, rows), "age": rng.integers(0, 50, rows)})
    return table.assign(sold=table["listed"] * rng.lognormal(-0.1, 0.35, rows))


def test_a_placeholder_in_two_columns_makes_no_copy() -> None:
    """One row with 9999999.99 in the feature and the target gives a correlation of 1."""
    table = listed_houses()
    table.loc[10, ["listed", "sold"]] = 9_999_999.99
    assert table["listed"].corr(table["sold"]) > 0.9999
    assert leaks(table, "sold") == ()
    table["euros"] = table["sold"] / 7 + 1e-4 * np.random.default_rng(0).normal(size=len(table))
    table["log"] = np.log(table["sold"])
    table["near"] = table["sold"] + 10 * np.random.default_rng(1).normal(size=len(table))
    kinds = {leak.columns[0]: leak.kind for leak in leaks(table, "sold")}
    assert kinds == {"euros": "copy", "log": "copy", "near": "alone"}


@pytest.mark.parametrize("seed", range(4))
def test_a_heavy_tail_makes_no_leak(seed: int) -> None:
    """The R² of a feature is nearly 1 because of the few largest values, whatever the other rows are."""
    rng = np.random.default_rng(seed)
    x = rng.pareto(0.5, 1_500) * 1000
    table = pd.DataFrame({"x": x, "z": rng.normal(size=1_500), "y": x * rng.lognormal(0, 0.25, 1_500)})
    assert all(leak.may_be_legitimate for leak in leaks(table, "y"))


@pytest.mark.parametrize("rows", [20, 30, 100])
def test_copies_in_a_small_table_and_of_a_target_that_is_mostly_zero(rows: int) -> None:
    """Without the extreme rows the target has few other values; the copy is found nevertheless."""
    rng = np.random.default_rng(rows)
    table = pd.DataFrame({"y": rng.normal(size=rows), "z": rng.normal(size=rows)})
    assert [leak.kind for leak in leaks(table.assign(x=3 - 2 * table["y"]), "y")] == ["copy"]
    table["y"] = np.where(np.arange(rows) % 10 == 3, table["y"] * 100, 0.0)
    assert [leak.kind for leak in leaks(table.assign(x=3 - 2 * table["y"]), "y")] == ["copy"]


def test_a_copy_with_nulls(clean: pd.DataFrame) -> None:
    """A copy with nulls in half of the rows is found."""
    (leak,) = leaks(clean.assign(half=clean["rentals"].where(clean.index % 2 == 0)), "rentals", "datetime")
    assert (leak.kind, leak.columns) == ("copy", ("half",))


def test_copies_of_a_class(bank: pd.DataFrame) -> None:
    """Classes under other names are found, and a column that is filled in for one class only."""
    yes = bank["subscribed"] == "yes"
    table = bank.drop(columns="duration").assign(renamed=np.where(yes, 7, 3), after=np.where(yes, bank["age"], np.nan))
    findings = leaks(table, "subscribed", "date")
    assert {leak.columns[0]: leak.kind for leak in findings} == {"renamed": "copy", "after": "nulls"}


def test_copy_among_several_classes() -> None:
    """One leak is found in a multiclass table of strings, in which null means one class."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"y": rng.choice(["a", "b", "c"], 300), "x": rng.normal(size=300)})
    table["code"] = table["y"].map({"a": "1st", "b": "2nd"})
    (leak,) = leaks(table, "y")
    assert (leak.kind, leak.columns) == ("copy", ("code",))


@pytest.mark.parametrize("rows", [0, 1, 5, 19, 40])
def test_too_few_rows_for_a_finding(clean: pd.DataFrame, rows: int) -> None:
    """Few rows, null columns, or a null or constant target give no leak and no error."""
    few = clean.head(rows).assign(empty=np.nan)
    for table in (few, few.assign(rentals=np.nan), few.assign(rentals=1), few.assign(rentals="a"), few[["rentals"]]):
        assert leaks(table, "rentals") == ()


def test_infinities_and_the_largest_floats_do_not_crash(clean: pd.DataFrame) -> None:
    """Other rules report these values; the search for leaks continues without a warning."""
    table = clean.head(500).copy()
    table["huge"] = np.linspace(-8e307, 8e307, 500)
    table["inf"] = np.where(table.index % 7 == 0, np.inf, table.index)
    assert leaks(table, "rentals") == ()
    assert leaks(table.assign(rentals=table["huge"] * 1.5), "rentals") is not None


@pytest.mark.slow
def test_same_seed_gives_same_scores(bank: pd.DataFrame) -> None:
    """Scores are equal to the last digit."""
    assert leaks(bank, "subscribed", "date", 5) == leaks(bank, "subscribed", "date", 5)


def test_the_smallest_and_largest_floats_are_no_copies() -> None:
    """Columns whose squares exceed the range of floats are not reported as copies on another scale."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"tiny": rng.choice([5e-324, 1e-310, 0.0], 100), "huge": rng.choice([1e308, -1e308], 100)})
    table["y"] = rng.normal(size=100)
    assert leaks(table, "y") == ()


def test_the_end_of_a_duration_is_a_leak() -> None:
    """A date after the event: with the time of the row it gives the target."""
    rng = np.random.default_rng(3)
    opened = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.random(2_000)) * 700, unit="D")
    days = rng.gamma(2.0, 10.0, 2_000)
    closed = opened + pd.to_timedelta(days, unit="D")
    due = opened + pd.to_timedelta(rng.gamma(2.0, 10.0, 2_000), unit="D")
    table = pd.DataFrame({"opened": opened, "closed": closed, "due": due, "x": rng.normal(size=2_000), "days": days})
    (leak,) = leaks(table, "days", "opened")
    assert leak.columns == ("closed",)


@pytest.mark.parametrize(("noise", "kind"), [(0.1, "strong"), (0.03, "alone")])
def test_a_strong_column_is_a_warning_and_a_nearly_perfect_one_a_leak(noise: float, kind: str) -> None:
    """The list price of a house may be known before it is sold; a column with 99.9 % of the variance is the price."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(900, 4)), columns=["listed", "rooms", "garden", "age"])
    table["sold"] = 50 * table["listed"] + 50 * noise * rng.normal(size=900)
    (leak,) = leaks(table, "sold")
    assert (leak.columns, leak.kind, leak.may_be_legitimate) == (("listed",), kind, kind == "strong")


@pytest.mark.parametrize(("share", "kind"), [(0.6, "strong"), (1.0, "copy")])
def test_a_column_that_narrows_down_a_rare_class_is_no_leak(share: float, kind: str) -> None:
    """Few aircraft have piston engines, most of them of one type: the AUC is high, but the type is not determined."""
    rng = np.random.default_rng(0)
    piston = rng.random(20_000) < 0.002
    table = pd.DataFrame({"engine": np.where(piston, "piston", "jet"), "year": rng.integers(1960, 2013, 20_000)})
    table["type"] = np.where(piston & (rng.random(20_000) < share), "single", "multi")
    (leak,) = leaks(table, "type")
    assert (leak.columns, leak.kind) == (("engine",), kind)
