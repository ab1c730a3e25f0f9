"""Models of other libraries and of the project's own code, used by the commands that a run prints."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.commands import CommandResult
from tests.support.paths import REPOSITORY
from tests.support.serve_process import ServeProcess
from tests.support.training import make_mixed_table
from towline.config import Settings

LIBRARIES = {
    "lightgbm": ("LGBMRegressor", "LGBMClassifier"),
    "xgboost": ("XGBRegressor", "XGBClassifier"),
    "catboost": ("CatBoostRegressor", "CatBoostClassifier"),
}
TASKS = {
    "regression": (None, float),
    "boolean": ([False, True], bool),
    "text": (["no", "yes"], str),
    "three classes": (["high", "low", "middle"], str),
}


OWN = """
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

def doubled(rows):
    return rows * 2

def make():
    return make_pipeline(FunctionTransformer(doubled), Ridge())
"""


#: names that LightGBM and XGBoost do not accept, and others that are no Python names
NAMES = ["a[b]<c", "größe", "x y", "1", '{"q":1}']


def table(classes: list[Any] | None) -> pd.DataFrame:
    rng = np.random.default_rng(8)
    rows = 240
    x, kind, flag = rng.normal(size=rows), rng.choice(["a", "b", "c"], rows), rng.random(rows) < 0.5
    value = 2 * x + (kind == "b") + 0.5 * flag + rng.normal(0, 0.2, rows)
    columns = [np.where(rng.random(rows) < 0.05, np.nan, x), np.where(rng.random(rows) < 0.05, None, kind), flag]
    columns += [rng.normal(size=rows), rng.integers(0, 9, rows)]
    frame = pd.DataFrame(dict(zip(NAMES, columns, strict=True)))
    cuts = np.quantile(value, np.linspace(0, 1, len(classes) + 1)[1:-1]) if classes else []
    return frame.assign(y=[classes[place] for place in np.digitize(value, cuts)] if classes else value)


def train(
    towline: Callable[..., CommandResult],
    folder: Path,
    frame: pd.DataFrame,
    *candidates: Any,
    calibrate: str | None = None,
    sections: dict[str, Any] | None = None,
    **evaluation: str,
) -> dict[str, str]:
    """Runs a pipeline on a table; returns the printed commands by their purpose."""
    frame.to_parquet(folder / "table.parquet", index=False)
    raw = {
        "name": "boosted",
        "data": {"source": str(folder / "table.parquet"), "target": "y"},
        "candidates": list(candidates),
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50, **evaluation},
        "calibrate": calibrate,
        **(sections or {}),
    }
    (folder / "boosted.yaml").write_text(yaml.safe_dump(raw))
    result = towline("run", folder / "boosted.yaml")
    assert result.code == 0, result.err
    printed = dict(
        re.findall(r"^  (predict in Python|predict over HTTP|score a file) +(.*)$", result.out, re.MULTILINE)
    )
    assert len(printed) == 3, result.out
    return printed


def run_printed_commands(
    towline: Callable[..., CommandResult], folder: Path, frame: pd.DataFrame, printed: dict[str, str]
) -> list[Any]:
    """Runs the printed commands: loads, scores with and serves the model; returns the predictions, which must be equal.

    For a classification the probabilities are also compared, to the last bit.
    """
    inputs = frame.drop(columns="y")
    rows = inputs.head(20).astype(object).where(inputs.head(20).notna(), None).to_dict("records")
    statement, _, expression = printed["predict in Python"].rpartition(";")
    names: dict[str, Any] = {"rows": rows}
    exec(statement, names)
    predicted: list[Any] = eval(expression.strip(), names).tolist()
    model = eval(expression.strip().removesuffix(".predict(rows)"), names)
    probabilities = model.predict_proba(rows).tolist() if model.metadata.classes else None

    inputs.to_csv(folder / "new.csv", index=False)
    paths = {"IN": str(folder / "new.csv"), "OUT": str(folder / "scored.parquet")}
    scored = towline(*(paths.get(word, word) for word in shlex.split(printed["score a file"])[1:]))
    assert scored.code == 0, scored.err
    table = pd.read_parquet(folder / "scored.parquet").head(20)
    assert table["prediction"].tolist() == predicted
    if probabilities:
        assert table[[f"probability_{label}" for label in model.metadata.classes]].to_numpy().tolist() == probabilities

    _, command, *words = shlex.split(printed["predict over HTTP"])
    assert command == "serve"
    with ServeProcess(Settings.from_environment(), *words, "--workers", "2") as serving:
        for _ in range(4):  # more requests than workers
            request = Request(
                f"{serving.startup['address']}/predict",
                json.dumps({"rows": rows}).encode(),
                {"content-type": "application/json"},
            )
            with urlopen(request, timeout=60) as response:
                content = json.load(response)
                assert content["predictions"] == json.loads(json.dumps(predicted))
                assert content.get("probabilities") == probabilities
    return predicted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "task", "by_path"),
    [
        ("lightgbm", "regression", False),
        ("lightgbm", "text", False),
        ("xgboost", "boolean", False),
        ("xgboost", "three classes", False),
        ("catboost", "regression", False),
        ("catboost", "boolean", False),
        *((library, "three classes", True) for library in LIBRARIES),
    ],
)
def test_a_library_from_config_to_predictions(
    library: str, task: str, by_path: bool, towline: Callable[..., CommandResult], store: Path, tmp_path: Path
) -> None:
    """Trained and promoted; the printed commands work as printed, and predictions have the type of the labels."""
    classes, kind = TASKS[task]
    frame = table(classes)
    estimator = f"{library}.{LIBRARIES[library][1 if classes else 0]}" if by_path else library
    printed = train(towline, tmp_path, frame, {"estimator": estimator, "params": {"n_estimators": 20}})
    manifest = json.loads(next((store / "releases" / "boosted").glob("v1-*/manifest.json")).read_text())
    assert ("plan.npz" in manifest["files"]) is not by_path
    assert any(name.removesuffix("-cpu") == library for name in manifest["libraries"])
    assert manifest["trusted"] == []
    predicted = run_printed_commands(towline, tmp_path, frame, printed)
    assert {type(answer) for answer in predicted} == {kind}
    if classes:
        assert np.mean([answer == label for answer, label in zip(predicted, frame["y"], strict=False)]) > 0.7


@pytest.mark.parametrize("target", ["value", "sold", "grade"])
def test_an_ensemble_from_config_to_predictions(
    target: str, towline: Callable[..., CommandResult], store: Path, tmp_path: Path
) -> None:
    """The ensemble is selected and compiled; program, batch and service give equal predictions."""
    frame = make_mixed_table(target)
    candidates = [
        "linear",
        {"estimator": "boosting", "params": {"max_iter": 60, "early_stopping": False, "max_leaf_nodes": 31}},
        "ensemble",
    ]
    metric = {"metric": "log_loss"} if target == "grade" else {}
    printed = train(towline, tmp_path, frame, *candidates, **metric)
    release = next((store / "releases" / "boosted").glob("v1-*"))
    manifest = json.loads((release / "manifest.json").read_text())
    assert manifest["estimator"] == "ensemble"
    assert manifest["params"]["weights"].keys() == {"linear", "boosting"}
    assert manifest["trusted"] == []
    certificate = json.loads((release / "certificate.json").read_text())
    assert certificate["compiled"]
    assert certificate["scorer"] == "ensemble of linear, bitmask forest"
    assert "weights" in (release / "card.md").read_text()
    answers = run_printed_commands(towline, tmp_path, frame, printed)
    truth = frame["y"].head(20)
    if target == "value":
        assert np.corrcoef(np.array(answers, dtype=float), truth)[0, 1] > 0.9
    else:
        assert np.mean(truth == answers) > 0.7


@pytest.mark.parametrize("target", ["sold", "grade"])
def test_a_calibrated_model_from_config_to_predictions(
    target: str, towline: Callable[..., CommandResult], store: Path, tmp_path: Path
) -> None:
    """The model is promoted and compiled; program, batch and service give equal probabilities."""
    frame = make_mixed_table(target, rows=1_500)
    candidate = {
        "estimator": "boosting",
        "weights": "balanced",
        "params": {"max_iter": 60, "early_stopping": False, "max_leaf_nodes": 31},
    }
    printed = train(towline, tmp_path, frame, candidate, calibrate="isotonic")
    release = next((store / "releases" / "boosted").glob("v1-*"))
    manifest, card = json.loads((release / "manifest.json").read_text()), (release / "card.md").read_text()
    assert manifest["calibration"] == {"method": "isotonic", "rows": manifest["dataset"]["training_rows"]}
    assert "| Calibration | isotonic, fitted on 1," in card
    assert "| calibration\\_error |" in card
    assert json.loads((release / "certificate.json").read_text())["compiled"]
    evaluation = json.loads((release / "metrics.json").read_text())["evaluation"]
    assert evaluation["calibration"]["after"]["log_loss"] == evaluation["metrics"]["log_loss"]["value"]
    answers = run_printed_commands(towline, tmp_path, frame, printed)
    assert np.mean(frame["y"].head(20) == answers) > 0.7


def test_a_model_with_lookups_from_config_to_predictions(
    towline: Callable[..., CommandResult], store: Path, tmp_path: Path
) -> None:
    """The target depends on joined columns; rows have the key only; after the training the tables are not needed."""
    rng = np.random.default_rng(4)
    towns, days = [f"Ort {number}" for number in range(30)], pd.date_range("2025-01-01", periods=900, freq="8h")
    sizes = pd.DataFrame({"town": towns, "size": rng.normal(size=30), "coast": rng.choice(["yes", "no"], 30)})
    rates = pd.DataFrame([(bank, start, rng.normal()) for bank in (1, 2, 3) for start in days[::45]])
    rates.columns = ["bank_id", "valid_from", "percent"]
    frame = pd.DataFrame({"at": days, "town": rng.choice(towns, 900), "bank": rng.integers(1, 4, 900)})
    entries = rates.sort_values("valid_from").rename(columns={"bank_id": "bank"})
    latest = pd.merge_asof(frame, entries, left_on="at", right_on="valid_from", by="bank")
    size = frame["town"].map(sizes.set_index("town")["size"])
    frame["y"] = 5 * size + 3 * latest["percent"] + rng.normal(0, 0.5, 900)
    frame.loc[::50, "town"] = None
    frame["at"] = frame["at"].astype(str)  # as in JSON
    sizes.to_csv(tmp_path / "sizes.csv", index=False)
    rates.to_parquet(tmp_path / "rates.parquet", index=False)
    sections: dict[str, Any] = {
        "data": {"source": str(tmp_path / "table.parquet"), "target": "y", "time": "at"},
        "lookups": {
            "towns": {"table": str(tmp_path / "sizes.csv"), "key": "town", "columns": ["size", "coast"]},
            "rates": {
                "table": str(tmp_path / "rates.parquet"), "key": {"bank": "bank_id"},
                "columns": {"rate": "percent"}, "time": "valid_from",
            },
        },
        "features": {"size_and_rate": "size * rate"},
    }  # fmt: skip
    printed = train(towline, tmp_path, frame, "linear", sections=sections)
    for name in ("sizes.csv", "rates.parquet"):
        (tmp_path / name).unlink()
    answers = run_printed_commands(towline, tmp_path, frame, printed)
    known = frame["town"].head(20).notna().to_numpy()
    assert np.abs(np.array(answers) - frame["y"].head(20))[known].mean() < 1
    card = next((store / "releases" / "boosted").glob("v1-*/card.md")).read_text()
    assert "rates" in card

    sizes.assign(size=0.0).to_csv(tmp_path / "sizes.csv", index=False)
    rates.to_parquet(tmp_path / "rates.parquet", index=False)
    again = towline("run", tmp_path / "boosted.yaml")
    assert "cross-validate linear" in again.err + again.out
    assert "version 2" in again.err + again.out
    assert towline("validate", tmp_path / "boosted.yaml").code == 0


def test_the_projects_own_estimator_from_config_to_predictions(
    towline: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that the config names needs no --trust to load, score or serve, or to restore a backup of it."""
    project = tmp_path / "project"
    for name in ("flows", "tasks"):
        shutil.copytree(REPOSITORY / name, project / name)
    (project / "own_pipelines.py").write_text(OWN)
    monkeypatch.setenv("TOWLINE_PROJECT", str(project))
    monkeypatch.chdir(project)
    frame = table(None)
    predicted = run_printed_commands(towline, tmp_path, frame, train(towline, tmp_path, frame, "own_pipelines.make"))
    assert np.corrcoef(predicted, frame["y"].head(20))[0, 1] > 0.9
    taken = towline("backup", tmp_path / "store.tar.zst")
    assert taken.code == 0, taken.err
    restored = towline("restore", tmp_path / "store.tar.zst", "--into", tmp_path / "elsewhere")
    assert restored.code == 0, restored.err
