"""A CSV of codes, versions, words that look like nulls, flags and dates, from training to monitoring."""

import csv
import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml

from tests.support.paths import REPOSITORY
from towline import load

TOWLINE = Path(sys.executable).with_name("towline")
ROWS = 900
CONFIG = {
    "name": "awkward",
    "data": {
        "target": "y",
        "date_format": "%d.%m.%Y",
        "columns": {"zip": "category", "version": "category", "cohort": "category"},
    },
    "candidates": [
        {"estimator": "boosting", "params": {"max_iter": 60, "early_stopping": False, "max_leaf_nodes": 31}}
    ],
    "cross_validation": {"folds": 2},
    "gate": {"latency_ms": 10_000},
    "privacy": {"join_on": ["order"]},
    "quality": {"delay": "0h", "window": "1h", "min_labels": 50},
}


class TrainedModel:
    """A trained model, its training file, and the commands."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder, self.environ, self.file = folder, environ, folder / "t.csv"

    def run(self, *arguments: object) -> Any:
        command = [TOWLINE, *map(str, arguments), "--json"]
        result = subprocess.run(command, env=self.environ, cwd=self.folder, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr + result.stdout
        return json.loads(result.stdout)

    @property
    def texts(self) -> list[dict[str, Any]]:
        """The rows of the training file as text, null where a cell is empty."""
        with self.file.open(newline="") as file:
            return [{name: text or None for name, text in row.items()} for row in csv.DictReader(file)]

    @property
    def values(self) -> list[dict[str, Any]]:
        """The same rows with typed values."""
        rows = self.texts
        for row in rows:
            row["price"] = row["price"] and float(row["price"])
            row["flag"] = row["flag"] and row["flag"] == "true"
            day, month, year = row["day"].split(".")
            row["day"] = f"{year}-{month}-{day}T00:00:00"
        return rows


def write(path: Path) -> None:
    """Writes a table whose columns all affect the target: a value that is parsed differently changes a prediction."""
    rng = np.random.default_rng(0)
    zips, versions, countries = (
        {"00501": 9, "501": 0, "01234": 3},
        {"1.1": 0, "1.10": 20, "2.0": 7},
        {"NA": -8, "DE": 4},
    )
    table = pd.DataFrame(
        {
            "order": [f"{row:06}" for row in range(ROWS)],
            "zip": rng.choice(list(zips), ROWS),
            "version": rng.choice(list(versions), ROWS),
            "country": rng.choice(list(countries), ROWS),
            "flag": rng.choice(["true", "false"], ROWS),
            "price": rng.normal(100, 20, ROWS).round(2),
        }
    )
    days = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, ROWS), unit="D")
    table["day"], table["cohort"] = days.strftime("%d.%m.%Y"), days.strftime("%Y-%m-01")
    effects = [table[name].map(by) for name, by in (("zip", zips), ("version", versions), ("country", countries))]
    table["y"] = (sum(effects) + 10 * (table["flag"] == "true") + table["price"] / 10 + rng.normal(size=ROWS)).round(3)
    table.loc[rng.random(ROWS) < 0.05, "flag"] = ""
    table.loc[rng.random(ROWS) < 0.05, "price"] = np.nan
    table.to_csv(path, index=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect: str) -> TrainedModel:
    folder = tmp_path_factory.mktemp("awkward")
    environ = os.environ | {"TOWLINE_STORE": str(folder / "store"), "TOWLINE_PROJECT": str(REPOSITORY)}
    trained = TrainedModel(folder, environ)
    write(trained.file)
    CONFIG["data"]["source"] = str(trained.file)  # type: ignore[index]
    (folder / "awkward.yaml").write_text(yaml.safe_dump(CONFIG))
    assert trained.run("run", folder / "awkward.yaml")["event"] == "promoted"
    return trained


def test_all_modes_predict_the_same_for_text_and_typed_values(trained: TrainedModel) -> None:
    """In a program, as Arrow, over HTTP and in batch, on the training file."""
    model = load(str(next((trained.folder / "store" / "releases" / "awkward").glob("v1-*"))))
    expected = model.predict(trained.values).tolist()
    assert len(set(expected)) > ROWS / 2
    assert model.predict(trained.texts).tolist() == expected
    assert model.predict(pa.Table.from_pylist(trained.values)).tolist() == expected
    trained.run("score", trained.file, trained.folder / "scored.csv", "--prefix", "p_")
    scored = pd.read_csv(trained.folder / "scored.csv", dtype=str, keep_default_na=False)
    assert scored["p_prediction"].astype(float).tolist() == expected
    assert scored.iloc[:, :9].equals(pd.read_csv(trained.file, dtype=str, keep_default_na=False))


def test_training_data_causes_no_alarm(trained: TrainedModel) -> None:
    """Training rows in requests, as text and typed values, cause no drift; their labels give the training's quality."""
    service = subprocess.Popen(
        [TOWLINE, "serve", "awkward", "--port", "0", "--json"], env=trained.environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert service.stdout is not None
        lines = ""
        while not lines.endswith("}\n"):
            lines += service.stdout.readline()
        connection = http.client.HTTPConnection(json.loads(lines)["address"].rpartition("/")[2], timeout=60)
        answers = []
        for rows in (trained.texts[: ROWS // 2], trained.values[ROWS // 2 :]):
            connection.request("POST", "/predict", json.dumps({"rows": rows}), {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            answers += answer["predictions"]
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(30) == 0
    scored = pd.read_csv(trained.folder / "scored.csv", dtype=str)
    assert answers == scored["p_prediction"].astype(float).tolist()
    config = trained.folder / "awkward.yaml"
    assert trained.run("drift", config, "--current", trained.file)["state"] == "ok"
    added = trained.run("labels", "add", "awkward", trained.file, "--by", "order", "--column", "y")
    assert (added["added"], added["waiting"]) == (ROWS, 0)
    shown = trained.run("log", "show", "awkward")
    assert shown["rows"] == ROWS
