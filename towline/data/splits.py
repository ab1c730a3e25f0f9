"""The holdout and the folds: which rows a model may learn from."""

import datetime as dt
import hashlib
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from towline.config import Frozen, TrainingConfig
from towline.data.workspace import Workspace
from towline.errors import ConfigError, DataValidationError
from towline.files import write_arrays

Fold = tuple[np.ndarray, np.ndarray]


class SplitSummary(Frozen):
    """How the table was split: rows of each part, and the time (ISO) at which a time-split holdout begins."""

    by: Literal["time", "random"]
    train: int
    holdout: int
    cut: str | None


def split_table(work: Workspace, config: TrainingConfig) -> SplitSummary:
    """Sets the holdout apart and saves the positions of both parts (``split.npz``) and their sizes (``split.json``).

    By time the newest rows are held out: a share, or what is younger than a duration. At random a row's side hangs on
    a seeded hash of its content (or its group), so that it stays there when rows are added or shuffled, and copies of a
    row stay together. Rows of one timestamp or one group never straddle: by time, older rows of a held-out group are
    left out of both parts.

    Raises:
        DataValidationError: one part would be empty.
    """
    rows, contract, data = work.table(), work.contract(), config.data
    by: Literal["time", "random"] = "random" if config.split.by == "random" or not data.time else "time"
    order = np.argsort(rows[data.time].to_numpy(), kind="stable") if data.time else np.arange(len(rows))
    cut = None
    if by == "time":
        times = rows[data.time].iloc[order]
        start = _holdout_start(times, config.split.holdout)
        cut = times.iloc[start].isoformat()
        train, holdout = _purge_groups(rows, config, order[:start], order[start:])
    else:
        codes = np.zeros(len(rows)) if contract.task == "regression" else pd.factorize(contract.labels(rows))[0]
        units = hash_rows(rows[[data.group]] if data.group else rows, config.seed)
        held = _select_holdout(units, codes, _share(config))[order]
        train, holdout = order[~held], order[held]
    if not len(train) or not len(holdout):
        side = "holdout" if len(train) else "train part"
        raise DataValidationError(
            f"the {side} would be empty",
            where=f"split by {by}" + (f", groups of {data.group!r} whole" if data.group else ""),
            remedy="give more distinct rows or groups, or another split.holdout or split.by",
        )
    write_arrays(work.file("split.npz"), train=train.astype(np.int64), holdout=holdout.astype(np.int64))
    parts = SplitSummary(by=by, train=len(train), holdout=len(holdout), cut=cut)
    work.save("split.json", parts)
    return parts


def _holdout_start(times: pd.Series, holdout: float | dt.timedelta) -> int:
    """Where the holdout begins in sorted times: a share of the rows, or those younger than a duration."""
    starts = _distinct_starts(times)
    if isinstance(holdout, dt.timedelta):
        return int((times <= times.iloc[-1] - holdout).sum())
    return _nearest_start(starts, len(times) * (1 - holdout))


def _share(config: TrainingConfig) -> float:
    held = config.split.holdout
    if isinstance(held, dt.timedelta):
        raise ConfigError("a duration cannot be held out at random", where="split.holdout", remedy="give a share: 0.2")
    return held


def is_held_out(rows: pd.DataFrame, group: str | None, seed: int, share: float) -> np.ndarray:
    """Which rows (n,) a random split with this seed and share sets apart, in whatever table they stand.

    A row that was moved so that its class stands on both sides is not known here; there are a few at most.
    """
    threshold: np.ndarray = hash_rows(rows[[group]] if group else rows, seed) < np.uint64(int(share * 2**64))
    return threshold


def make_folds(rows: pd.DataFrame, labels: np.ndarray, config: TrainingConfig, parts_by: str) -> list[Fold]:
    """Positions of (training rows, test rows) for each fold over the train part.

    By time the window expands: each fold learns from all rows before its test rows, and rows of one timestamp are on
    one side; few distinct timestamps give fewer folds. At random they are shuffled by the seed, stratified for classes,
    whole for groups.

    Args:
        rows: the raw rows of the train part, n of them.
        labels: their target, shape (n,); object for classification.
        config: names the folds, the seed, and the time and group columns.
        parts_by: ``Parts.by`` of the split.

    Raises:
        DataValidationError: too few rows, timestamps, groups or rows of a class, or a fold's side that lacks classes.
    """
    count = config.cross_validation.folds
    if len(rows) < count:
        raise _too_few_folds(f"{len(rows)} training rows", count)
    made = _expanding_folds(rows, config, count) if parts_by == "time" else _shuffled_folds(rows, labels, config, count)
    classes = set(labels) if labels.dtype == object else set()
    for number, (train, test) in enumerate(made, 1):
        lacking = sorted(classes - set(labels[train]))
        fault = f"has no row of class {lacking[0]!r} to learn from" if lacking else ""
        fault = fault or ("" if len(train) else "has no row to learn from")
        fault = fault or ("is tested on rows of one class only" if classes and len(set(labels[test])) < 2 else "")
        if fault:
            raise _fold_error(f"fold {number} of {len(made)} {fault}", by_time=parts_by == "time")
    return made


