"""A small run of each task, packaged once for all tests that use it."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from towline.config import PipelineConfig, Settings, build_config
from towline.data import splits
from towline.data.schema.inference import infer_contract
from towline.data.source import sources
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace, open_workspace
from towline.provenance import Provenance
from towline.release.packaging import Release, package_release
from towline.training.calibration import Calibration
from towline.training.evaluation.holdout import Evaluation, evaluate
from towline.training.final_fit import FittedModel, fit, refit
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.result import TrainingResult

BOOSTING = {"max_iter": 30, "early_stopping": False, "max_leaf_nodes": 31}  # no variants are compared
DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@dataclass(frozen=True)
class TrainedRun:
    """The results of the steps before packaging."""

    work: Workspace
    config: PipelineConfig
    settings: Settings
    fitted: FittedModel
    evaluation: Evaluation
    scores: tuple[CrossValidationResult, ...]
    validation: Validation

    def package(self, version: int = 3) -> Release:
        result = TrainingResult(
            candidates=self.scores, model=self.fitted, evaluation=self.evaluation, validation=self.validation
        )
        provenance = Provenance(
            run_key=self.work.run_key(self.config), created="2026-03-01T12:00:00+00:00", actor="ann", trigger="manual",
            git_commit="0" * 40, git_dirty="false",
        )  # fmt: skip
        return package_release(self.work, self.config, version, result, provenance)


def make_house_table(rows: int = 400) -> pd.DataFrame:
    """Numbers, a null, a category with an unusual name, a boolean, times; a value and a label that depend on them."""
    rng = np.random.default_rng(5)
    size, kind = rng.normal(50, 10, rows), rng.choice(["a|b", "<b>c</b>", "d"], rows)
    value = 3 * size + 20 * (kind == "d") + rng.normal(0, 4, rows)
    return pd.DataFrame(
        {
            "at": pd.date_range("2025-01-01", periods=rows, freq="3h"),
            "size": np.where(rng.random(rows) < 0.05, np.nan, size),
            "a `kind`, of sorts": kind,
            "doors": rng.integers(1, 9, rows),
            "sunny": rng.random(rows) < 0.5,
            "value": value,
            "sold": np.where(value + rng.normal(0, 20, rows) > 160, "yes", "no"),
        }
    )


def train_run(
    folder: Path,
    frame: pd.DataFrame,
    estimator: str = "boosting",
    *,
    params: Mapping[str, object] | None = None,
    calibration: Calibration | None = None,
    **data: object,
) -> TrainedRun:
    folder.mkdir(parents=True, exist_ok=True)
    params = params or (BOOSTING if estimator == "boosting" else {})
    frame.to_parquet(folder / "table.parquet", index=False)
    raw = {
        **{section: data.pop(section) for section in ("split", "features", "lookups", "privacy") if section in data},
        "name": "house-value",
        "description": "Made for <script>alert(1)</script> tests.",
        "data": {"source": "table.parquet", **data},
        "candidates": [{"estimator": estimator, "params": params}],
        "evaluation": {"resamples": 50},
    }
    config = build_config(raw, "test")
    settings = Settings(project=folder, store=folder / "store", tracking_uri="", ledger_url="")
    dataset = sources.load_dataset(config.data, folder, settings.store, None)
    work = open_workspace(config, dataset, folder, settings.store, None)
    contract = infer_contract(work.table(), config, dataset.formats, lookups=work.lookups(config))
    work.save("contract.json", contract)
    work.save("split.json", splits.split_table(work, config))
    metrics = {"mae": 4.0} if contract.task == "regression" else {"roc_auc": 0.8}
    candidate = config.candidates[0]
    chosen = CrossValidationResult(
        candidate=candidate.name, estimator=candidate.estimator, params=candidate.params, folds=(metrics,),
        mean=metrics, sd=dict.fromkeys(metrics, 0.1), threshold=0.4 if contract.task == "binary" else None,
        seconds=1.0, cpu_seconds=1.0, calibration=calibration,
    )  # fmt: skip
    measured = fit(work, config, chosen)
    evaluation = evaluate(work, config, measured)
    fitted = refit(work, config, chosen, measured)
    work.file("plots").mkdir()
    work.file("plots/fold_scores.png").write_bytes(DOT)
    validation = Validation(rules=(), notes=("column x < y",), failed=0, warned=0, docs="data_docs.html")
    return TrainedRun(work, config, settings, fitted, evaluation, (chosen,), validation)


def train_regression(folder: Path) -> TrainedRun:
    """A run on a table of houses with boosted trees, split by time."""
    return train_run(folder, make_house_table().drop(columns="sold"), target="value", time="at")


def train_binary(folder: Path) -> TrainedRun:
    """A run on a table of houses with a linear classifier."""
    return train_run(folder, make_house_table().drop(columns=["value", "at"]), "linear", target="sold")
