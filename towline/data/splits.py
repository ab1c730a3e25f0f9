"""Splits of the table: the holdout, and the folds of cross-validation over the train part."""

import datetime as dt
import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from towline.config import Frozen, TrainingConfig
from towline.data.row_keys import mix_bits
from towline.data.schema.contract import Contract
from towline.data.snapshot import BATCH_ROWS, Table, take_rows
from towline.data.workspace import HOLDOUT_ALL, Workspace
from towline.errors import ConfigError, DataValidationError
from towline.files import write_arrays

Fold = tuple[np.ndarray, np.ndarray]
SampledBy = Literal["", "time", "class", "random"]


HOLDOUT_ROWS = 250_000  # of a larger holdout, which comparisons and intervals use; metrics are of all rows
MIN_DISTINCT = 0.5  # least share of rows with distinct features for which copies of a row are kept together


class SplitSummary(Frozen):
    """How the table was split.

    Attributes:
        train, holdout: rows of each part; ``train`` has at most ``data.train_rows``.
        train_available: rows of the train part before ``data.train_rows``.
        sampled_by: how the rows to train on were selected: the newest, a sample, or all rows.
        cut: the time (ISO) at which the holdout of a split by time begins.
        copies: of a random split: whether rows with equal features are in the same part, or are drawn one by one.
    """

    by: Literal["time", "random"]
    train: int
    holdout: int
    cut: str | None
    copies: Literal["together", "apart"] = "together"
    train_available: int | None = None
    sampled_by: SampledBy = ""

    def describe_training_rows(self) -> str:
        """The rows to train on: ``800 rows``, or ``2,000,000 of 48,000,000 rows (the newest)``."""
        if not self.sampled_by:
            return f"{self.train:,} rows"
        how = {"time": "the newest", "class": "a sample by class", "random": "a sample"}[self.sampled_by]
        return f"{self.train:,} of {self.train_available:,} rows ({how})"


def split_table(work: Workspace, config: TrainingConfig) -> SplitSummary:
    """Splits the table; saves the positions of both parts (``split.npz``) and their sizes (``split.json``).

    A split by time holds out the newest rows: a share of the rows, or those younger than a duration. A random split
    depends on a seeded hash of each row's features (or its group, if it has one), not of its target: a row stays in
    its part if rows are added or shuffled, and copies of a row are in the same part. If most rows share their features
    with another row, as in a table of a few categories, each copy is drawn on its own. Rows with the same time or
    group are always in one part; in a split by time, older rows of a group in the holdout are left out of both parts.

    Raises:
        DataValidationError: one part would be empty.
    """
    rows, contract, data = work.columns(), work.contract(), config.data
    order = np.argsort(rows[data.time].to_numpy(), kind="stable") if data.time else np.arange(len(rows))
    by, cut, copies = "random", None, "together"
    if config.by_time and data.time:
        times = rows[data.time].iloc[order]
        start = _holdout_start(times, config.split.holdout)
        by, cut = "time", times.iloc[start].isoformat()
        train, holdout = _purge_groups(rows, config, order[:start], order[start:])
    else:
        codes = np.zeros(len(rows)) if contract.task == "regression" else contract.class_codes(rows[data.target])
        names = [name for name in rows.columns if name != data.target]
        hashes = _hash_units(rows, config.seed, names, data.group)
        if not data.group and len(np.unique(hashes)) < MIN_DISTINCT * len(rows):
            hashes, copies = _number_copies(hashes), "apart"
        in_holdout = _draw_holdout(hashes, codes, _holdout_share(config))[order]
        train, holdout = order[~in_holdout], order[in_holdout]
    if not len(train) or not len(holdout):
        raise DataValidationError(
            f"the {'holdout' if len(train) else 'train part'} would be empty",
            where=f"split by {by}" + (f", whole groups of {data.group!r}" if data.group else ""),
            remedy="give more distinct rows or groups, or another split.holdout or split.by",
        )
    parts, sampled_by = _sample_parts(rows, contract, config, train, holdout)
    write_arrays(work.file("split.npz"), **{name: part.astype(np.int64) for name, part in parts.items()})
    work.save_parts()
    summary = SplitSummary(
        by=by,
        train=len(parts["train"]),
        holdout=len(holdout),
        cut=cut,
        copies=copies,
        train_available=len(train),
        sampled_by=sampled_by,
    )
    work.save("split.json", summary)
    return summary


