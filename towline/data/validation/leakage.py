"""Target leaks: columns which say what the target is before it could be known.

Four findings, from the plainest to the least plain: a copy of the target, an exact sum that makes it, one column that
predicts it almost perfectly alone, and one column that does as well as all the others together. All are measured on
a seeded sample, and every score is cross-fitted: a row is never predicted by a mean it is part of.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from towline.config import Frozen
from towline.data.schema.contract import Contract

SAMPLE = 20_000
CELLS = 8_000_000  # where the table is wide, fewer rows
FOLDS = 3
BINS = 64
COPY = 0.9999  # |Pearson|
ALONE = {"R²": 0.98, "AUC": 0.995}
STRONG = {"R²": 0.8, "AUC": 0.75}
INFORMED = {"R²": 0.3, "AUC": 0.65}  # where the others know less than this, a strong column is no surprise
APART = 1.5  # a dominant column gains this multiple of what the next best column gains over chance
COMPANY = 100  # of the others the best so many: more cost time and add little
SHORTFALL = 1.05  # a dominant column leaves at most this multiple of what the others leave unexplained


class Leak(Frozen):
    """Columns that give the target away; ``score`` is R² for regression, macro one-vs-rest AUC for classes."""

    columns: tuple[str, ...]
    kind: Literal["copy", "sum", "alone", "dominant"]
    score: float
    detail: str


class _Column(NamedTuple):
    name: str
    values: np.ndarray  # (n,) float64, NaN is null
    numeric: bool
    suspect: bool  # the time of a row is known when a prediction is asked for: it is company, never a suspect


class _LeakageSample(NamedTuple):
    columns: list[_Column]
    target: np.ndarray  # (n,) values, or class numbers
    truth: np.ndarray  # (n, k) what scores are of: the values, or an indicator for each class
    trained: np.ndarray  # (n,) bool; false for rows of tiny classes
    fold: np.ndarray  # (n,)
    measure: str  # R² or AUC


@np.errstate(all="ignore")
def find_leaks(rows: pd.DataFrame, contract: Contract, seed: int) -> tuple[Leak, ...]:
    """Looks for columns that leak the target.

    Args:
        rows: the table as read, target included; rows without a target are left out.
        contract: roles and kinds of its columns; only features are looked at.
        seed: draws the sample and the folds.

    Returns:
        The leaks, at most one for each column. Empty where fewer than 20 rows, or fewer than two classes of ten
        rows, make every score a matter of chance.
    """
    rng = np.random.default_rng(seed)
    rows = rows.iloc[np.flatnonzero(rows[contract.target].notna())]
    if len(rows) < 20 or not contract.feature_columns:
        return ()
    size = min(len(rows), SAMPLE, max(2_000, CELLS // len(contract.feature_columns)))
    rows = rows.iloc[np.sort(rng.choice(len(rows), size, replace=False))]
    labels = contract.labels(rows)
    classes, codes = np.unique(labels.astype(str) if labels.dtype == object else labels, return_inverse=True)
    regression = contract.task == "regression"
    counts = np.bincount(codes, minlength=1)
    if len(classes) < 2 or (not regression and (counts >= 10).sum() < 2):
        return ()
    # one indicator for each class of ten rows and more; one is enough for two classes
    truth = labels.astype(float)[:, None] if regression else np.eye(len(classes))[codes][:, counts >= 10]
    sample = _LeakageSample(
        columns=_columns(rows, contract),
        target=labels if regression else codes,
        truth=truth[:, :1] if contract.task == "binary" else truth,
        trained=np.ones(size, dtype=bool) if regression else counts[codes] >= 10,
        fold=_folds(codes, rng),
        measure="R²" if regression else "AUC",
    )
    suspects = [column for column in sample.columns if column.suspect]
    copies = [_affine_copy(c, labels) if regression else _renamed_copy(c, codes) for c in suspects]
    leaks = {leak.columns[0]: leak for leak in copies if leak}
    if regression and (leak := _sum([c for c in suspects if c.name not in leaks], labels, contract.target)):
        leaks |= dict.fromkeys(leak.columns, leak)
    alone: dict[str, float] = {}
    for column in suspects:
        if column.name not in leaks:  # a date has several parts
            alone[column.name] = max(alone.get(column.name, 0.0), _score(_bin_means(column, sample), sample))
    for name, score in alone.items():
        if score >= ALONE[sample.measure]:
            detail = f"predicts the target alone: {sample.measure} {score:.4f}"
            leaks[name] = Leak(columns=(name,), kind="alone", score=score, detail=detail)
    if leak := _dominant({name: score for name, score in alone.items() if name not in leaks}, sample, seed):
        leaks[leak.columns[0]] = leak
    return tuple(dict.fromkeys(leaks.values()))


def _columns(rows: pd.DataFrame, contract: Contract) -> list[_Column]:
    features = contract.features(rows)
    columns = []
    for column in contract.feature_columns:
        values, suspect = features[column.name], column.role != "time"
        if column.kind == "datetime":
            parts = [getattr(values.dt, part).to_numpy(float) for part in column.derive]
            columns += [_Column(column.name, part, False, suspect) for part in parts]
        elif column.kind == "category":
            codes = pd.factorize(values)[0].astype(float)
            columns.append(_Column(column.name, np.where(codes < 0, np.nan, codes), False, suspect))
        else:
            numbers = values.to_numpy(float)
            columns.append(_Column(column.name, np.where(np.isinf(numbers), np.nan, numbers), True, suspect))
    return [column for column in columns if not np.isnan(column.values).all()]


def _folds(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fold of each row, stratified by the target's value."""
    shuffled = rng.permutation(len(codes))
    fold = np.empty(len(codes), dtype=int)
    fold[shuffled[np.argsort(codes[shuffled], kind="stable")]] = np.arange(len(codes)) % FOLDS
    return fold


