"""The page of `towline data profile`."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.commands import CommandResult

Command = Callable[..., CommandResult]
ROWS = 300


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> str:
    """The page of a table with a leak, personal data, nulls and a change."""
    monkeypatch.delenv("TOWLINE_PROJECT")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"day": pd.date_range("2025-01-01", periods=ROWS, freq="D")})
    table["load"] = rng.normal(10, 1, ROWS).round(2) + np.where(np.arange(ROWS) < ROWS // 2, 0, 50)
    table["email"] = [f"user{number}@example.com" for number in range(ROWS)]
    table["region"] = rng.choice(["<north>", "south"], ROWS)
    table["reading"] = pd.Series(rng.integers(0, 100, ROWS)).where(rng.random(ROWS) < 0.75).astype("Int64")
    table["used"] = (table["region"] == "south") * 5.0 + rng.normal(0, 3, ROWS).round(2)
    table["used_twice"] = 2 * table["used"]
    words = ["pump", "was", "repaired", "again", "today"]
    table["remark"] = [f"no. {number:03} " + " ".join(words[: 1 + number % 5]) for number in range(ROWS)]
    weights = rng.uniform(0.5, 9, ROWS).round(1)
    table["weight"] = [f"{kilos * 1000:.0f} g" if kilos < 2 else f"{kilos} kg" for kilos in weights]
    table.to_csv("meters.csv", index=False)
    result = command("data", "profile", "meters.csv", "--target", "used")
    assert result.code == 0, result.err
    return Path("meters-profile.html").read_text()


def row(page: str, column: str) -> str:
    """The row of a column in the table of all columns."""
    rows = page.rpartition("<h2>Columns</h2>")[2].split("<tr>")
    return next(text for text in rows if text.startswith(f"<th>{column}<br>"))


def test_the_page_loads_nothing(page: str) -> None:
    """It can be opened without a network: there is no script and no address."""
    assert not re.search(r"<script|https?://|<link|<img", page)


def test_a_leak_is_shown_with_its_evidence(page: str) -> None:
    """A copy of the target on another scale is at the top of the page."""
    assert "<b>used_twice</b>leak: " in page


def test_numbers_have_their_unit(page: str) -> None:
    """Amounts in grams and kilograms are shown in kilograms."""
    assert re.search(r"0\.5 to 9 kg, median \d", row(page, "weight"))


def test_numbers_and_times_without_a_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """A constant date, neighbouring large numbers and the largest floats get one bar."""
    monkeypatch.delenv("TOWLINE_PROJECT")
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"y": np.random.default_rng(1).normal(size=60), "exported": "2024-01-01"})
    table["large"] = 1e16 + 2.0 * (np.arange(60) % 2)
    table["largest"] = np.where(np.arange(60) % 2, 1e308, -1e308)
    table.to_parquet("t.parquet")
    result = command("data", "profile", "t.parquet", "--target", "y", "--time", "none")
    assert result.code == 0, result.err
    assert "2024-01-01" in row(Path("t-profile.html").read_text(), "exported")


def test_no_value_of_personal_data_is_shown(page: str) -> None:
    """A column of e-mail addresses is described without one."""
    assert "example.com" not in page
    assert "personal data" in row(page, "email")


def test_nulls_and_values_are_those_of_the_table(page: str) -> None:
    """Shares and levels are counted; text of the table is escaped."""
    share = float(re.search(r'number">([\d.]+)%', row(page, "reading"))[1])  # type: ignore[index]
    assert 15 < share < 35
    assert "&lt;north&gt;" in row(page, "region")
    assert "<north>" not in page


def test_a_change_over_time_is_shown(page: str) -> None:
    """The mean of a column that jumps is lower in the first window than in the last."""
    means = [float(text.replace(",", "")) for text in re.findall(r": mean ([\d.,]+)<", row(page, "load"))]
    assert means[0] < 15 < 45 < means[-1]


def test_the_relation_to_the_target(page: str) -> None:
    """The bars of a category are the means of the target."""
    means = re.findall(r"(south|&lt;north&gt;): mean of used (-?[\d.]+)", row(page, "region"))
    by_region = {name: float(value) for name, value in means}
    assert by_region["south"] - by_region["&lt;north&gt;"] > 3


def test_lengths_of_texts_are_shown(page: str) -> None:
    """Single texts seldom repeat, so their distribution would show nothing."""
    assert "length 12 to 37, median 25" in row(page, "remark")
