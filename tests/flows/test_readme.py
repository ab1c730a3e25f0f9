"""The example of the README, without changes."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tests.support.checks import at_least_one
from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY


def houses(rows: int = 1200) -> pd.DataFrame:
    """A table with the columns of the README's example, with sales until the summer of 2026."""
    rng = np.random.default_rng(11)
    rooms, heating = rng.integers(1, 9, rows), rng.choice(["gas", "oil", "none"], rows)
    area = (25 * rooms + rng.normal(20, 15, rows)).clip(20).round(1)
    price = 150_000 + 1_200 * area + 60_000 * (heating == "gas") + rng.normal(0, 15_000, rows)
    return pd.DataFrame(
        {
            "listing_id": np.arange(rows),
            "sold_on": (pd.Timestamp("2026-07-15") - pd.to_timedelta(np.arange(rows)[::-1] // 2, unit="D")).date,
            "rooms": rooms,
            "area": area,
            "heating": heating,
            "price": price.round(-2),
        }
    )


def test_readme_example_works(towline: Callable[..., CommandResult], tmp_path: Path) -> None:
    """Its config, commands and program work on a table with its columns."""
    page = (REPOSITORY / "README.md").read_text()
    table = houses()
    table.to_csv(tmp_path / "houses.csv", index=False)
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "houses.yaml"
    path.write_text(config.replace("houses.csv", str(tmp_path / "houses.csv")))
    commands = re.findall(r"^towline ((?:validate|run) .*houses.yaml)", page, re.MULTILINE)
    assert len(commands) == 2
    for command in at_least_one(commands):
        result = towline(*shlex.split(command.replace("configs", str(tmp_path))), "--json")
        assert result.code == 0, result.err
    assert result.json["dataset"]["end"] == "2026-07-15T00:00:00"

    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(program.replace("configs/houses.yaml", str(path)), names)  # the README's table
    assert names["outcome"].repeated
    row = yaml.safe_load(re.findall(r"predict\((\{.*?\})", program)[0])
    assert {*row, *yaml.safe_load(config)["data"]["drop"], "price"} == set(table)
    (answer,) = names["model"].predict(row)
    assert table["price"].min() < answer < table["price"].max()