def _too_few_folds(what: str, count: int, *, by_time: bool = False) -> DataValidationError:
    return _fold_error(f"{what}: fewer than {count} folds", by_time=by_time)


def _fold_error(what: str, *, by_time: bool) -> DataValidationError:
    # fewer folds by time seldom help where classes or times come and go
    first = "set split.by: random, " if by_time else ""
    remedy = f"{first}lower cross_validation.folds or give more rows"
    return DataValidationError(what, where="cross_validation.folds", remedy=remedy)


def _expanding_folds(rows: pd.DataFrame, config: TrainingConfig, count: int) -> list[Fold]:
    times = rows[config.data.time]
    order = np.argsort(times.to_numpy(), kind="stable")
    starts = _distinct_starts(times.iloc[order])
    cuts = sorted({_nearest_start(starts, len(rows) * fold / (count + 1)) for fold in range(1, count + 1)})
    if len(cuts) < 2:
        raise _too_few_folds(f"{len(starts) + 1} distinct times, from which {len(cuts)} can be cut", 2, by_time=True)
    ends = [*cuts[1:], len(rows)]
    return [_purge_groups(rows, config, order[:start], order[start:end]) for start, end in zip(cuts, ends, strict=True)]


def _shuffled_folds(rows: pd.DataFrame, labels: np.ndarray, config: TrainingConfig, count: int) -> list[Fold]:
    group = config.data.group
    groups = _group_codes(rows, group) if group else None
    if groups is not None and groups.max() + 1 < count:
        raise _too_few_folds(f"{groups.max() + 1} groups of {group!r}", count)
    if labels.dtype != object:
        plain = KFold if groups is None else GroupKFold
        return list(plain(count, shuffle=True, random_state=config.seed).split(rows, groups=groups))
    codes, classes = pd.factorize(labels)
    sizes = np.bincount(codes)
    if sizes.min() < count:
        raise _too_few_folds(f"class {classes[sizes.argmin()]!r} has {sizes.min()} training rows", count)
    stratified = StratifiedKFold if groups is None else StratifiedGroupKFold
    return list(stratified(count, shuffle=True, random_state=config.seed).split(rows, codes, groups))


def _distinct_starts(times: pd.Series) -> np.ndarray:
    """Where each distinct time but the first begins, in times that are sorted."""
    if times.isna().any():
        raise DataValidationError(
            f"{int(times.isna().sum())} rows have no time", where=f"column {times.name!r}", remedy="leave them out"
        )
    values = times.to_numpy()
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    if not len(starts):
        raise DataValidationError(
            "all rows have the same time",
            where=f"column {times.name!r}",
            remedy="set split.by: random, or give rows of several times",
        )
    return starts


def _nearest_start(starts: np.ndarray, target: float) -> int:
    return int(starts[np.abs(starts - target).argmin()])


def _group_codes(rows: pd.DataFrame, group: str) -> np.ndarray:
    return pd.factorize(rows[group], use_na_sentinel=False)[0]


def _purge_groups(rows: pd.DataFrame, config: TrainingConfig, older: np.ndarray, newer: np.ndarray) -> Fold:
    if config.data.group:
        groups = _group_codes(rows, config.data.group)
        older = older[~np.isin(groups[older], groups[newer])]
    return older, newer


def _select_holdout(units: np.ndarray, codes: np.ndarray, share: float) -> np.ndarray:
    """Units below the threshold are held out; then each class of two units or more gets one on either side."""
    held = units < np.uint64(int(share * 2**64))
    for code in np.unique(codes):
        own = codes == code
        distinct = np.unique(units[own])
        if held[own].all():
            held[units == distinct[-1]] = False
        if len(distinct) > 1 and not held[own].any():
            held[units == distinct[0]] = True
    return held


def hash_rows(rows: pd.DataFrame, seed: int) -> np.ndarray:
    """One uint64 a row: of its values, whatever the order of the columns, the rows, or an integer's dtype."""
    total = np.zeros(len(rows), dtype=np.uint64)
    for name in rows.columns:
        values = rows[name]
        if values.dtype.kind == "M":
            plain: np.ndarray = values.to_numpy("datetime64[us]").view(np.int64)
        elif values.dtype.kind in "biuf":
            plain = values.to_numpy(np.float64) + 0.0  # a null among later rows turns integers to floats
        else:
            plain = values.astype(object).where(values.notna(), "").to_numpy()
        salt = hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]
        mixed = _mix_bits(pd.util.hash_array(plain) ^ np.frombuffer(salt, np.uint64)[0])
        mixed[values.isna().to_numpy()] = 0
        total += mixed
    return _mix_bits(total)


def _mix_bits(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): spreads each bit over all."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: np.ndarray = bits ^ (bits >> np.uint64(31))
    return spread
