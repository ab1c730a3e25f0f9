"""Predictions of real models with late labels, in the format of the prediction log."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from tests.support.releases import TrainedRun, train_run
from towline.data.schema.contract import Contract
from towline.inference.predictor import open_release
from towline.manifest import MANIFEST, describe_files, read_manifest
from towline.monitoring.results import DriftCheckResult, DriftResult
from towline.training.model_selection.cross_validation import cross_validate

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
TIME = pa.timestamp("us", "UTC")


def package_release(
    folder: Path, frame: pd.DataFrame, estimator: str = "boosting", **data: object
) -> tuple[TrainedRun, Path]:
    """A release with stored out-of-fold predictions."""
    run = train_run(folder, frame, estimator, **data)
    cross_validate(run.work, run.config, run.config.candidates[0])
    return run, run.settings.store / run.package().path


def log_predictions(release: Path, rows: pd.DataFrame, truth: Any, **changes: Any) -> pa.Table:
    """The log of a service that predicted these rows, one per hour, with labels a day later, in the format of
    ``labels.read``.

    Args:
        release: predicts the rows.
        rows: with every feature.
        truth: (n,) labels; None is unknown.
        changes: columns that replace those of the log.
    """
    contract = Contract.model_validate_json((release / "contract.json").read_bytes())
    model = open_release(release)
    answers = model.predict_frame(model.to_features(rows))
    n = len(rows)
    columns: dict[str, Any] = {
        "request_id": [f"r{row}" for row in range(n)],
        "row": pa.array([0] * n, pa.int32()),
        "time": pa.array([START + row * HOUR for row in range(n)], TIME),
        "version": pa.array([read_manifest(release).version] * n, pa.int32()),
        "model": [read_manifest(release).name] * n,
    }
    for column in contract.feature_columns:
        columns[f"input.{column.name}"] = pa.Array.from_pandas(rows[column.name])
    columns["prediction"] = answers.labels.tolist()
    probabilities = answers.probabilities
    columns["probabilities"] = pa.array(
        [None] * n if probabilities is None else probabilities.tolist(), pa.list_(pa.float64())
    )
    columns["label"] = [None if value is None else value for value in np.asarray(truth, dtype=object).tolist()]
    columns["labelled_at"] = pa.array([START + row * HOUR + 24 * HOUR for row in range(n)], TIME)
    return pa.table({**columns, **changes})


def sign_release(release: Path) -> Path:
    """The changed release with a new manifest that matches its files, in another folder."""
    changed = read_manifest(release).model_copy(update={"files": {}})
    (release / MANIFEST).unlink()
    (release / MANIFEST).write_text(changed.model_copy(update={"files": describe_files(release)}).text())
    return release.rename(release.with_name("changed"))


def keep_private(release: Path, **columns: str) -> Path:
    """The release with another logging policy for these columns."""
    path = release / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "privacy": {"columns": columns}}))
    return sign_release(release)


def make_drift(state: Any, *columns: str) -> DriftResult:
    checks = tuple(
        DriftCheckResult(column=name, name="distribution", value=1.0, threshold=0.5, alarm=True) for name in columns
    )
    return DriftResult(state=state, version=3, rows=500, checks=checks, budget=4.0, reason=f"it is {state}")


def shuffle_values(values: Any, share: float) -> np.ndarray:
    """The values, of which this share is shuffled."""
    rng = np.random.default_rng(0)
    shuffled = np.array(values, dtype=object)
    some = rng.random(len(shuffled)) < share
    shuffled[some] = rng.permutation(shuffled[some])
    return shuffled
