"""All behaviour tests of a config: their check before training, and their run on the fitted model."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from towline.config import METRICS, BehaviourConfig, PipelineConfig, suggest
from towline.data.schema.columns import convert_column
from towline.data.schema.contract import Contract
from towline.data.source import formats
from towline.data.workspace import Workspace
from towline.errors import ConfigError, DataError
from towline.training import model_io
from towline.training.behaviour.expected_predictions import (
    check_expected,
    check_known_cases,
    find_class,
    read_known_cases,
)
from towline.training.behaviour.groups import PredictedHoldout, check_calibration, check_fairness
from towline.training.behaviour.model_under_test import ModelUnderTest
from towline.training.behaviour.results import BehaviourCheck
from towline.training.behaviour.sensitivity import check_direction, check_invariance, check_robustness
from towline.training.evaluation.bootstrap import draw_weights, resampling_units
from towline.training.evaluation.definitions import metric_error, metrics_of
from towline.training.evaluation.holdout import load_evaluation_predictions
from towline.training.final_fit import FittedModel

SELECTION_RATE = "selection_rate"


def run_behaviour_tests(
    work: Workspace, config: PipelineConfig, model: FittedModel, project: Path
) -> tuple[BehaviourCheck, ...]:
    """Runs all tests that ``behaviour`` declares.

    Changed rows are predicted by the model that is released. Calibration and fairness use the predictions of the
    evaluated model, which was not fitted on the holdout.

    Raises:
        ReleaseError: the stored model cannot be read.
        DataError: a file of known cases cannot be read.
    """
    behaviour, contract, holdout = config.behaviour, work.contract(), work.subset("holdout").rows
    rng = np.random.default_rng(config.seed)
    sample = np.sort(rng.permutation(len(holdout))[: behaviour.rows])
    fitted = model_io.load_model(work.file(model.file), model_io.trusted_packages(config))
    rows = holdout.iloc[sample].reset_index(drop=True)
    tested_model = ModelUnderTest(fitted, contract, rows, work.subset("train").rows)
    metrics = metrics_of(config, contract.task)
    checks = [
        *check_expected(behaviour.expect, tested_model),
        *(check_invariance(test, tested_model) for test in behaviour.invariance),
        *(check_direction(test, tested_model) for test in behaviour.directional),
    ]
    for cases in behaviour.known_cases:
        checks += check_known_cases(cases, read_known_cases(cases, project), tested_model, metrics)
    if behaviour.robustness:
        checks += check_robustness(behaviour.robustness, tested_model, config.seed)
    if behaviour.calibration or behaviour.fairness:
        predicted = _predicted_holdout(work, config, holdout)
        checks += [check_calibration(behaviour.calibration, predicted)] if behaviour.calibration else []
        by_name = {str(metric): metric for metric in metrics}
        for test in behaviour.fairness:
            checks += check_fairness(test, by_name.get(test.metric), predicted)
    return tuple(checks)


def _predicted_holdout(work: Workspace, config: PipelineConfig, rows: pd.DataFrame) -> PredictedHoldout:
    truth, predictions, _ = load_evaluation_predictions(work)
    units = resampling_units(rows, config)
    draws = draw_weights(len(rows), config.evaluation.resamples, config.seed, units)
    return PredictedHoldout(work.contract(), rows, truth, predictions, units, draws)


def check_files(behaviour: BehaviourConfig, project: Path) -> None:
    """Checks, before any data is loaded, that the files of known cases exist.

    Raises:
        ConfigError: a file is missing.
    """
    for number, cases in enumerate(behaviour.known_cases):
        where = f"behaviour.known_cases.{number}.file"
        try:
            formats.list_files(cases.file, project)
        except DataError as error:
            remedy = f"correct {where}, or put the file there; paths start at the project folder"
            raise ConfigError(f"{error.what}: {error.where}", where=where, remedy=remedy) from None


def check_with_contract(config: PipelineConfig, work: Workspace, project: Path) -> None:
    """Checks, before anything is fitted, that the tests fit the columns, the task and the classes of the table.

    Raises:
        ConfigError: an unknown column, class or metric, a value of the wrong type, or a test of another task.
    """
    behaviour, contract = config.behaviour, work.contract()
    if behaviour.is_empty:
        return
    known = work.dataset.columns
    for where, column in behaviour.columns:
        if column not in known:
            raise ConfigError(f"no column {column!r} in the table", where=where, remedy=suggest(column, known))
    _check_changed_columns(behaviour, contract)
    _check_expected_rows(behaviour, contract)
    _check_metrics(config, contract)
    if behaviour.calibration and contract.task == "regression":
        raise ConfigError(
            "a regression has no probabilities", where="behaviour.calibration", remedy="remove behaviour.calibration"
        )
    for number, cases in enumerate(behaviour.known_cases):
        _check_cases(f"behaviour.known_cases.{number}.file", read_known_cases(cases, project), contract)


def _check_changed_columns(behaviour: BehaviourConfig, contract: Contract) -> None:
    kinds = {column.name: column.kind for column in contract.columns}
    for number, invariance in enumerate(behaviour.invariance):
        where, kind = f"behaviour.invariance.{number}", kinds.get(invariance.column)
        if invariance.delta is not None and kind != "numeric":
            what = f"delta is for numbers, and {invariance.column!r} is {kind}"
            raise ConfigError(
                what, where=f"{where}.delta", remedy="remove delta: the other values that occur are tried"
            )
    for number, test in enumerate(behaviour.directional):
        where, kind = f"behaviour.directional.{number}", kinds.get(test.column)
        if kind != "numeric":
            what = f"a direction is for numbers, and {test.column!r} is {kind}"
            raise ConfigError(what, where=f"{where}.column", remedy="name a numeric column, or remove the test")
        if test.of is not None:
            _check_class(test.of, contract, f"{where}.of")
        elif contract.task == "multiclass":
            remedy = f"add of with one of {', '.join(map(str, contract.classes[:20]))}"
            raise ConfigError("the class of the direction is missing", where=f"{where}.of", remedy=remedy)


def _check_class(value: Any, contract: Contract, where: str) -> None:
    if contract.task == "regression":
        raise ConfigError("a regression has no classes", where=where, remedy=f"remove {where}")
    if find_class(value, contract) is None:
        raise ConfigError(
            f"no class {value!r} in the target", where=where, remedy=suggest(str(value), map(str, contract.classes))
        )


def _check_expected_rows(behaviour: BehaviourConfig, contract: Contract) -> None:
    columns = {column.name: column for column in contract.columns}
    for number, test in enumerate(behaviour.expect):
        where = f"behaviour.expect.{number}"
        for name, value in test.row.items():
            if name not in columns:
                what, remedy = f"no column {name!r} in the table", suggest(name, columns)
                raise ConfigError(what, where=f"{where}.row", remedy=remedy)
            column = columns[name]
            if column.role == "target":
                raise ConfigError(
                    f"{name!r} is the target", where=f"{where}.row", remedy="remove it: use equals or between"
                )
            values = pd.Series([value], dtype=object)
            if column.kind != "ignore" and len(convert_column(values, column.kind, column.format)[1]):
                what = f"{value!r} is not a value of {name!r}, which is {column.kind}"
                raise ConfigError(what, where=f"{where}.row.{name}", remedy="correct the value")
        if test.between and contract.task != "regression":
            remedy = f"use equals with a class, or probability, e.g. probability: {{{contract.classes[0]}: 0.8}}"
            raise ConfigError(
                "between is for a number, and the target is a class", where=f"{where}.between", remedy=remedy
            )
        for label in test.probability:
            _check_class(label, contract, f"{where}.probability.{label}")
        if test.equals is not None and contract.task != "regression":
            _check_class(test.equals, contract, f"{where}.equals")
        elif isinstance(test.equals, str | bool):
            what = f"equals is {test.equals!r}, and the target is a number"
            raise ConfigError(what, where=f"{where}.equals", remedy="give a number, and a tolerance")


def _check_metrics(config: PipelineConfig, contract: Contract) -> None:
    suitable = {*METRICS[contract.task], *(metric.name for metric in config.evaluation.custom)}
    named = [
        (f"behaviour.known_cases.{number}.{side}.{metric}", metric)
        for number, cases in enumerate(config.behaviour.known_cases)
        for side, bounds in (("min", cases.min), ("max", cases.max))
        for metric in bounds
    ]
    for number, test in enumerate(config.behaviour.fairness):
        where = f"behaviour.fairness.{number}.metric"
        if test.metric == SELECTION_RATE and contract.task != "binary":
            remedy = f"the task is {contract.task}: use one of {', '.join(METRICS[contract.task])}"
            raise ConfigError("selection_rate is for two classes", where=where, remedy=remedy)
        if test.metric != SELECTION_RATE:
            named.append((where, test.metric))
    for where, metric in named:
        if metric not in suitable:
            raise metric_error(where, metric, contract.task)


def _check_cases(where: str, rows: pd.DataFrame, contract: Contract) -> None:
    """Reads the cases through the contract, as the test after training does."""
    try:
        contract.features(rows)
        contract.labels(rows)
    except DataError as error:
        what = f"the known cases do not fit the table: {error.what}"
        raise ConfigError(what, where=where, remedy=error.remedy, details=error.details) from None
