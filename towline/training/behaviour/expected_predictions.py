"""Expected predictions for single rows, and the least quality on files of known cases."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from towline.config import ExpectedPrediction, KnownCases, finite_or_none
from towline.data.schema.columns import to_frame
from towline.data.schema.contract import Contract, Label
from towline.data.schema.values import AFFIRMATIVE, NEGATIVE, fold_case
from towline.data.source import formats
from towline.training.behaviour.model_under_test import ModelUnderTest
from towline.training.behaviour.results import BehaviourCheck
from towline.training.evaluation.definitions import Metric
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import encode_labels


def find_class(value: Label, contract: Contract) -> Label | None:
    """The class that a value of the config names; None if there is none. YAML reads a bare ``yes`` as true.

    Example:
        >>> find_class(True, Contract(target="y", task="binary", columns=(), classes=("no", "yes")))
        'yes'
    """
    position = int(contract.class_of([contract.target_column.reader.spell(value)])[0])
    if position < 0 and (isinstance(value, bool) or value in ("true", "false")):
        words = AFFIRMATIVE if value in (True, "true") else NEGATIVE
        position = next((i for i, label in enumerate(contract.classes) if fold_case(str(label)) in words), -1)
    return contract.classes[position] if position >= 0 else None


def expected_rows(tests: tuple[ExpectedPrediction, ...], model: ModelUnderTest) -> pd.DataFrame:
    """The rows of the tests, with the typical value in each column that a test leaves out."""
    typical = model.typical_row()
    return pd.DataFrame([{**typical, **test.row} for test in tests], dtype=object)


def check_expected(tests: tuple[ExpectedPrediction, ...], model: ModelUnderTest) -> Iterator[BehaviourCheck]:
    """One check for each expected prediction."""
    if not tests:
        return
    predictions = model.predict(expected_rows(tests, model))
    for number, test in enumerate(tests):
        name, answer = f"expect {test.name or number + 1}", predictions.labels[number]
        if test.probability:
            shares = predictions.probabilities
            chances = (
                np.eye(len(model.contract.classes))[encode_labels(predictions.labels, model.contract.classes)][number]
                if shares is None
                else shares[number]
            )
            yield _check_probabilities(name, test, chances, model.contract)
        elif test.between:
            low, high = test.between
            detail = f"predicts {answer:.4g}, expected {low:.4g} to {high:.4g}"
            outcome = "pass" if low <= answer <= high else "fail"
            yield BehaviourCheck(name=name, outcome=outcome, detail=detail, value=finite_or_none(answer))
        elif model.contract.classes:
            expected = find_class(test.equals, model.contract) if test.equals is not None else None
            outcome = "pass" if answer == expected else "fail"
            yield BehaviourCheck(name=name, outcome=outcome, detail=f"predicts {answer}, expected {expected}")
        else:
            number_ = float(test.equals or 0)
            tolerance = f" ± {test.tolerance:.4g}" if test.tolerance else ""
            detail = f"predicts {answer:.6g}, expected {number_:.6g}{tolerance}"
            outcome = "pass" if abs(answer - number_) <= test.tolerance else "fail"
            yield BehaviourCheck(name=name, outcome=outcome, detail=detail, value=finite_or_none(answer))


def _check_probabilities(
    name: str, test: ExpectedPrediction, chances: np.ndarray, contract: Contract
) -> BehaviourCheck:
    parts, passed = [], True
    for label, least in test.probability.items():
        class_ = find_class(label, contract)
        chance = float(chances[contract.classes.index(class_)]) if class_ is not None else float("nan")
        passed &= chance >= least
        parts.append(f"the probability of {class_} is {chance:.4g}, at least {least:.4g}")
    return BehaviourCheck(name=name, outcome="pass" if passed else "fail", detail="; ".join(parts))


def read_known_cases(cases: KnownCases, project: Path) -> pd.DataFrame:
    """The rows of a file of known cases.

    Raises:
        DataError: the file is missing or malformed.
    """
    tables = [formats.read_file(path, None) for path in formats.list_files(cases.file, project)]
    return pd.concat([to_frame(table.replace_schema_metadata(None)) for table in tables], ignore_index=True)


def check_known_cases(
    cases: KnownCases, rows: pd.DataFrame, model: ModelUnderTest, metrics: tuple[Metric, ...]
) -> Iterator[BehaviourCheck]:
    """One check for each bound on a file of known cases."""
    truth, predictions = model.contract.labels(rows), model.predict(rows)
    values = compute_metrics(truth, predictions, model.contract, metrics=metrics)
    for side, bounds in (("min", cases.min), ("max", cases.max)):
        for metric, bound in bounds.items():
            value = values[metric]
            passed = value >= bound if side == "min" else value <= bound  # NaN fails
            yield BehaviourCheck(
                name=f"known cases {Path(cases.file).name} {metric}",
                outcome="pass" if passed else "fail",
                detail=f"{metric} {value:.4g} on {len(rows):,} known cases, at {'least' if side == 'min' else 'most'} "
                f"{bound:.4g}",
                value=finite_or_none(value),
                bound=bound,
            )