def _sample_parts(
    rows: Table, contract: Contract, config: TrainingConfig, train: np.ndarray, holdout: np.ndarray
) -> tuple[dict[str, np.ndarray], SampledBy]:
    """The positions of ``split.npz``, and how the rows to train on are selected.

    Args:
        rows: the table.
        contract: of the table.
        config: names the time column and the largest number of rows.
        train: positions of the train part, ordered by time if there is one.
        holdout: positions of the holdout, in the same order.
    """
    limit, every = config.data.train_rows, len(train) + len(holdout)
    parts: dict[str, np.ndarray] = {"train": train, "holdout": holdout}
    if (limit is None or every <= limit) and len(holdout) <= HOLDOUT_ROWS:
        return parts, ""
    codes = None if contract.task == "regression" else contract.class_codes(rows[config.data.target])
    if len(holdout) > HOLDOUT_ROWS:
        parts |= {"holdout": _draw_by_class(holdout, codes, HOLDOUT_ROWS, config.seed), HOLDOUT_ALL: holdout}

    def select(positions: np.ndarray) -> np.ndarray:
        if limit is None or len(positions) <= limit:
            return positions
        if config.data.time:
            return _keep_classes(positions, codes, limit)
        return _draw_by_class(positions, codes, limit, config.seed)

    parts["train"] = select(train)
    if config.refits and limit is not None and every > limit:
        together = np.concatenate([train, holdout])
        if config.data.time:
            times = rows[config.data.time].to_numpy()[together]
            if (times[1:] < times[:-1]).any():
                together = together[np.argsort(times, kind="stable")]
        parts["all"] = select(together)
    if len(parts["train"]) == len(train):
        return parts, ""
    return parts, "time" if config.data.time else "random" if codes is None else "class"


def _keep_classes(positions: np.ndarray, codes: np.ndarray | None, limit: int) -> np.ndarray:
    """The last positions, and the last two before them of a class that they lack."""
    newest, older = positions[-limit:], positions[:-limit]
    if codes is None:
        return newest
    counts = np.bincount(codes[newest], minlength=codes.max() + 1)
    rare = np.flatnonzero(counts < 2)
    added = [older[codes[older] == code][-2:] for code in rare]
    return np.concatenate([*added, newest]) if added else newest


def _draw_by_class(positions: np.ndarray, codes: np.ndarray | None, limit: int, seed: int) -> np.ndarray:
    """A seeded sample in which classes have the shares that they have in all rows, but at least two rows each.

    Args:
        positions: to draw from.
        codes: of the classes of all rows; None: there are no classes.
        limit: size of the sample.
        seed: of the sample.

    Returns:
        The sample in the order of the positions.
    """
    keys = np.random.default_rng(seed).random(len(positions))
    if codes is None:
        selected = np.argpartition(keys, limit)[:limit]
    else:
        share, drawn = limit / len(positions), []
        for code in np.unique(codes[positions]):
            members = np.flatnonzero(codes[positions] == code)
            size = min(len(members), max(2, round(share * len(members))))
            drawn.append(members[np.argsort(keys[members])[:size]])
        selected = np.concatenate(drawn)
    return np.asarray(positions[np.sort(selected)])


def _holdout_start(times: pd.Series, holdout: float | dt.timedelta) -> int:
    """The position in sorted times at which the holdout begins."""
    starts = _distinct_starts(times)
    if isinstance(holdout, dt.timedelta):
        return int((times <= times.iloc[-1] - holdout).sum())
    return _nearest_start(starts, len(times) * (1 - holdout))


def _holdout_share(config: TrainingConfig) -> float:
    share = config.split.holdout
    if isinstance(share, dt.timedelta):
        what = "a random split cannot hold out a duration"
        raise ConfigError(what, where="split.holdout", remedy="give a share, such as 0.2")
    return share


def is_held_out(
    features: Table,
    seed: int,
    share: float,
    copies: Literal["together", "apart"] = "together",
    names: Sequence[str] | None = None,
    group: str | None = None,
) -> np.ndarray:
    """(n,) whether a random split with this seed and share holds out each row.

    The few rows that were moved to have each class in both parts are not known here.

    Args:
        features: the columns that were hashed: all columns but the target; the group alone if all rows have one. All
            rows of the table if copies are drawn apart.
        seed: of the split.
        share: of the rows that is held out.
        copies: ``SplitSummary.copies`` of the split.
        names: of the columns, if the features have others too.
        group: the column with the groups, if whole groups were held out.
    """
    hashes = _hash_units(features, seed, names, group)
    return _is_below(hashes if copies == "together" else _number_copies(hashes), share)