def _affine_copy(column: _Column, target: np.ndarray) -> Leak | None:
    known = ~np.isnan(column.values)
    x, y = column.values[known], target[known]
    if known.sum() < 20 or not np.ptp(x) or not np.ptp(y):
        return None
    # to scale: the squares of the smallest floats are 0, of the largest infinite
    score = abs(float(np.corrcoef(x / np.abs(x).max(), y / np.abs(y).max())[0, 1]))
    detail = "equals the target" if np.array_equal(x, y) else f"is the target on another scale: |r| {score:.6f}"
    return Leak(columns=(column.name,), kind="copy", score=score, detail=detail) if score >= COPY else None


def _renamed_copy(column: _Column, codes: np.ndarray) -> Leak | None:
    classes = int(codes.max()) + 1
    levels, level = np.unique(column.values, return_inverse=True)
    if len(levels) != classes or len(np.unique(level * classes + codes)) != classes:
        return None
    return Leak(columns=(column.name,), kind="copy", score=1.0, detail="each of its values stands for one class")


def _sum(columns: Sequence[_Column], target: np.ndarray, target_name: str) -> Leak | None:
    """Two or three numeric columns whose weighted sum is the target, by least squares and elimination."""
    columns = [c for c in columns if c.numeric and np.isnan(c.values).mean() < 0.1 and np.nanstd(c.values) > 0]
    if len(columns) < 2:
        return None
    table = np.column_stack([c.values for c in columns])
    whole = ~np.isnan(table).any(axis=1)
    table, y = table[whole], target[whole]
    if len(y) < 20 or not (table.std(axis=0).all() and y.std()):
        return None
    x, z = (table - table.mean(axis=0)) / table.std(axis=0), (y - y.mean()) / y.std()
    if not (np.isfinite(x).all() and np.isfinite(z).all()):  # values near the largest float
        return None
    enough = 2 * len(columns) + 200
    selected = np.argsort(-np.abs(z @ x))[: len(z) // 3]

    def weights(chosen: np.ndarray, rows: int | None = enough) -> np.ndarray | None:
        solved: np.ndarray = np.linalg.lstsq(x[:rows, chosen], z[:rows], rcond=None)[0]
        exact = np.abs(x[:rows, chosen] @ solved - z[:rows]).max() <= 1e-6
        return solved if exact else None

    solved = weights(selected)
    if solved is None:
        return None
    order = np.argsort(np.abs(solved))
    selected = selected[order][np.abs(solved[order]) > 1e-6]
    if len(selected) > 30:  # no short sum stands out of this many
        return None
    for column in selected:
        if len(selected) > 1 and weights(fewer := selected[selected != column]) is not None:
            selected = fewer
    selected = np.sort(selected)
    solved = weights(selected, None)
    if solved is None or not 2 <= len(selected) <= 3:
        return None
    raw = solved * y.std() / table.std(axis=0)[selected]
    names = tuple(columns[i].name for i in selected)
    terms = [one if abs(w - 1) < 1e-6 else f"{w:.4g} × {one}" for one, w in zip(names, raw, strict=True)]
    constant = float(np.mean(y - table[:, selected] @ raw))
    terms += [f"{constant:.4g}"] if abs(constant) > 1e-6 * y.std() else []
    return Leak(columns=names, kind="sum", score=1.0, detail=f"{' + '.join(terms)} = {target_name}")


def _dominant(alone: dict[str, float], sample: _LeakageSample, seed: int) -> Leak | None:
    """The best single column, where it stands apart from the next and does as well as all the others together."""
    measure, chance = sample.measure, 0.0 if sample.measure == "R²" else 0.5
    best, *others = sorted(alone, key=alone.__getitem__, reverse=True) or [""]
    if not others or alone[best] < STRONG[measure] or alone[best] - chance < APART * (alone[others[0]] - chance):
        return None
    company = [c for c in sample.columns if not c.suspect or c.name in others[:COMPANY]]
    if (together := len({c.name for c in company})) < 3:
        return None
    rest = _score(_boosted(company, sample, seed), sample)
    if rest < INFORMED[measure] or 1 - alone[best] > SHORTFALL * (1 - rest):
        return None
    detail = f"predicts as well alone ({measure} {alone[best]:.3f})"
    detail += f" as the other {together} columns together ({rest:.3f})"
    return Leak(columns=(best,), kind="dominant", score=alone[best], detail=detail)


def _bin_means(column: _Column, sample: _LeakageSample) -> np.ndarray:
    """(n, k) mean of the target in a row's bin, over the other folds, shrunk by one row towards their mean."""
    known = column.values[~np.isnan(column.values)]
    levels = np.unique(known)
    if column.numeric and len(levels) > BINS:
        bins = int(np.clip(len(known) // 20, 2, BINS))
        levels = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[:-1]))
    bin_ = np.searchsorted(levels, column.values, side="right")  # null sorts last
    bin_[np.isnan(column.values)] = len(levels) + 1
    width = len(levels) + 2
    cell = sample.fold * width + bin_

    def elsewhere(weights: np.ndarray | None) -> np.ndarray:
        inside = np.bincount(cell, weights, FOLDS * width).reshape(FOLDS, width)
        return np.asarray(inside.sum(axis=0) - inside)

    rows = elsewhere(None)
    predicted = np.empty_like(sample.truth)
    for k in range(sample.truth.shape[1]):
        sums = elsewhere(sample.truth[:, k])
        mean = sums.sum(axis=1, keepdims=True) / rows.sum(axis=1, keepdims=True)
        predicted[:, k] = ((sums + mean) / (rows + 1)).ravel()[cell]
    return predicted


def _boosted(columns: Sequence[_Column], sample: _LeakageSample, seed: int) -> np.ndarray:
    """(n, k) the same predictions from boosted trees on all the columns."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    # below the least value for null: the trees can split it off, and a column that is null in a fold is harmless
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


def _score(predicted: np.ndarray, sample: _LeakageSample) -> float:
    truth = sample.truth
    if sample.measure == "R²":
        share = ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
        return float(1 - share) if np.isfinite(share) else 0.0
    # the mean rank of the positives (Mann-Whitney): all classes at once, ties shared
    ranks, positives = rankdata(predicted, axis=0), truth.sum(axis=0)
    wins = (ranks * truth).sum(axis=0) - positives * (positives + 1) / 2
    return float(np.mean(wins / (positives * (len(truth) - positives))))
