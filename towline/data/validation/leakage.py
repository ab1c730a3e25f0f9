"""Target leaks: columns that contain the target, or that are known only after it.

There are six kinds: a copy of the target, also in another order-preserving scale; columns whose sum is exactly the
target, or a total of which the target is a part; a column that has values, or nulls, for one class only; one column
that predicts the target almost perfectly; and two that may be legitimate: a strong column, which predicts it very well,
and a dominant one, which predicts it as well as all others together. All are measured on a seeded sample, and every
score is cross-fitted: no row is predicted by a mean that includes it.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from towline.config import Frozen
from towline.data.date_features import compute_ages
from towline.data.schema.contract import Contract
from towline.data.snapshot import Table, take_rows
from towline.processes import thread_pools

SAMPLE_ROWS = 20_000
MAX_CELLS = 8_000_000  # of the sample: a wide table has fewer rows
FOLDS = 3
BINS = 64
COPY_CORRELATION = 0.9999  # least |Pearson| of a copy
EXTREME_SHARE = 0.01  # rows without which a copy, or the R² of a column alone, must hold too
MIN_EXTREMES = 5
MAX_TERMS = 3  # of a sum whose weights differ
COPY_LEVELS = 20  # least distinct values of a copy in another scale
CHANCE = 1e-6  # largest probability that the values of a legitimate column are in rows of one class only
# least score of a column that is a leak, and of a strong one, as the list price of a house that is sold
LEAK_SCORE = {"regression": 0.995, "binary": 0.999, "multiclass": 0.995}
LEAK_EXPLAINED = 0.85  # least share of the classes' variance that a leak explains: a high AUC of a rare class is easy
STRONG_SCORE = {"regression": 0.98, "binary": 0.995, "multiclass": 0.985}
MAY_BE_HONEST = ("strong", "dominant")  # kinds of leaks that are warnings

# a dominant column has a score of at least DOMINANT_SCORE. Its gain over chance is DOMINANT_GAIN times that of the
# second best column. It leaves at most MAX_UNEXPLAINED times the error of all other columns together, which have at
# least OTHERS_SCORE: if they explain little, a single good column is nothing unusual
DOMINANT_SCORE = {"R²": 0.8, "AUC": 0.75}
DOMINANT_GAIN = 1.5
MAX_UNEXPLAINED = 1.05
OTHERS_SCORE = {"R²": 0.3, "AUC": 0.65}
MAX_OTHERS = 100  # only the best ones: more cost time and add little


class Leak(Frozen):
    """Columns that leak the target; ``score`` is R² for regression, the mean one-vs-rest AUC for classes."""

    columns: tuple[str, ...]
    kind: Literal["copy", "sum", "nulls", "alone", "strong", "dominant"]
    score: float
    detail: str

    @property
    def may_be_legitimate(self) -> bool:
        """Whether a legitimate column can have such a score, so that it causes a warning and no refusal."""
        return self.kind in MAY_BE_HONEST


class _SampleColumn(NamedTuple):
    """One column of the sample.

    Attributes:
        values: (n,) float64; NaN for null.
        can_leak: False for the time of a row, which is known when its prediction is made.
    """

    name: str
    values: np.ndarray
    numeric: bool
    can_leak: bool


class _LeakageSample(NamedTuple):
    """The sampled rows.

    Attributes:
        target: (n,) values, or class numbers.
        truth: (n, k) the values, or an indicator for each class of at least ten rows; scores are computed from it.
        trained: (n,) bool: False for rows of smaller classes.
        fold: (n,) fold of each row.
        measure: R² or AUC.
    """

    columns: list[_SampleColumn]
    target: np.ndarray
    truth: np.ndarray
    trained: np.ndarray
    fold: np.ndarray
    measure: str


@np.errstate(all="ignore")
def find_leaks(table: Table, contract: Contract, seed: int) -> tuple[Leak, ...]:
    """Finds columns that leak the target.

    Args:
        table: the table with the target; rows without a target are left out.
        contract: roles and kinds of its columns; only features are examined.
        seed: of the sample and the folds.

    Returns:
        The leaks, at most one for each column. Empty if there are fewer than 20 rows, or fewer than two classes of ten
        rows: scores would be random.
    """
    rng = np.random.default_rng(seed)
    positions = np.flatnonzero(table[contract.target].notna())
    if len(positions) < 20 or not contract.feature_columns:
        return ()
    size = min(len(positions), SAMPLE_ROWS, max(2_000, MAX_CELLS // len(contract.feature_columns)))
    rows = take_rows(table, positions[np.sort(rng.choice(len(positions), size, replace=False))])
    labels = contract.labels(rows)
    classes, codes = np.unique(labels.astype(str) if labels.dtype == object else labels, return_inverse=True)
    regression = contract.task == "regression"
    counts = np.bincount(codes, minlength=1)
    if len(classes) < 2 or (not regression and (counts >= 10).sum() < 2):
        return ()
    # two classes need one indicator only
    truth = labels.astype(float)[:, None] if regression else np.eye(len(classes))[codes][:, counts >= 10]
    sample = _LeakageSample(
        columns=_columns(rows, contract),
        target=labels if regression else codes,
        truth=truth[:, :1] if contract.task == "binary" else truth,
        trained=np.ones(size, dtype=bool) if regression else counts[codes] >= 10,
        fold=_folds(codes, rng),
        measure="R²" if regression else "AUC",
    )
    columns = [column for column in sample.columns if column.can_leak]
    if regression:
        copies = [_affine_copy(c, labels) or _monotone_copy(c, labels) for c in columns]
    else:
        copies = [_renamed_copy(c, codes) or _class_of_nulls(c, codes, classes) for c in columns]
    leaks = {leak.columns[0]: leak for leak in copies if leak}
    if regression and (leak := _find_sum([c for c in columns if c.name not in leaks], labels, contract.target)):
        leaks |= dict.fromkeys(leak.columns, leak)
    scores, explained = dict[str, float](), dict[str, float]()
    for column in columns:
        if column.name not in leaks:  # the parts of a date share a name
            means = _bin_means(column, sample)
            score = _score_alone(column, means, sample)
            scores[column.name] = max(scores.get(column.name, 0.0), score)
            explained[column.name] = max(explained.get(column.name, 0.0), _explained_share(means, sample))
    for name, score in scores.items():
        if score >= STRONG_SCORE[contract.task]:
            is_leak = score >= LEAK_SCORE[contract.task] and (regression or explained[name] >= LEAK_EXPLAINED)
            kind: Literal["alone", "strong"] = "alone" if is_leak else "strong"
            detail = f"predicts the target alone: {sample.measure} {score:.4f}"
            leaks[name] = Leak(columns=(name,), kind=kind, score=score, detail=detail)
    with thread_pools().limit(limits=1, user_api="openmp"):
        leak = _find_dominant({name: score for name, score in scores.items() if name not in leaks}, sample, seed)
    if leak:
        leaks[leak.columns[0]] = leak
    return tuple(dict.fromkeys(leaks.values()))


def _columns(rows: pd.DataFrame, contract: Contract) -> list[_SampleColumn]:
    features = contract.features(rows)
    columns = []
    for column in contract.feature_columns:
        values, can_leak = features[column.name], column.role != "time"
        if column.kind == "text":  # only its nulls are examined
            columns.append(_SampleColumn(column.name, np.where(values.isna(), np.nan, 0.0), False, can_leak))
        elif column.kind == "datetime":
            parts = [getattr(values.dt, part).to_numpy(float) for part in column.calendar]
            columns += [_SampleColumn(column.name, part, False, can_leak) for part in parts]
        elif column.kind == "category":
            codes = pd.factorize(values)[0].astype(float)
            columns.append(_SampleColumn(column.name, np.where(codes < 0, np.nan, codes), False, can_leak))
        else:
            numbers = values.to_numpy(float)
            columns.append(_SampleColumn(column.name, np.where(np.isinf(numbers), np.nan, numbers), True, can_leak))
    reference = contract.age_reference
    times = None if reference is None else features[reference].to_numpy()
    columns += [
        _SampleColumn(column.name, compute_ages(features[column.name].to_numpy(), times), True, True)
        for column in contract.age_columns
    ]
    return [column for column in columns if not np.isnan(column.values).all()]


def _folds(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fold of each row, stratified by the target's value."""
    shuffled = rng.permutation(len(codes))
    fold = np.empty(len(codes), dtype=int)
    fold[shuffled[np.argsort(codes[shuffled], kind="stable")]] = np.arange(len(codes)) % FOLDS
    return fold


