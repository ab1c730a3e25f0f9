"""LightGBM, XGBoost and CatBoost: from a config to answers, by nothing but the commands that a run prints."""

import contextlib
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmarks.swaps import Serving
from tests.conftest import Done
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


def table(classes: list[Any] | None) -> pd.DataFrame:
    rng = np.random.default_rng(8)
    rows = 240
    x, kind, flag = rng.normal(size=rows), rng.choice(["a", "b", "c"], rows), rng.random(rows) < 0.5
    value = 2 * x + (kind == "b") + 0.5 * flag + rng.normal(0, 0.2, rows)
    frame = pd.DataFrame({"x": np.where(rng.random(rows) < 0.05, np.nan, x), "kind": kind, "flag": flag})
    cuts = np.quantile(value, np.linspace(0, 1, len(classes) + 1)[1:-1]) if classes else []
    return frame.assign(y=[classes[place] for place in np.digitize(value, cuts)] if classes else value)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_from_config_to_answers(
    library: str, task: str, towline: Callable[..., Done], store: Path, tmp_path: Path
) -> None:
    """Trained and promoted; the printed commands serve, score and load it as printed, and answer alike, typed right."""
    classes, kind = TASKS[task]
    frame = table(classes)
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    frame.drop(columns="y").to_csv(tmp_path / "new.csv", index=False)
    estimator = f"{library}.{LIBRARIES[library][1 if classes else 0]}"
    raw = {
        "name": "boosted",
        "data": {"source": str(tmp_path / "table.parquet"), "target": "y"},
        "candidates": [{"estimator": estimator, "params": {"n_estimators": 20}}],
        "cross_validation": {"folds": 2},
        "evaluation": {"resamples": 50},
    }
    (tmp_path / "boosted.yaml").write_text(yaml.safe_dump(raw))
    done = towline("run", tmp_path / "boosted.yaml")
    assert done.code == 0, done.err
    printed = dict(re.findall(r"^  (predict in Python|predict over HTTP|score a file) +(.*)$", done.out, re.MULTILINE))
    assert len(printed) == 3, done.out
    manifest = json.loads(next((store / "releases" / "boosted").glob("v1-*/manifest.json")).read_text())
    assert any(name.removesuffix("-cpu") == library for name in manifest["libraries"])
    assert manifest["trusted"] == []

    rows = json.loads(frame.drop(columns="y").head(20).to_json(orient="records"))
    statement, _, expression = printed["predict in Python"].rpartition(";")
    names: dict[str, Any] = {"rows": rows}
    exec(statement, names)
    said = eval(expression.strip(), names).tolist()
    assert {type(answer) for answer in said} == {kind}
    if classes:
        assert np.mean([one == other for one, other in zip(said, frame["y"], strict=False)]) > 0.7

    words = shlex.split(printed["score a file"])[1:]
    paths = {"IN": str(tmp_path / "new.csv"), "OUT": str(tmp_path / "scored.parquet")}
    scored = towline(*(paths.get(word, word) for word in words))
    assert scored.code == 0, scored.err
    assert pd.read_parquet(tmp_path / "scored.parquet")["prediction"].head(20).tolist() == said

    settings = Settings.from_environment()
    _, command, *words = shlex.split(printed["predict over HTTP"])
    assert command == "serve"
    with Serving(settings, *words, "--workers", "2") as serving, contextlib.ExitStack() as answers:
        for _ in range(4):  # more than there are workers
            request = Request(
                f"{serving.told['address']}/predict",
                json.dumps({"rows": rows}).encode(),
                {"content-type": "application/json"},
            )
            answer = answers.enter_context(urlopen(request, timeout=60))
            assert json.load(io.TextIOWrapper(answer))["predictions"] == json.loads(json.dumps(said))