def sample_positions(positions: np.ndarray, rows: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """At most ``rows`` of the positions, in order: a seeded sample.

    Args:
        positions: to draw from.
        rows: size of the sample.
        seed: of the sample.
        labels: (n,) classes (object) of all rows: if the sample has fewer than two rows of a class, two are added.
    """
    if len(positions) <= rows:
        return positions
    sample = np.random.default_rng(seed).choice(positions, rows, replace=False)
    if labels is not None and labels.dtype == object:
        classes, counts = labels[positions], Counter(labels[sample])
        rare = sorted((label for label in set(classes) if counts[label] < 2), key=str)
        added = [positions[np.flatnonzero(classes == label)[:2]] for label in rare]
        sample = np.unique(np.concatenate([sample, *added]))
    return np.sort(sample)


def make_folds(rows: pd.DataFrame, labels: np.ndarray, config: TrainingConfig) -> list[Fold]:
    """Positions of (training rows, test rows) for each fold of the train part.

    In a split by time the window expands: each fold is trained on all rows before its test rows. Rows with the same
    time are in one fold; few distinct times give fewer folds. In a random split the folds are shuffled by the seed,
    stratified by class, with whole groups.

    Args:
        rows: the raw rows of the train part, n of them.
        labels: (n,) target values; object for classification.
        config: number of folds, seed, time and group column.

    Returns:
        The folds. A fold may lack classes; one with fewer than two classes to learn from is left out.

    Raises:
        DataValidationError: there are too few rows, times or groups, or fewer than two folds have two classes.
    """
    count = config.cross_validation.folds
    if len(rows) < count:
        raise _too_few_folds(f"{len(rows)} training rows", count)
    folds = _expanding_folds(rows, config, count) if config.by_time else _shuffled_folds(rows, labels, config, count)
    classes = labels.dtype == object
    usable = [
        (train, test) for train, test in folds if len(test) and (len(set(labels[train])) > 1 if classes else len(train))
    ]
    if len(usable) < 2:
        what = f"{len(usable)} of {len(folds)} folds have training rows" + (" of two classes" if classes else "")
        raise _fold_error(what, by_time=config.by_time)
    return usable


def _too_few_folds(what: str, count: int, *, by_time: bool = False) -> DataValidationError:
    return _fold_error(f"{what}: fewer than {count} folds", by_time=by_time)


def _fold_error(what: str, *, by_time: bool) -> DataValidationError:
    # fewer folds by time seldom help if classes or times occur for a while only
    first = "set split.by: random, " if by_time else ""
    remedy = f"{first}lower cross_validation.folds or give more rows"
    return DataValidationError(what, where="cross_validation.folds", remedy=remedy)


def _expanding_folds(rows: pd.DataFrame, config: TrainingConfig, count: int) -> list[Fold]:
    times = rows[config.data.time]
    order = np.argsort(times.to_numpy(), kind="stable")
    starts = _distinct_starts(times.iloc[order])
    cuts = sorted({_nearest_start(starts, len(rows) * fold / (count + 1)) for fold in range(1, count + 1)})
    if len(cuts) < 2:
        raise _too_few_folds(f"{len(starts) + 1} distinct times with {len(cuts)} possible cuts", 2, by_time=True)
    ends = [*cuts[1:], len(rows)]
    return [_purge_groups(rows, config, order[:start], order[start:end]) for start, end in zip(cuts, ends, strict=True)]


def _shuffled_folds(rows: pd.DataFrame, labels: np.ndarray, config: TrainingConfig, count: int) -> list[Fold]:
    group = config.data.group
    groups = group_codes(rows[group]) if group else None
    if groups is not None and groups.max() + 1 < count:
        raise _too_few_folds(f"{groups.max() + 1} groups of {group!r}", count)
    if labels.dtype != object:
        plain = KFold if groups is None else GroupKFold
        folds = list(plain(count, shuffle=True, random_state=config.seed).split(rows, groups=groups))
        return folds if group else _keep_copies_together(folds, rows, config)
    codes, classes = pd.factorize(labels)
    sizes = np.bincount(codes)
    if sizes.max() < count:
        raise _too_few_folds(f"class {classes[sizes.argmax()]!r}, the largest, has {sizes.max()} training rows", count)
    stratified = StratifiedKFold if groups is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer rows than folds; validation names them
        folds = list(stratified(count, shuffle=True, random_state=config.seed).split(rows, codes, groups))
    return folds if group else _keep_copies_together(folds, rows, config)


def _keep_copies_together(folds: list[Fold], rows: pd.DataFrame, config: TrainingConfig) -> list[Fold]:
    """The folds, with rows of equal features in the fold of the first of them, as ``split_table`` keeps them together.

    A model that has learned one copy would else predict the other from memory, and the folds would prefer it.
    """
    hashes = hash_rows(rows, config.seed, [name for name in rows.columns if name != config.data.target])
    _, first, copies = np.unique(hashes, return_index=True, return_inverse=True)
    if len(first) == len(rows) or len(first) < MIN_DISTINCT * len(rows):
        return folds
    numbers = np.empty(len(rows), dtype=np.int64)
    for number, (_, test) in enumerate(folds):
        numbers[test] = number
    numbers = numbers[first][copies]
    return [(np.flatnonzero(numbers != number), np.flatnonzero(numbers == number)) for number in range(len(folds))]


def _distinct_starts(times: pd.Series) -> np.ndarray:
    """The positions in sorted times at which a new time begins, without the first."""
    if times.isna().any():
        what = f"{int(times.isna().sum())} rows have no time"
        raise DataValidationError(what, where=f"column {times.name!r}", remedy="leave them out")
    values = times.to_numpy()
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    if not len(starts):
        remedy = "set split.by: random, or give rows of several times"
        raise DataValidationError("all rows have the same time", where=f"column {times.name!r}", remedy=remedy)
    return starts


def _nearest_start(starts: np.ndarray, target: float) -> int:
    return int(starts[np.abs(starts - target).argmin()])


def group_codes(groups: pd.Series) -> np.ndarray:
    """(n,) the number of each row's group, from 0; a row without a group is a group of its own."""
    codes = pd.factorize(groups)[0]
    alone = codes < 0
    codes[alone] = np.arange(codes.max(initial=-1) + 1, codes.max(initial=-1) + 1 + alone.sum())
    return codes


def _purge_groups(rows: Table, config: TrainingConfig, older: np.ndarray, newer: np.ndarray) -> Fold:
    """Both positions, without older rows of a group that occurs in the newer ones."""
    if config.data.group:
        groups = group_codes(rows[config.data.group])
        older = older[~np.isin(groups[older], groups[newer])]
    return older, newer


def _is_below(hashes: np.ndarray, share: float) -> np.ndarray:
    """(n,) whether each hash is in the lowest share of all possible values."""
    return np.asarray(hashes < np.uint64(int(share * 2**64)))


def _number_copies(hashes: np.ndarray) -> np.ndarray:
    """Another hash for each copy of a row, by its number among the copies."""
    numbers = pd.Series(hashes).groupby(hashes).cumcount().to_numpy(np.uint64)
    return mix_bits(hashes + numbers * np.uint64(0x9E3779B97F4A7C15))


def _draw_holdout(hashes: np.ndarray, codes: np.ndarray, share: float) -> np.ndarray:
    """(n,) whether each row is held out; each class (``codes``) with two distinct hashes gets one in either part."""
    in_holdout = _is_below(hashes, share)
    for code in np.unique(codes):
        in_class = codes == code
        distinct = np.unique(hashes[in_class])
        if in_holdout[in_class].all():
            in_holdout[hashes == distinct[-1]] = False
        if len(distinct) > 1 and not in_holdout[in_class].any():
            in_holdout[hashes == distinct[0]] = True
    return in_holdout


def _hash_units(rows: Table, seed: int, names: Sequence[str] | None, group: str | None) -> np.ndarray:
    """(n,) hash of each row's group; of the named columns if there are no groups, or if the row has none."""
    if group is None:
        return hash_rows(rows, seed, names)
    hashes = hash_rows(rows, seed, [group])
    alone = np.flatnonzero(rows[group].isna())
    if len(alone):
        hashes[alone] = hash_rows(take_rows(rows, alone, names), seed, names)
    return hashes


def hash_rows(rows: Table, seed: int, names: Sequence[str] | None = None) -> np.ndarray:
    """(n,) uint64 hash of each row's values; independent of the order of columns and rows and of integer dtypes.

    Args:
        rows: n rows.
        seed: of the hash.
        names: of the columns; None: all.
    """
    total = np.zeros(len(rows), dtype=np.uint64)
    for name in rows.columns if names is None else names:
        values = rows[name]
        salt = np.frombuffer(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], np.uint64)[0]
        for start in range(0, len(values), BATCH_ROWS):
            part = values.iloc[start : start + BATCH_ROWS]
            mixed = mix_bits(pd.util.hash_array(_plain_values(part)) ^ salt)
            mixed[part.isna().to_numpy()] = 0
            total[start : start + BATCH_ROWS] += mixed
    return mix_bits(total)


def _plain_values(values: pd.Series) -> np.ndarray:
    """Times as whole numbers, numbers as floats, and other values as objects."""
    if values.dtype.kind == "M":
        return values.to_numpy("datetime64[us]").view(np.int64)
    if values.dtype.kind in "biuf":
        return np.asarray(values.to_numpy(np.float64) + 0.0)  # integers become floats if a later table has a null
    return np.asarray(values.astype(object).where(values.notna(), "").to_numpy())