def _affine_copy(column: _SampleColumn, target: np.ndarray) -> Leak | None:
    """A column that is the target, or a linear function of it."""
    known = ~np.isnan(column.values)
    x, y = column.values[known], target[known]
    if known.sum() < 20 or not np.ptp(x) or not np.ptp(y):
        return None
    score, typical = _correlation(x, y), _typical_rows(x, y)
    if score >= COPY_CORRELATION and np.ptp(y[typical]) and not np.array_equal(x, y):
        score = min(score, _correlation(x[typical], y[typical]) if np.ptp(x[typical]) else 0.0)
    detail = "equals the target" if np.array_equal(x, y) else f"is the target on another scale: |r| {score:.6f}"
    return Leak(columns=(column.name,), kind="copy", score=score, detail=detail) if score >= COPY_CORRELATION else None


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """|Pearson| of two columns that are not constant."""
    # scaled first: squares of the smallest floats are 0, of the largest ones infinite
    return abs(float(np.corrcoef(x / np.abs(x).max(), y / np.abs(y).max())[0, 1]))


def _typical_rows(*columns: np.ndarray) -> np.ndarray:
    """(n,) bool: False for the rows with the values farthest from the median of a column.

    A placeholder such as 9999999 in two columns, or the largest values of a heavy tail, give a correlation of nearly 1
    whatever the other rows are.
    """
    typical = np.ones(len(columns[0]), dtype=bool)
    count = max(MIN_EXTREMES, math.ceil(EXTREME_SHARE * len(typical)))
    for values in columns:
        typical[np.argsort(-np.abs(values - np.nanmedian(values)), kind="stable")[:count]] = False  # null sorts last
    return typical


