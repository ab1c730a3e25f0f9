"""Trainings as the flow does them, in a folder that is thrown away: without Prefect, MLflow, a registry or a ledger."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

import towline
from towline.config import PipelineConfig, Settings
from towline.data import sources, splits
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace, open_workspace
from towline.errors import ConfigError, DataValidationError, TowlineError
from towline.inference.predictor import Model, open_release
from towline.manifest import ReleaseLocation
from towline.promotion.gate import Verdict
from towline.promotion.holdout_comparison import judge_release
from towline.release.packaging import package_release
from towline.release.smoke_test import SmokeTestResult
from towline.steps import step
from towline.training.cross_validation import (
    CrossValidationResult,
    baseline_candidate,
    check_candidates,
    choose_candidate,
    cross_validate,
)
from towline.training.evaluation.holdout import Evaluation, evaluate
from towline.training.final_fit import FittedModel, fit, refit
from towline.training.history import choose_history

ASKED = 20  # rows one by one, to know the time of one


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What a training came to; ``version`` counts within the replay."""

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
    def recorded(self) -> ReleaseLocation:
        """Its release, as a ledger would have recorded it."""
        return ReleaseLocation(self.release, self.model.metadata.digest)

    @property
    def learnt_to(self) -> pd.Timestamp:
        """The newest row that its table had."""
        return pd.Timestamp(str(self.work.dataset.end))


@dataclass(frozen=True)
class TrainingFailure:
    """Why a training came to nothing."""

    reason: str
    cpu_s: float


class Trainer:
    """Trains as of a moment, once however many policies ask for it.

    Args:
        config: what the user's flow would do.
        project: where relative paths start.
        scratch: an empty folder, thrown away by the caller.
    """

    def __init__(self, config: PipelineConfig, project: Path, scratch: Path) -> None:
        self.config = config
        self._settings = Settings(project=project, store=scratch, tracking_uri="", ledger_url="")
        self._done: dict[pd.Timestamp, TrainedModel | TrainingFailure] = {}
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
                remedy="leave them out",
            )
        return table.sort_values(time_, kind="stable").reset_index(drop=True)

    def train(self, as_of: pd.Timestamp) -> TrainedModel | TrainingFailure:
        """Load, split, cross-validate, choose, fit, evaluate, fit again and package, as of a moment.

        Raises:
            ConfigError: the config cannot be used whatever the rows are.
        """
        if as_of not in self._done:
            began = time.process_time()
            with step(f"train as of {as_of:%Y-%m-%d}") as told:
                made: TrainedModel | TrainingFailure
                try:
                    made = self._train(as_of, began)
                except ConfigError:
                    raise
                except TowlineError as error:
                    made = TrainingFailure(error.what, time.process_time() - began)
                told.note = made.reason if isinstance(made, TrainingFailure) else _told(made)
            self._done[as_of] = made
        return self._done[as_of]

    def judge(self, trained: TrainedModel, champion: TrainedModel | None) -> Verdict:
        """The gate, as it would judge this challenger against that champion."""
        key = trained.version, champion.version if champion else None
        if key not in self._verdicts:
            serving = (champion.version, champion.recorded) if champion else None
            self._verdicts[key] = judge_release(trained.work, self.config, trained.evaluation, trained.smoke, serving)
        return self._verdicts[key]

    def _train(self, as_of: pd.Timestamp, began: float) -> TrainedModel:
        config, settings = self.config, self._settings
        dataset = sources.load_dataset(config.data, settings.project, settings.store, as_of.to_pydatetime())
        work = open_workspace(config, dataset, settings.project, settings.store, as_of.to_pydatetime())
        if dataset.rows < config.validation.min_rows:
            raise DataValidationError(
                f"{dataset.rows:,} rows, {config.validation.min_rows:,} are needed",
                where=f"as of {as_of}",
                remedy="lower validation.min_rows, or begin later",
            )
        contract = infer_contract(work.table(), config, work.dataset.time_format)
        work.save(Contract.FILE, contract)
        check_candidates(config, contract)
        splits.split_table(work, config)
        scores: Sequence[CrossValidationResult] = [
            cross_validate(work, config, one) for one in (baseline_candidate(config), *config.candidates)
        ]
        chosen = choose_candidate(scores, config, contract.task)
        measured = fit(work, config, chosen, choose_history(work, config, chosen))
        evaluation = evaluate(work, config, measured)
        fitted = refit(work, config, chosen, measured)
        version = sum(isinstance(one, TrainedModel) for one in self._done.values()) + 1
        named = SimpleNamespace(name=config.name, version=version)
        facts = {
            "created": datetime.now(UTC).isoformat(), "git_commit": "", "git_dirty": "false",
            "towline": towline.__version__, "python": "",
        }  # fmt: skip
        checked = Validation(rules=(), notes=(), failed=0, warned=0, docs="")
        packed = package_release(work, config, settings, named, fitted, evaluation, scores, checked, facts)
        model = open_release(settings.layout.release(packed.path), digest=packed.digest)
        return TrainedModel(
            version=version,
            as_of=as_of,
            work=work,
            release=settings.layout.release(packed.path),
            model=model,
            fitted=fitted,
            evaluation=evaluation,
            smoke=_smoke(model, work),
            cpu_s=time.process_time() - began,
        )


def _smoke(model: Model, work: Workspace) -> SmokeTestResult:
    """What the smoke test would say, without a process of its own."""
    rows = work.part("holdout")[2].head(ASKED).astype(object)
    one_by_one = rows.where(rows.notna(), None).to_dict("records")
    times = []
    for row in one_by_one:
        begin = time.perf_counter()
        model.predict(row)
        times.append(1000 * (time.perf_counter() - begin))
    took = float(np.median(times))
    return SmokeTestResult(
        identical=True, rows=len(rows), latency_ms=took, seconds=0.0, peak_mb=0.0, modules=(), detail=""
    )


def _told(made: TrainedModel) -> str:
    found = made.evaluation.metrics[made.evaluation.primary]
    return f"{made.fitted.candidate}, {made.fitted.history}: {made.evaluation.primary} {found.text()} on the holdout"
