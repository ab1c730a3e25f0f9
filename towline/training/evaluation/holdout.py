"""How good the fitted model is on rows that nothing was chosen on: metrics with intervals, by slice, by column."""

import difflib
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from towline import files
from towline.config import GREATER_IS_BETTER, Frozen, Metric, Task, TrainingConfig
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.errors import ConfigError
from towline.training import model_io
from towline.training.cross_validation import primary_metric
from towline.training.evaluation.bootstrap import draw_weights, percentile_interval, resample_metric, resampling_units
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.evaluation.predictions import Interval, Predictions, decode_labels, encode_labels
from towline.training.final_fit import EVALUATION_PREDICTIONS, FittedModel

MIN_ROWS = 30  # of a slice: fewer say nothing
MAX_SLICES = 60
SLICE_RESAMPLES = 100
LEVELS = 20  # of a category that is sliced by without being asked for
INTEGERS = 12  # the same for whole numbers
PREDICTED_ROWS = 75_000  # budget of the permutation importance
PREDICTED_CELLS = 40_000_000


class SliceResult(Frozen):
    """The primary metric on the holdout rows with one value of one column, beside the baseline's."""

    column: str
    value: str
    rows: int
    metric: Interval
    baseline: float | None


class Evaluation(Frozen):
    """The model on the holdout.

    Attributes:
        metrics: each metric of the task with its interval.
        baseline: the same metrics of the baseline.
        slices: in the order of the columns, within one by value.
        importance: (column, mean loss of the primary metric when the column is shuffled, sd over the shuffles),
            largest first; positive means that the model rests on it.
        notes: what to know when reading the numbers.
    """

    task: Task
    primary: Metric
    rows: int
    metrics: dict[str, Interval]
    baseline: dict[str, float | None]
    slices: tuple[SliceResult, ...]
    importance: tuple[tuple[str, float, float], ...]
    notes: tuple[str, ...]


class SliceRows(NamedTuple):
    """The rows with one value of one column."""

    column: str
    value: str
    rows: np.ndarray  # positions


def evaluate(work: Workspace, config: TrainingConfig, fitted: FittedModel) -> Evaluation:
    """Measures the model and the baseline on the holdout; saves ``evaluation.json`` and ``holdout-predictions.npz``.

    Raises:
        ConfigError: ``evaluation.slices`` names a column that the table lacks, or the metric does not suit the task.
        ReleaseError: a stored model cannot be read.
    """
    contract = work.contract()
    features, truth, rows = work.subset("holdout")
    decisive = primary_metric(config, contract.task)
    places, slice_notes = find_slices(rows, contract, config)
    model = model_io.load_model(work.file(fitted.file), model_io.trusted_packages(config))
    drawn = resampling_units(rows, config)
    draws = draw_weights(len(rows), config.evaluation.resamples, config.seed, drawn)
    with warnings.catch_warnings(action="ignore"):  # the fit has noted what the libraries warn of
        answers = predict(model, features, contract)
        dummy = predict(model_io.load_model(work.file("baseline.skops")), features, contract)
        importance, importance_notes = _importance(model, features, truth, contract, decisive, config.seed)
    points = compute_metrics(truth, answers, contract)
    evaluation = Evaluation(
        task=contract.task,
        primary=decisive,
        rows=len(rows),
        metrics={
            name: percentile_interval(value, resample_metric(truth, answers, contract, name, draws))
            for name, value in points.items()
        },
        baseline={name: _finite(value) for name, value in compute_metrics(truth, dummy, contract).items()},
        slices=tuple(_slice(cut, truth, answers, dummy, contract, decisive, draws[:SLICE_RESAMPLES]) for cut in places),
        importance=importance,
        notes=_notes(points, truth, int(drawn.max()) + 1, config) + slice_notes + importance_notes,
    )
    work.save("evaluation.json", evaluation)
    _save_predictions(work, contract, truth, answers, dummy)
    return evaluation


def load_evaluation_predictions(work: Workspace) -> tuple[np.ndarray, Predictions, Predictions]:
    """Truth, the model's and the baseline's predictions on the holdout, as ``evaluate`` saved them."""
    contract = work.contract()
    with np.load(work.file(EVALUATION_PREDICTIONS), allow_pickle=False) as saved:
        content = {name: saved[name] for name in saved.files}
    for name in ("truth", "labels", "baseline_labels") if contract.classes else ():
        content[name] = decode_labels(content[name], contract.classes)
    return (
        content["truth"],
        Predictions(content["labels"], content.get("probabilities")),
        Predictions(content["baseline_labels"], content.get("baseline_probabilities")),
    )


def _save_predictions(
    work: Workspace, contract: Contract, truth: np.ndarray, answers: Predictions, dummy: Predictions
) -> None:
    content = {"truth": truth, "labels": answers.labels, "baseline_labels": dummy.labels}
    if contract.task != "regression":
        content = {name: encode_labels(labels, contract.classes) for name, labels in content.items()}
    for name, predictions in (("probabilities", answers), ("baseline_probabilities", dummy)):
        if predictions.probabilities is not None:
            content[name] = predictions.probabilities
    with files.replacing(work.file(EVALUATION_PREDICTIONS)) as file:
        np.savez(file, allow_pickle=False, **content)