def _monotone_copy(column: _SampleColumn, target: np.ndarray) -> Leak | None:
    """A number in the same or the reverse order as the target, such as its logarithm or its rank."""
    known = ~np.isnan(column.values)
    x, y = column.values[known], target[known]
    if not column.numeric or known.sum() < 20 or min(len(np.unique(x)), len(np.unique(y))) < COPY_LEVELS:
        return None
    score = abs(float(np.corrcoef(rankdata(x), rankdata(y))[0, 1]))
    if score >= COPY_CORRELATION:
        detail = f"has the order of the target, as its logarithm would: rank correlation {score:.6f}"
    elif _rises_with(x, y) or _rises_with(x, -y):
        score, detail = 1.0, "has the order of the target, as its rank would"
    else:
        return None
    return Leak(columns=(column.name,), kind="copy", score=score, detail=detail)


def _rises_with(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether y never falls in the order of x; in that of y where x is equal."""
    ordered = y[np.lexsort((y, x))]
    return bool((ordered[1:] >= ordered[:-1]).all())


def _class_of_nulls(column: _SampleColumn, codes: np.ndarray, classes: np.ndarray) -> Leak | None:
    """A column whose values, or whose nulls, occur in one class only: it is filled in after the event."""
    null = np.isnan(column.values)
    for rows, word in ((~null, "values"), (null, "nulls")):
        inside = np.unique(codes[rows])
        share = float(np.mean(codes == inside[0])) if len(inside) == 1 else 1.0
        if share <= 0.5 and share ** rows.sum() < CHANCE:
            detail = f"has {word} in rows of class {str(classes[inside[0]])[:40]} only"
            return Leak(columns=(column.name,), kind="nulls", score=1 - share, detail=detail)
    return None


def _renamed_copy(column: _SampleColumn, codes: np.ndarray) -> Leak | None:
    """A column with one value for each class."""
    classes = int(codes.max()) + 1
    levels, level = np.unique(column.values, return_inverse=True)
    if len(levels) != classes or len(np.unique(level * classes + codes)) != classes:
        return None
    return Leak(columns=(column.name,), kind="copy", score=1.0, detail="each of its values means one class")


def _find_sum(columns: Sequence[_SampleColumn], target: np.ndarray, target_name: str) -> Leak | None:
    """The fewest numeric columns whose weighted sum is the target, found by least squares and elimination."""
    columns = [c for c in columns if c.numeric and np.isnan(c.values).mean() < 0.1 and np.nanstd(c.values) > 0]
    if len(columns) < 2:
        return None
    table = np.column_stack([c.values for c in columns])
    complete = ~np.isnan(table).any(axis=1)
    table, y = table[complete], target[complete]
    if len(y) < 20 or not (table.std(axis=0).all() and y.std()):
        return None
    x, z = (table - table.mean(axis=0)) / table.std(axis=0), (y - y.mean()) / y.std()
    if not (np.isfinite(x).all() and np.isfinite(z).all()):  # values near the largest float
        return None
    first_rows = 2 * len(columns) + 200  # enough to solve for the weights
    selected = np.argsort(-np.abs(z @ x))[: len(z) // 3]

    def exact_weights(selection: np.ndarray, rows: int | None = first_rows) -> np.ndarray | None:
        solution: np.ndarray = np.linalg.lstsq(x[:rows, selection], z[:rows], rcond=None)[0]
        exact = np.abs(x[:rows, selection] @ solution - z[:rows]).max() <= 1e-6
        return solution if exact else None

    weights = exact_weights(selected)
    if weights is None:
        return None
    order = np.argsort(np.abs(weights))
    selected = selected[order][np.abs(weights[order]) > 1e-6]
    if len(selected) > 30:  # not a short sum
        return None
    for column in selected:
        if len(selected) > 1 and exact_weights(fewer := selected[selected != column]) is not None:
            selected = fewer
    selected = np.sort(selected)
    weights = exact_weights(selected, None)
    if weights is None or len(selected) < 2:
        return None
    weights = weights * y.std() / table.std(axis=0)[selected]
    names = tuple(columns[i].name for i in selected)
    terms = [name if abs(w - 1) < 1e-6 else f"{w:.4g} × {name}" for name, w in zip(names, weights, strict=True)]
    constant = float(np.mean(y - table[:, selected] @ weights))
    terms += [f"{constant:.4g}"] if abs(constant) > 1e-6 * y.std() else []
    detail = f"{' + '.join(terms)} = {target_name}"
    leaking = _leaking_terms(names, weights)
    return Leak(columns=leaking, kind="sum", score=1.0, detail=detail) if leaking else None


def _leaking_terms(names: tuple[str, ...], weights: np.ndarray) -> tuple[str, ...]:
    """The terms of an exact sum that leak the target; none if it may be a formula of many columns.

    If all weights are equal but for their sign, the columns are the parts of a total or a mean, however many they are.
    If one of them is the total of which the target is a part, the other parts alone do not give the target away.
    """
    equal = np.allclose(np.abs(weights), np.abs(weights[0]), rtol=1e-4)
    if not equal or len(names) == 2:
        return names if len(names) <= MAX_TERMS else ()
    positive = np.flatnonzero(weights > 0)
    return (names[positive[0]],) if len(positive) == 1 else names


def _find_dominant(scores: dict[str, float], sample: _LeakageSample, seed: int) -> Leak | None:
    """The best single column, if it is far better than the second and as good as all others together."""
    measure, chance = sample.measure, 0.0 if sample.measure == "R²" else 0.5
    best, *names = sorted(scores, key=scores.__getitem__, reverse=True) or [""]
    if not names or scores[best] < DOMINANT_SCORE[measure]:
        return None
    others = [column for column in sample.columns if not column.can_leak or column.name in names[:MAX_OTHERS]]
    count = len({column.name for column in others})
    if scores[best] - chance < DOMINANT_GAIN * (scores[names[0]] - chance) or count < 3:
        return None
    others_score = _score(_predict_boosted(others, sample, seed), sample)
    if others_score < OTHERS_SCORE[measure] or 1 - scores[best] > MAX_UNEXPLAINED * (1 - others_score):
        return None
    detail = f"predicts as well alone ({measure} {scores[best]:.3f})"
    detail += f" as the other {count} columns together ({others_score:.3f})"
    return Leak(columns=(best,), kind="dominant", score=scores[best], detail=detail)


def _score_alone(column: _SampleColumn, means: np.ndarray, sample: _LeakageSample) -> float:
    """The score of a column by its bins or its order; a high R² must hold without the most extreme rows too."""
    score = max(_score(means, sample), _score_order(column, sample))
    if sample.measure != "R²" or score < STRONG_SCORE["regression"]:
        return score
    rows = _typical_rows(sample.target, *([column.values] if column.numeric else []))
    if not np.ptp(sample.target[rows]):
        return score
    names = ("target", "truth", "trained", "fold")
    typical = sample._replace(**{name: getattr(sample, name)[rows] for name in names})
    column = column._replace(values=column.values[rows])
    return min(score, max(_score(_bin_means(column, typical), typical), _score_order(column, typical)))


def _score_order(column: _SampleColumn, sample: _LeakageSample) -> float:
    """The score of a number's order alone, without bins, which are coarse in a small table; 0 for several classes."""
    known = ~np.isnan(column.values)
    if not column.numeric or sample.truth.shape[1] != 1 or known.sum() < 20:
        return 0.0
    values, truth = column.values[known], sample.truth[known, 0]
    if not np.ptp(values) or not np.ptp(truth):
        return 0.0
    if sample.measure == "R²":
        return _correlation(values, truth) ** 2
    positives = truth.sum()
    wins = (rankdata(values) * truth).sum() - positives * (positives + 1) / 2
    area = float(wins / (positives * (len(truth) - positives)))
    return max(area, 1 - area)


def _bin_means(column: _SampleColumn, sample: _LeakageSample) -> np.ndarray:
    """(n, k) mean of the target in the bin of each row over the other folds, shrunk by one row towards their mean."""
    known = column.values[~np.isnan(column.values)]
    levels = np.unique(known)
    if column.numeric and len(levels) > BINS:
        bins = int(np.clip(len(known) // 10, 2, BINS))
        levels = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[:-1]))
    bin_ = np.searchsorted(levels, column.values, side="right")  # null sorts last
    bin_[np.isnan(column.values)] = len(levels) + 1
    width = len(levels) + 2
    cell = sample.fold * width + bin_

    def sum_other_folds(weights: np.ndarray | None) -> np.ndarray:
        inside = np.bincount(cell, weights, FOLDS * width).reshape(FOLDS, width)
        return np.asarray(inside.sum(axis=0) - inside)

    rows = sum_other_folds(None)
    predicted = np.empty_like(sample.truth)
    for k in range(sample.truth.shape[1]):
        sums = sum_other_folds(sample.truth[:, k])
        mean = sums.sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True)
        predicted[:, k] = ((sums + mean) / (rows + 1)).ravel()[cell]
    return predicted


