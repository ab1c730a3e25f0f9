"""Changed rows and their predictions: columns that must not matter, columns with a direction, and odd values."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from towline.config import DirectionalTest, InvarianceTest, RobustnessCase, RobustnessTest, finite_or_none
from towline.data.schema.contract import Column
from towline.data.schema.values import LARGEST
from towline.errors import DataError
from towline.formatting import shorten_list
from towline.training.behaviour.expected_predictions import find_class
from towline.training.behaviour.model_under_test import ModelUnderTest, largest_changes
from towline.training.behaviour.results import BehaviourCheck
from towline.training.user_code import describe_error

MAX_VALUES = 20  # other values of a column that each row gets
UNSEEN_CATEGORY = "a value that no row has"


def check_invariance(test: InvarianceTest, model: ModelUnderTest) -> BehaviourCheck:
    """Whether predictions stay within ``max_change`` when the column has each other value that occurs."""
    name, column = f"invariance {test.column}", model.column(test.column)
    if column is None:
        return BehaviourCheck(name=name, outcome="pass", detail=f"the model does not read {test.column}", value=0.0)
    before = model.responses(model.rows)
    changes = np.zeros(len(before))
    variants = list(_other_values(test, column, model))
    for rows in variants:
        change = largest_changes(before, model.responses(rows))
        changes = np.maximum(changes, np.where(np.isfinite(change), change, np.inf))
    what = f"± {test.delta:g}" if test.delta is not None else f"{len(variants)} values that occur"
    largest = f"the largest change is {changes.max():.4g}, accepted {test.max_change:.4g}"
    detail = f"{column.name} with {what}: {largest}"
    return _count_violations(name, changes > test.max_change, test.violations, detail)


def _other_values(test: InvarianceTest, column: Column, model: ModelUnderTest) -> Iterator[pd.DataFrame]:
    """The rows with each other value; a value equal to that of the row changes nothing."""
    if test.delta is not None:
        numbers = model.numbers(column, model.rows)
        for delta in (test.delta, -test.delta):
            yield model.with_values(column.name, numbers + delta)
        return
    frequent = model.train[column.name].dropna().value_counts().index[:MAX_VALUES]
    for value in frequent:
        yield model.with_values(column.name, value)


def check_direction(test: DirectionalTest, model: ModelUnderTest) -> BehaviourCheck:
    """Whether more of a column moves no prediction in the wrong direction."""
    name, column = f"directional {test.column}", model.column(test.column)
    if column is None:
        return BehaviourCheck(name=name, outcome="pass", detail=f"the model does not read {test.column}", value=0.0)
    contract, position, answer = model.contract, 0, "the prediction"
    if contract.classes:
        class_ = contract.positive if test.of is None else find_class(test.of, contract)
        position, answer = contract.classes.index(class_), f"the probability of {class_}"
    numbers = model.numbers(column, model.rows)
    increase = (model.responses(model.with_values(column.name, numbers + test.delta)) - model.responses(model.rows))[
        :, position
    ]
    wrong = -increase if test.must_not == "fall" else increase
    wrong = np.where(np.isfinite(wrong), wrong, np.inf)
    verb = "lowers" if test.must_not == "fall" else "raises"
    worst = max(0.0, float(wrong.max()))
    detail = f"{column.name} + {test.delta:g} {verb} {answer} by at most {worst:.4g}, accepted {test.tolerance:.4g}"
    return _count_violations(name, wrong > max(test.tolerance, 1e-12), test.violations, detail)


def _count_violations(name: str, violating: np.ndarray, accepted: float, detail: str) -> BehaviourCheck:
    count, share = int(violating.sum()), float(violating.mean())
    return BehaviourCheck(
        name=name,
        outcome="pass" if share <= accepted else "fail",
        detail=f"{count:,} of {len(violating):,} rows break it, accepted {accepted:.2%}; {detail}",
        value=share,
        bound=accepted,
    )


def check_robustness(test: RobustnessTest, model: ModelUnderTest, seed: int) -> Iterator[BehaviourCheck]:
    """One check for each case: finite predictions for odd values, changed by at most ``max_change``."""
    before = model.responses(model.rows)
    for case in test.cases:
        largest, worst, faults, count = 0.0, "", [], 0
        for label, rows in _odd_rows(case, test, model, seed):
            count += 1
            try:
                changes = largest_changes(before, model.responses(rows))
            except Exception as error:  # noqa: BLE001 - an estimator may raise anything
                reason = error.what if isinstance(error, DataError) else describe_error(error)
                faults.append(f"{label}: {reason}")
                continue
            if not np.isfinite(changes).all():
                faults.append(f"{label}: {int((~np.isfinite(changes)).sum()):,} predictions are not finite")
            elif changes.max() > largest:
                largest, worst = float(changes.max()), label
        yield _judge_case(case, test.max_change.get(case), (largest, worst), faults, count)


def _judge_case(
    case: RobustnessCase, bound: float | None, change: tuple[float, str], faults: list[str], count: int
) -> BehaviourCheck:
    largest, worst = change
    detail = f"{count} changes, all predictions are finite, the largest change is {largest:.4g}"
    detail += f" ({worst})" if worst else ""
    detail += f", accepted {bound:.4g}" if bound is not None else ""
    if faults:
        detail = shorten_list(faults, 5, "; ")
    if not count:
        detail = "no column of the model has such values"
    failed = bool(faults) or (bound is not None and largest > bound)
    return BehaviourCheck(
        name=f"robustness {case}",
        outcome="fail" if failed else "pass",
        detail=detail,
        value=finite_or_none(largest),
        bound=bound,
    )


def _odd_rows(
    case: RobustnessCase, test: RobustnessTest, model: ModelUnderTest, seed: int
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The changed rows of a case, with the name of what was changed."""
    columns = [column for column in model.contract.input_columns if column.role == "feature"]
    numeric = [column for column in columns if column.kind == "numeric"]
    if case == "nulls":
        for column in columns:
            yield f"{column.name} is null", model.with_values(column.name, None)
    elif case == "unseen":
        for column in columns:
            if column.kind in ("category", "text"):
                yield f"{column.name} is unseen", model.with_values(column.name, UNSEEN_CATEGORY)
    elif case == "out_of_range":
        for column in numeric:
            for value in _values_out_of_range(model.numbers(column, model.train)):
                yield f"{column.name} is {value:.4g}", model.with_values(column.name, value)
    elif fractional := [column for column in numeric if not column.integer]:
        rows = _perturb(model, fractional, test.noise, np.random.default_rng(seed))
        yield f"all fractional numbers ± {test.noise:g} standard deviations", rows


def _values_out_of_range(numbers: np.ndarray) -> tuple[float, float]:
    """A value far below all numbers, and one far above them."""
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    width = max(high - low, 1.0)
    return max(low - 10 * width, -LARGEST), min(high + 10 * width, LARGEST)


def _perturb(model: ModelUnderTest, columns: list[Column], noise: float, rng: np.random.Generator) -> pd.DataFrame:
    """The rows with numbers that are moved up or down by ``noise`` standard deviations of their column."""
    changed = model
    for column in columns:
        size = noise * np.nanstd(model.numbers(column, model.train))
        moved = model.numbers(column, model.rows) + rng.choice([-size, size], len(model.rows))
        changed = changed._replace(rows=changed.with_values(column.name, moved))
    return changed.rows
