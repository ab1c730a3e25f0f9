"""Inputs of the benchmarks of serving and scoring: a model that towline trained, and rows to test it with."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.model_selection import FixedThresholdClassifier

from towline.data.schema.contract import Contract
from towline.operations.servers import TELEMETRY_OFF
from towline.training import model_io

PROJECT = Path(__file__).parents[2]
TOWLINE = str(Path(sys.executable).with_name("towline"))
TABLE = PROJECT / "data" / "bank_marketing.parquet"
#: at random and without its date the model is scikit-learn's parts alone, which every peer can unpickle
CUT = ("data.time=null", "data.drop=[id, date, duration]")
BOOSTING = ("candidates=[boosting]",)
#: scikit-learn's older boosting, which is not compiled
UNCOMPILED = ("candidates=[sklearn.ensemble.GradientBoostingClassifier]",)
#: models of the same size: 100 trees of up to 32 leaves
SAME_SIZE = {
    "boosting-100": "{estimator: boosting, params: {max_iter: 100, early_stopping: false, max_leaf_nodes: 31}}",
    "lightgbm": "{estimator: lightgbm, params: {n_estimators: 100, early_stopping_rounds: 0, num_leaves: 31}}",
    "xgboost": "{estimator: xgboost, params: {n_estimators: 100, early_stopping_rounds: 0, max_depth: 5}}",
    "catboost": "{estimator: catboost, params: {iterations: 100, early_stopping_rounds: 0, depth: 5}}",
}
#: model → changes of the config
MODELS = {
    "boosting": BOOSTING,
    "uncompiled": UNCOMPILED,
    **{name: (f"candidates=[{candidate}]",) for name, candidate in SAME_SIZE.items()},
}


@dataclass(frozen=True)
class Sample:
    """A champion in a store.

    Attributes:
        name: of the model.
        release: its directory.
        model: scikit-learn's own estimator, by joblib, as the peers load it.
        rows: JSON rows to ask for, as many of each label as there are, to 100.
        labels: scikit-learn's answers to them.
    """

    name: str
    release: Path
    model: Path
    rows: list[dict[str, object]]
    labels: list[str]


def environment(store: Path) -> dict[str, str]:
    return {**os.environ, **TELEMETRY_OFF, "TOWLINE_STORE": str(store), "TOWLINE_PROJECT": str(PROJECT)}


def train(store: Path, name: str, changes: tuple[str, ...]) -> Sample:
    """Runs the pipeline of the bank sample with these changes."""
    settings = (f"name={name}", *CUT, *changes)
    words = [word for setting in settings for word in ("--set", setting)]
    command = [TOWLINE, "run", "configs/bank_subscription.yaml", "--json", *words]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment(store), capture_output=True, text=True, check=False, timeout=600
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    release = store / json.loads(done.stdout)["release"]
    estimator = load(release)
    table = pd.read_parquet(TABLE)
    model = store / f"{name}.joblib"
    joblib.dump(estimator, model)
    contract = contract_of(release)
    answers = estimator.predict(contract.features(table))
    chosen = np.sort(np.concatenate([np.flatnonzero(answers == label)[:100] for label in contract.classes]))
    picked = table.iloc[chosen][[column.name for column in contract.input_columns]]
    return Sample(name, release, model, json.loads(picked.to_json(orient="records")), list(answers[chosen]))


def load(release: Path) -> Any:
    """scikit-learn's estimator out of a release, which answers with labels and needs no towline to be unpickled."""
    model = model_io.load_model(release / "model.skops", ("sklearn.ensemble",))
    pipeline = model.pipeline
    pipeline[-1].classes_ = np.array(model.classes)[model.positions_]
    if model.threshold is None:
        return pipeline
    answering = FixedThresholdClassifier(
        pipeline, threshold=model.threshold, pos_label=model.positive, response_method="predict_proba"
    )
    answering.estimator_ = pipeline
    return answering


def contract_of(release: Path) -> Contract:
    return Contract.model_validate_json((release / "contract.json").read_bytes())


def key(store: Path) -> str:
    """An API key of the services on this store."""
    command = [TOWLINE, "keys", "create", "bench", "--json"]
    done = subprocess.run(command, cwd=PROJECT, env=environment(store), capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)["key"])


def stop_servers(store: Path) -> None:
    """Ends the Prefect server that training started for this store."""
    subprocess.run([TOWLINE, "ui", "--stop"], cwd=PROJECT, env=environment(store), capture_output=True, check=False)