def _predict_boosted(columns: Sequence[_SampleColumn], sample: _LeakageSample, seed: int) -> np.ndarray:
    """(n, k) cross-fitted predictions of boosted trees on all columns."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    # null becomes a value below the least one, so that trees can separate it, also in a fold without other values
    x = np.column_stack([np.where(np.isnan(c.values), np.nanmin(c.values) - 1, c.values) for c in columns])
    predicted = np.zeros_like(sample.truth)
    for number in range(FOLDS):
        train, test = (sample.fold != number) & sample.trained, sample.fold == number
        settings = {"max_iter": 50, "early_stopping": False, "random_state": seed}
        if sample.measure == "R²":
            regressor = HistGradientBoostingRegressor(**settings).fit(x[train], sample.target[train])
            predicted[test, 0] = regressor.predict(x[test])
        else:
            classifier = HistGradientBoostingClassifier(**settings).fit(x[train], sample.target[train])
            predicted[test] = classifier.predict_proba(x[test])[:, : sample.truth.shape[1]]
    return predicted


def _explained_share(predicted: np.ndarray, sample: _LeakageSample) -> float:
    """R² of the values, or of the indicators of all classes together; 0 if it is not finite."""
    truth = sample.truth
    unexplained = ((truth - predicted) ** 2).sum() / ((truth - truth.mean(axis=0)) ** 2).sum()
    return float(1 - unexplained) if np.isfinite(unexplained) else 0.0


def _score(predicted: np.ndarray, sample: _LeakageSample) -> float:
    truth = sample.truth
    if sample.measure == "R²":
        return _explained_share(predicted, sample)
    # from the ranks of the positives (Mann-Whitney), for all classes at once
    ranks, positives = rankdata(predicted, axis=0), truth.sum(axis=0)
    wins = (ranks * truth).sum(axis=0) - positives * (positives + 1) / 2
    return float(np.mean(wins / (positives * (len(truth) - positives))))