def find_slices(
    rows: pd.DataFrame, contract: Contract, config: TrainingConfig
) -> tuple[tuple[SliceRows, ...], tuple[str, ...]]:
    """The slices to report by, each of 30 rows or more, and notes on what was left out.

    Columns are those of ``evaluation.slices``, else the features with few values and without personal data. Many
    numbers are cut at their quartiles, times by month.

    Raises:
        ConfigError: a configured column is not in the table.
    """
    slice_columns = config.evaluation.slices
    for name in slice_columns or ():
        if name not in rows.columns:
            near = difflib.get_close_matches(name, list(rows.columns), 1, 0.5)
            remedy = f"did you mean {near[0]}?" if near else f"columns: {', '.join(rows.columns[:20])}"
            raise ConfigError(f"no column {name!r} to slice by", where="evaluation.slices", remedy=remedy)
    if slice_columns is None:
        limits = {"category": LEVELS, "boolean": LEVELS, "numeric": INTEGERS}
        columns = [c for c in contract.feature_columns if not c.pii]
        few = [c for c in columns if c.kind in limits and (c.kind != "numeric" or c.integer)]
        slice_columns = tuple(c.name for c in few if 2 <= rows[c.name].nunique() <= limits[c.kind])
    slices: list[SliceRows] = []
    for at, name in enumerate(slice_columns):
        values = _values(rows[name])
        places = [SliceRows(name, str(value), np.flatnonzero(values == value)) for value in np.unique(values)]
        large = sorted((cut for cut in places if len(cut.rows) >= MIN_ROWS), key=lambda cut: -len(cut.rows))[:LEVELS]
        if len(slices) + len(large) > MAX_SLICES:
            return tuple(slices), (f"slices: {', '.join(slice_columns[at:])} left out, more than {MAX_SLICES} slices",)
        slices += sorted(large, key=lambda cut: _by_value(cut.value))
    return tuple(slices), ()


def _values(column: pd.Series) -> np.ndarray:
    text = column
    if pd.api.types.is_datetime64_any_dtype(column):
        text = column.dt.strftime("%Y-%m")
    elif pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        many = column.nunique() > LEVELS
        text = pd.qcut(column, 4, duplicates="drop").astype(object) if many else column.map("{:g}".format)
    return np.where(column.isna(), "missing", text.astype(str)).astype(str)


def _by_value(value: str) -> tuple[float, str]:
    try:
        return float(value.lstrip("(").partition(",")[0]), value
    except ValueError:
        return float("inf"), value


def _slice(
    cut: SliceRows,
    truth: np.ndarray,
    answers: Predictions,
    dummy: Predictions,
    contract: Contract,
    metric: Metric,
    draws: np.ndarray,
) -> SliceResult:
    here, once = truth[cut.rows], np.ones((1, len(cut.rows)))
    value = resample_metric(here, answers.take(cut.rows), contract, metric, once)[0]
    drawn = resample_metric(here, answers.take(cut.rows), contract, metric, draws[:, cut.rows])
    below = resample_metric(here, dummy.take(cut.rows), contract, metric, once)[0]
    return SliceResult(
        column=cut.column,
        value=cut.value,
        rows=len(cut.rows),
        metric=percentile_interval(value, drawn),
        baseline=_finite(below),
    )


def _importance(
    model: Any, features: pd.DataFrame, truth: np.ndarray, contract: Contract, metric: Metric, seed: int
) -> tuple[tuple[tuple[str, float, float], ...], tuple[str, ...]]:
    """Permutation importance (Breiman, 2001). Copies with one column shuffled each are predicted many at once."""
    names = list(features.columns)
    repeats = 3 if len(names) <= 30 else 2
    budget = min(PREDICTED_ROWS, PREDICTED_CELLS // len(names)) // (len(names) * repeats)
    size = min(len(features), 2000, max(50, budget))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(features), size, replace=False))
    features, truth, once = features.iloc[sample].reset_index(drop=True), truth[sample], np.ones((1, size))
    whole = resample_metric(truth, predict(model, features, contract), contract, metric, once)[0]
    sign = 1 if GREATER_IS_BETTER[metric] else -1

    drops = np.empty((len(names), repeats))
    at_once = max(1, 20_000 // (size * repeats))
    for first in range(0, len(names), at_once):
        batch = names[first : first + at_once]
        copies = features.take(np.tile(np.arange(size), len(batch) * repeats))
        for at, name in enumerate(batch):
            values = copies[name].to_numpy(copy=True)
            for place in range(at * repeats * size, (at + 1) * repeats * size, size):
                values[place : place + size] = rng.permutation(values[place : place + size])
            copies[name] = values
        answers = predict(model, copies, contract)
        for copy in range(len(batch) * repeats):
            part = answers.take(np.arange(copy * size, (copy + 1) * size))
            shuffled = resample_metric(truth, part, contract, metric, once)[0]
            drops[first + copy // repeats, copy % repeats] = sign * (whole - shuffled)
    if not np.isfinite(drops).all():
        return (), (f"importance: {metric} is undefined on the {size} rows drawn",)
    each = zip(names, drops.mean(axis=1).tolist(), drops.std(axis=1).tolist(), strict=True)
    note = f"importance: {repeats} shuffles of each column on {size} rows"
    return tuple(sorted(each, key=lambda row: (-row[1], row[0]))), (note,)


def _notes(points: dict[str, float], truth: np.ndarray, drawn: int, config: TrainingConfig) -> tuple[str, ...]:
    notes = []
    if drawn < len(truth):
        of = "groups" if config.data.group else f"blocks of {-(-len(truth) // drawn)} consecutive rows"
        few = ": too few for a trustworthy interval" if drawn < 20 else ""
        notes.append(f"intervals: {drawn} {of} are resampled{few}")
    if "mape" in points and (zeros := int((truth == 0).sum())):
        notes.append(f"mape: {zeros} of {len(truth)} rows have a target of 0 and are left out")
    if undefined := [name for name, value in points.items() if not np.isfinite(value)]:
        notes.append(f"undefined on these rows: {', '.join(undefined)}")
    return tuple(notes)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
