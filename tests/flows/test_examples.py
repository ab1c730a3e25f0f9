"""The scripts in examples/ run without changes."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from tests.support.sample_store import MODEL, SampleStore

EXAMPLES = REPOSITORY / "examples"
Example = Callable[..., str]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs a script in the repository's folder and returns its output."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("TOWLINE_PROJECT", str(REPOSITORY))

    def run(name: str, *words: object) -> str:
        names: dict[str, Any] = runpy.run_path(str(EXAMPLES / name))
        names["main"](*words)
        return capsys.readouterr().out

    return run


@pytest.fixture
def sample_store(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    monkeypatch.setenv("TOWLINE_STORE", str(sample_store.settings.store))
    return sample_store


def test_readme_lists_every_example() -> None:
    """README.md and the folder have the same scripts."""
    page = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.glob("*.py")} - {"my_features.py", "my_metrics.py", "my_models.py"}
    assert scripts == {line.split("](")[1].split(")")[0] for line in page.splitlines() if line.startswith("| [")}


def test_train_and_embed_model(towline: Callable[..., CommandResult], example: Example) -> None:
    """A table in memory becomes a promoted model; a dict, a list and a table get the same predictions."""
    out = example("train.py")
    assert "example-bikes@1 was promoted" in out
    assert "mae" in out
    row, rows, table = (line.split("[")[1] for line in example("embed_model.py", "example-bikes").splitlines()[1:])
    assert rows == table
    assert rows.startswith(row.rstrip("]"))


def test_features(towline: Callable[..., CommandResult], example: Example) -> None:
    """A model is trained with computed features and predicts for a row without them."""
    out = example("features.py")
    assert "example-features@1 was promoted" in out
    assert "comfort         category  case when" in out
    assert "prediction: " in out


def test_lookups(towline: Callable[..., CommandResult], example: Example) -> None:
    """A model is trained with a joined table, which is removed before a row with the key is predicted."""
    out = example("lookups.py")
    assert "example-lookups@1 was promoted" in out
    assert re.search(r"city: \d+\.\d", out)
    assert "humidity" not in out


def test_custom_estimator(towline: Callable[..., CommandResult], example: Example) -> None:
    """An estimator of the project is trained and stored, and predicts from the release."""
    out = example("custom_estimator.py")
    assert "example-clipped@1 was promoted" in out
    assert "smallest prediction: 0.0" in out


def test_custom_transformer(towline: Callable[..., CommandResult], example: Example) -> None:
    """A transformer of the project is trained and stored, and used by the release."""
    out = example("custom_transformer.py")
    assert "example-rush-hour@1 was promoted" in out
    assert re.search(r"rush hour: \d+ bikes", out)


def test_custom_metric(towline: Callable[..., CommandResult], example: Example) -> None:
    """A function of the project rejects the first model, and the metric of the project is measured."""
    out = example("custom_metric.py")
    assert re.search(r"refused: fail: at 2012-.* the error is \d+ bikes, at most 5", out)
    assert "promoted: pass: my_metrics.largest_error gives no reason to reject" in out
    assert re.search(r"empty_stations: 0\.\d+", out)


def test_custom_expectation(store: Path, example: Example) -> None:
    """The second table is refused, with the rule and the value that broke it."""
    out = example("custom_expectation.py")
    assert "rules, 0 failed" in out
    assert "temp_c" in out
    assert "expect_column_mean_to_be_between" in out


def test_score_file(sample_store: SampleStore, example: Example, tmp_path: Path) -> None:
    """A CSV is scored by the only model of the store."""
    from tests.support.releases import make_house_table

    make_house_table(5).drop(columns=["sold", "value"]).to_csv(tmp_path / "in.csv", index=False)
    out = example("score_file.py", str(tmp_path / "in.csv"), str(tmp_path / "out.csv"))
    assert f"5 rows scored by {MODEL}@1" in out
    assert pd.read_csv(tmp_path / "out.csv")["scored_prediction"].notna().all()


@pytest.mark.slow
def test_backtest(store: Path, example: Example) -> None:
    """Each policy has its metric and its trainings."""
    out = example("backtest.py")
    assert "never      mae" in out
    assert "schedule   mae" in out
    assert "best: " in out
