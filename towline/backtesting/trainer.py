"""Trainings of a backtest: the steps of the training flow in a temporary folder, without Prefect, MLflow and ledger."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from towline.config import PipelineConfig, Settings
from towline.data import splits
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.source import sources
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace, open_workspace
from towline.errors import ConfigError, DataValidationError, TowlineError
from towline.inference.predictor import Model, open_release
from towline.manifest import ReleaseLocation
from towline.promotion.gate import Verdict
from towline.promotion.holdout_comparison import Champion, judge_release
from towline.provenance import Provenance
from towline.release.packaging import package_release
from towline.release.smoke_test import SmokeTestResult
from towline.steps import step
from towline.training.evaluation.holdout import Evaluation, evaluate
from towline.training.final_fit import FittedModel, fit, refit
from towline.training.history import choose_history
from towline.training.model_selection.budget import plan_fits
from towline.training.model_selection.cross_validation import (
    baseline_candidate,
    check_candidates,
    choose_candidate,
    cross_validate,
)
from towline.training.model_selection.ensembles import cross_validate_ensemble
from towline.training.result import TrainingResult

LATENCY_ROWS = 20  # predicted one by one to measure the latency


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """The result of a training; ``version`` counts within the backtest."""

    version: int
    as_of: pd.Timestamp
    work: Workspace
    release: Path
    model: Model
    fitted: FittedModel
    evaluation: Evaluation
    smoke: SmokeTestResult
    cpu_s: float

    @property
    def location(self) -> ReleaseLocation:
        return ReleaseLocation(self.release, self.model.metadata.digest)

    @property
    def trained_until(self) -> pd.Timestamp:
        """Time of the newest row of its table."""
        return pd.Timestamp(str(self.work.dataset.end))


@dataclass(frozen=True)
class TrainingFailure:
    """Why a training produced no model."""

    reason: str
    cpu_s: float


class Trainer:
    """Trains as of a time, once for all policies.

    Args:
        config: the user's config.
        project: folder that relative paths start from.
        scratch: an empty folder, which the caller removes.
    """

    def __init__(self, config: PipelineConfig, project: Path, scratch: Path) -> None:
        self.config = config
        self._settings = Settings(project=project, store=scratch, tracking_uri="", ledger_url="")
        self._trainings: dict[pd.Timestamp, TrainedModel | TrainingFailure] = {}
        self._verdicts: dict[tuple[int, int | None], Verdict] = {}

    def rows(self) -> pd.DataFrame:
        """All rows of the source, oldest first.

        Raises:
            DataError, ConfigError: the source cannot be read, or rows have no time.
        """
        data = self.config.data.model_copy(update={"window": (), "half_life": (), "detrend": ()})
        dataset = sources.load_dataset(data, self._settings.project, self._settings.store, None)
        table, time_ = sources.read_snapshot(dataset, self._settings.store), str(data.time)
        if table[time_].isna().any():
            raise DataValidationError(
                f"{int(table[time_].isna().sum())} rows have no time",
                where=f"column {time_!r}",
                remedy="remove these rows",
            )
        return table.sort_values(time_, kind="stable").reset_index(drop=True)

    def train(self, as_of: pd.Timestamp) -> TrainedModel | TrainingFailure:
        """Loads, splits, cross-validates, fits, evaluates and packages, as of a time.

        Raises:
            ConfigError: the config cannot be used with any rows.
        """
        if as_of not in self._trainings:
            started = time.process_time()
            with step(f"train as of {as_of:%Y-%m-%d}") as progress:
                training: TrainedModel | TrainingFailure
                try:
                    training = self._train(as_of, started)
                except ConfigError:
                    raise
                except TowlineError as error:
                    training = TrainingFailure(error.what, time.process_time() - started)
                progress.note = training.reason if isinstance(training, TrainingFailure) else _describe(training)
            self._trainings[as_of] = training
        return self._trainings[as_of]

    def judge(self, trained: TrainedModel, champion: TrainedModel | None) -> Verdict:
        """The gate's verdict on a challenger, computed once per pair."""
        key = trained.version, champion.version if champion else None
        if key not in self._verdicts:
            champion_release = Champion(champion.version, champion.location) if champion else None
            self._verdicts[key] = judge_release(
                trained.work, self.config, trained.evaluation, trained.smoke, champion_release
            )
        return self._verdicts[key]

    def _train(self, as_of: pd.Timestamp, started: float) -> TrainedModel:
        config, settings = self.config, self._settings
        dataset = sources.load_dataset(config.data, settings.project, settings.store, as_of.to_pydatetime())
        work = open_workspace(config, dataset, settings.project, settings.store, as_of.to_pydatetime())
        if dataset.rows < config.validation.min_rows:
            raise DataValidationError(
                f"{dataset.rows:,} rows, {config.validation.min_rows:,} are needed",
                where=f"as of {as_of}",
                remedy="lower validation.min_rows, or start later",
            )
        contract = infer_contract(work.table(), config, work.dataset.formats, work.lookups(config))
        work.save(Contract.FILE, contract)
        check_candidates(config, contract)
        splits.split_table(work, config)
        candidates = (baseline_candidate(config), *config.single_candidates)
        limits = plan_fits(work, config)
        scores = tuple(cross_validate(work, config, candidate, limits) for candidate in candidates)
        scores += tuple(cross_validate_ensemble(work, config, each, scores, limits) for each in config.ensembles)
        chosen = choose_candidate(scores, config, contract.task)
        measured = fit(work, config, chosen, choose_history(work, config, chosen))
        evaluation = evaluate(work, config, measured)
        fitted = refit(work, config, chosen, measured)
        version = sum(isinstance(training, TrainedModel) for training in self._trainings.values()) + 1
        result = TrainingResult(
            candidates=scores,
            model=fitted,
            evaluation=evaluation,
            validation=Validation(rules=(), notes=(), failed=0, warned=0, docs=""),
        )
        created = datetime.now(UTC).isoformat()
        provenance = Provenance(run_key=work.run_key(config), created=created, actor="", trigger="backtest")
        packed = package_release(work, config, version, result, provenance)
        model = open_release(settings.layout.release(packed.path), digest=packed.digest)
        return TrainedModel(
            version=version,
            as_of=as_of,
            work=work,
            release=settings.layout.release(packed.path),
            model=model,
            fitted=fitted,
            evaluation=evaluation,
            smoke=_measure_latency(model, work),
            cpu_s=time.process_time() - started,
        )


def _measure_latency(model: Model, work: Workspace) -> SmokeTestResult:
    """The result of a smoke test, measured in this process."""
    rows = work.subset("holdout").rows.head(LATENCY_ROWS).astype(object)
    times = []
    for row in rows.where(rows.notna(), None).to_dict("records"):
        start = time.perf_counter()
        model.predict(row)
        times.append(1000 * (time.perf_counter() - start))
    latency = float(np.median(times))
    return SmokeTestResult(
        identical=True, rows=len(rows), latency_ms=latency, seconds=0.0, peak_mb=0.0, modules=(), detail=""
    )


def _describe(trained: TrainedModel) -> str:
    fitted, evaluation = trained.fitted, trained.evaluation
    value = evaluation.metrics[evaluation.primary].text()
    return f"{fitted.candidate}, {fitted.history}: {evaluation.primary} {value} on the holdout"
