"""Plots of a training run: cross-validation, importance, slices and errors, one PNG file each."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from towline.config import TrainingConfig
from towline.data.workspace import Workspace
from towline.formatting import format_number
from towline.plot_style import (
    BEFORE,
    DASHED,
    INK,
    LINES,
    MODEL,
    SOFT,
    WIDTH,
    blank,
    legend_below,
    save,
    styled,
    title,
)
from towline.training.detrend import Trend
from towline.training.evaluation.definitions import Metric, primary_metric
from towline.training.evaluation.holdout import Evaluation, load_evaluation_predictions
from towline.training.evaluation.metrics import EncodedPredictions
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.result import TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_COLUMNS, MAX_SLICES, MAX_CLASSES, MAX_CURVES = 20, 30, 20, len(LINES)
MAX_POINTS = 2_000  # of a scatter plot; more are drawn as a density


def draw_plots(work: Workspace, config: TrainingConfig, result: TrainingResult) -> tuple[str, ...]:
    """Draws all plots into ``plots/`` of the workspace; a plot that is undefined on these rows is left out.

    Returns:
        The file names: fold_scores, importance and slices; for classes confusion_matrix, roc, precision_recall and
        calibration; for numbers predicted_vs_actual, residuals, over_time if the split is by time, and trend if the
        target was detrended.
    """
    names = []
    with styled():
        for name, figure in _figures(work, config, result):
            save(figure, work.file(f"plots/{name}.png"))
            names.append(f"{name}.png")
    return tuple(names)


def _figures(work: Workspace, config: TrainingConfig, result: TrainingResult) -> list[tuple[str, Figure]]:
    contract, evaluation = work.contract(), result.evaluation
    truth, predictions, _ = load_evaluation_predictions(work)
    encoded = EncodedPredictions.of(truth, predictions, contract)
    primary = primary_metric(config, contract.task)
    drawn: list[tuple[str, Figure | None]] = [
        ("fold_scores", plot_fold_scores(result.candidates, primary)),
        ("importance", plot_importance(evaluation)),
        ("slices", plot_slices(evaluation, primary)),
    ]
    if encoded.task == "regression":
        if predictions.are_finite:
            drawn += [
                ("predicted_vs_actual", plot_predicted_vs_actual(encoded, contract.target)),
                ("residuals", plot_residuals(encoded, contract.target)),
            ]
        if predictions.are_finite and config.by_time:
            times = pd.to_datetime(work.subset("holdout").rows[config.data.time])
            drawn.append(("over_time", plot_over_time(encoded, times, contract.target)))
        if result.model.trend:
            drawn.append(("trend", plot_trend(result.model.trend, contract.target)))
    else:
        # in the order of EncodedPredictions: the positive class of a binary task is the second
        names = [str(label) for label in sorted(contract.classes, key=lambda label: label == contract.positive)]
        drawn += [
            ("confusion_matrix", plot_confusion_matrix(encoded, names)),
            ("roc", plot_roc(encoded, names, evaluation)),
            ("precision_recall", plot_precision_recall(encoded, names, evaluation)),
            ("calibration", plot_calibration(encoded, names)),
        ]
    return [(name, figure) for name, figure in drawn if figure is not None]


def plot_fold_scores(scores: Sequence[CrossValidationResult], metric: Metric) -> Figure | None:
    """The scores of each candidate: its folds and their mean."""
    greater = metric.greater_is_better
    scored = [result for result in scores if metric in result.mean]
    if not scored:
        return None
    scored.sort(key=lambda result: result.mean[metric] if greater else -result.mean[metric])  # the best on top
    figure, axes = _figure(1.2 + 0.42 * len(scored))
    for at, result in enumerate(scored):
        color = SOFT if result.candidate == "baseline" else MODEL
        folds = [fold[metric] for fold in result.folds if metric in fold]
        axes.plot(folds, [at] * len(folds), "o", color=color, alpha=0.45, markersize=5, markeredgewidth=0)
        axes.plot([result.mean[metric]], [at], "|", color=color, markersize=17, markeredgewidth=2.4)
        text = f"{format_number(result.mean[metric])} ± {_format(result.sd[metric], 2)}"
        axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    _label_rows(axes, [result.candidate for result in scored])
    axes.set_xlabel(f"{metric}, {'higher' if greater else 'lower'} is better; a dot is a fold, the bar is their mean")
    title(figure, f"Cross-validation: {_short(scored[-1].candidate)} has the best mean")
    return figure


def plot_importance(evaluation: Evaluation) -> Figure | None:
    """The loss of the primary metric if a column is shuffled."""
    importance = evaluation.importance[:MAX_COLUMNS][::-1]
    if not importance:
        return None
    figure, axes = _figure(1.2 + 0.24 * len(importance))
    names, means, errors = zip(*importance, strict=True)
    axes.barh(range(len(importance)), means, xerr=errors, color=MODEL, height=0.62, error_kw={"ecolor": INK, "lw": 0.9})
    axes.axvline(0, color=SOFT, linewidth=0.8)
    _label_rows(axes, [_short(name, 32) for name in names])
    axes.set_xlabel(f"loss of {evaluation.primary} when shuffled, ± 1 sd")
    others = len(evaluation.importance) - len(importance)
    suffix = f" ({others} less important columns left out)" if others else ""
    first = f"{_short(names[-1])} is most important" if means[-1] > 0 else "no column is important"
    title(figure, f"Importance: {first}{suffix}")
    return figure


def plot_slices(evaluation: Evaluation, primary: Metric) -> Figure | None:
    """The primary metric of the model, with its interval, and of the baseline, by slice."""
    sign = 1 if primary.greater_is_better else -1
    defined = [part for part in evaluation.slices if part.metric.value is not None]
    weakest = sorted(defined, key=lambda part: sign * (part.metric.value or 0.0))[:MAX_SLICES]
    slices = [part for part in defined if part in weakest][::-1]
    if not slices:
        return None
    figure, axes = _figure(1.3 + 0.22 * len(slices))
    for at, part in enumerate(slices):
        label, baseline_label = ("model", "baseline") if at == 0 else (None, None)
        if part.metric.low is not None and part.metric.high is not None:
            axes.plot([part.metric.low, part.metric.high], [at, at], color=MODEL, linewidth=1.6, alpha=0.5)
        axes.plot([part.metric.value or 0.0], [at], "o", color=MODEL, markersize=5, label=label)
        if part.baseline is not None:
            axes.plot([part.baseline], [at], "|", color=BEFORE, markersize=9, markeredgewidth=1.8, label=baseline_label)
    overall = evaluation.metrics[evaluation.primary].value
    if overall is not None:
        axes.axvline(overall, color=SOFT, linewidth=0.9, linestyle=DASHED, label="model, all rows", zorder=1)
    _label_rows(axes, [f"{_short(part.column, 19)} = {_short(part.value, 13)} ({part.rows:,})" for part in slices])
    axes.set_xlabel(f"{evaluation.primary} with 95 % interval, {'higher' if sign > 0 else 'lower'} is better")
    suffix = f" ({len(slices)} of {len(defined)} are drawn)" if len(defined) > len(slices) else ""
    title(figure, f"By slice: weakest is {_short(weakest[0].column, 20)} = {_short(weakest[0].value, 20)}{suffix}")
    legend_below(figure, axes)
    return figure


def plot_confusion_matrix(encoded: EncodedPredictions, names: Sequence[str]) -> Figure:
    """True and predicted classes, as shares of the true class; if there are many classes, rare ones are merged."""
    truth, predicted, names = _merge_classes(encoded, list(names))
    k = len(names)
    known = (truth >= 0) & (predicted >= 0)
    counts = np.bincount(truth[known] * k + predicted[known], minlength=k * k).reshape(k, k)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(6.4, 2.6 + 0.55 * k)
    figure, axes = _figure(side - 0.4, side + 0.8)
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(k):
        for column in range(k):
            share = f"{shares[row, column]:.0%}"
            text = f"{share}\n{counts[row, column]:,}" if k <= 8 else f"{100 * shares[row, column]:.0f}"
            if counts[row, column] or k <= 8:
                color = "white" if shares[row, column] > 0.55 else INK
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if k <= 12 else 6)
    ticks = [_short(name, 13) for name in names]
    rotation: dict[str, Any] = {} if k <= 3 else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(k), ticks, **rotation)
    axes.set_yticks(range(k), ticks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if k > 8:
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.7, format=lambda v, _: f"{100 * v:.0f}")
    correct = float((encoded.truth == encoded.predicted).mean())
    title(figure, f"{correct:.1%} of {len(truth):,} predictions are correct")
    return figure


def plot_roc(encoded: EncodedPredictions, names: Sequence[str], evaluation: Evaluation) -> Figure | None:
    """True and false positive rate at every threshold; of several classes, each against the rest."""
    from sklearn.metrics import roc_auc_score, roc_curve

    def line(axes: Axes, hit: np.ndarray, chance: np.ndarray, name: str, color: str) -> None:
        below, above, _ = roc_curve(hit, chance)
        axes.plot(below, above, color=color, linewidth=1.7, label=f"{name}: {roc_auc_score(hit, chance):.3f}")

    figure = _curves(encoded, names, line)
    if figure is None:
        return None
    axes = figure.axes[0]
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=DASHED)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    title(figure, f"ROC curve, area {evaluation.metrics['roc_auc'].text()}")
    axes.legend(loc="lower right", title="area under the curve")
    return figure


def plot_precision_recall(encoded: EncodedPredictions, names: Sequence[str], evaluation: Evaluation) -> Figure | None:
    """Precision and recall at every threshold, and the share of the class."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    def line(axes: Axes, hit: np.ndarray, chance: np.ndarray, name: str, color: str) -> None:
        precision, recall, _ = precision_recall_curve(hit, chance)
        label = f"{name}: {average_precision_score(hit, chance):.3f}"
        axes.plot(recall[:-1], precision[:-1], color=color, linewidth=1.7, label=label, drawstyle="steps-pre")
        axes.axhline(hit.mean(), color=color, linewidth=0.9, linestyle=DASHED, alpha=0.7)

    figure = _curves(encoded, names, line)
    if figure is None:
        return None
    axes = figure.axes[0]
    axes.set(xlabel="recall", ylabel="precision")
    rate = f", average precision {evaluation.metrics['average_precision'].text()}" if encoded.task == "binary" else ""
    title(figure, f"Precision and recall{rate}")
    axes.legend(title="average precision; dashed: random predictions")
    return figure


def plot_calibration(encoded: EncodedPredictions, names: Sequence[str]) -> Figure | None:
    """Predicted probabilities and observed shares, in ten bins of equal size."""
    if encoded.probabilities is None:
        return None
    if encoded.task == "binary":
        chance, hit = encoded.probabilities[:, 1], encoded.truth == 1
        x_label, y_label = f"predicted probability of {_short(names[1])}", f"share of rows that are {_short(names[1])}"
    else:
        best = encoded.probabilities.argmax(axis=1)
        chance, hit = encoded.probabilities.max(axis=1), encoded.truth == best
        x_label, y_label = "probability of the most probable class", "share of rows of that class"
    bins = [part for part in np.array_split(np.argsort(chance, kind="stable"), 10) if len(part)]
    x = np.array([chance[part].mean() for part in bins])
    y = np.array([hit[part].mean() for part in bins])
    rows = np.array([len(part) for part in bins])
    figure, axes = _figure(5.0, 5.2)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=DASHED, label="perfect calibration")
    error = 1.96 * np.sqrt(y * (1 - y) / rows)
    axes.vlines(x, y - error, y + error, color=MODEL, linewidth=0.9)
    axes.plot(x, y, color=MODEL, marker="o", markersize=5, linewidth=1.5, label="model, with 95 % intervals")
    ends = np.concatenate([x, y])
    low, high = max(0.0, ends.min() - 0.05), min(1.0, ends.max() + 0.05)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel=x_label, ylabel=y_label, aspect="equal")
    gap = float(np.average(np.abs(x - y), weights=rows))
    title(figure, f"Probabilities are off by {100 * gap:.1f} points on average")
    axes.legend(loc="upper left")
    return figure


def _format(value: float, digits: int, sign: str = "") -> str:
    """A number with some significant digits, without an exponent if it is large; ``sign`` is + for both signs.

    Example:
        >>> _format(712.3, 2), _format(3961.0, 3, "+"), _format(0.5123, 3, "+")
        ('710', '+3,960', '+0.512')
    """
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:{sign},.0f}" if abs(rounded) >= 10**digits else f"{rounded:{sign}.{digits}g}"


def plot_predicted_vs_actual(encoded: EncodedPredictions, target: str) -> Figure:
    """Predicted and true value of each row."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(4.5, 5.4)
    _scatter(figure, axes, encoded.truth, encoded.predicted)
    ends = np.concatenate([encoded.truth, encoded.predicted])
    low, high = float(ends.min()), float(ends.max())
    pad = 0.03 * (high - low or 1.0)
    axes.plot([low, high], [low, high], color=BEFORE, linewidth=1.0, linestyle=DASHED, label="exact")
    axes.xaxis.set_major_locator(MaxNLocator(5))  # labels of large numbers must not overlap
    axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
    axes.set(xlabel=f"actual {_short(target)}", ylabel=f"predicted {_short(target)}")
    above = float((encoded.predicted > encoded.truth).mean())
    title(figure, f"{above:.0%} of {len(encoded.truth):,} predictions are too high")
    axes.legend(loc="upper left")
    return figure


def plot_residuals(encoded: EncodedPredictions, target: str) -> Figure:
    """Errors by predicted value, with their quartiles."""
    error = encoded.predicted - encoded.truth
    figure, axes = _figure(4.2)
    _scatter(figure, axes, encoded.predicted, error)
    axes.axhline(0, color=SOFT, linewidth=0.9)
    parts = np.array_split(np.argsort(encoded.predicted, kind="stable"), min(15, max(1, len(error) // 20)))
    x = [encoded.predicted[part].mean() for part in parts]
    low, middle, high = np.array([np.quantile(error[part], (0.25, 0.5, 0.75)) for part in parts]).T
    axes.plot(x, middle, color=BEFORE, linewidth=1.5, label="median error")
    for edge, label in ((low, "half of the errors are between"), (high, None)):
        axes.plot(x, edge, color=BEFORE, linewidth=0.9, linestyle=DASHED, label=label)
    axes.set(xlabel=f"predicted {_short(target)}", ylabel="predicted - actual")
    mean, half = _format(error.mean(), 3, "+"), _format(np.median(np.abs(error)), 3)
    title(figure, f"Errors: mean {mean}, half of them within ±{half}")
    axes.legend(loc="lower left")
    return figure


def plot_over_time(encoded: EncodedPredictions, times: pd.Series, target: str) -> Figure | None:
    """Actual and predicted means over time, in the shortest step that gives at most 120 points."""
    steps = {"hour": "1h", "day": "1D", "week": "7D", "four weeks": "28D", "year": "365D"}
    span = times.max() - times.min()
    step = next((name for name, freq in steps.items() if span / pd.Timedelta(freq) <= 120), "year")
    values = pd.DataFrame({"actual": encoded.truth, "predicted": encoded.predicted})
    means = values.groupby(times.dt.floor(steps[step]).to_numpy()).mean()
    if len(means) < 3:
        return None
    figure, axes = _figure(3.4, 7.2)
    marker = "o" if len(means) <= 40 else ""
    for name, color in (("actual", INK), ("predicted", MODEL)):
        axes.plot(means.index, means[name], color=color, linewidth=1.4, marker=marker, markersize=3, label=name)
    _dates(axes)
    axes.set_ylabel(f"mean {_short(target)} by {step}")
    error = (means["predicted"] - means["actual"]).to_numpy()
    quarters = np.array_split(error, min(4, len(error)))
    early, late = (_format(quarters[place].mean(), 3, "+") for place in (0, -1))
    title(figure, f"Over the holdout: mean error {early} in its first quarter, {late} in its last")
    legend_below(figure, axes)
    return figure


def plot_trend(trend: Trend, target: str) -> Figure:
    """The trend of the target that the features do not explain, relative to the newest level."""
    figure, axes = _figure(2.8, 7.2)
    axes.plot(pd.to_datetime(list(trend.times)), trend.values, color=MODEL, linewidth=1.6)
    axes.axhline(1 if trend.is_factor else 0, color=SOFT, linewidth=0.9, linestyle=DASHED)
    if trend.is_factor:
        axes.set_ylim(bottom=0)
    _dates(axes)
    axes.set_ylabel("factor of the newest level" if trend.is_factor else "difference from the newest level")
    title(figure, f"{_short(target)}, not explained by the features: {trend}")
    return figure


def _dates(axes: Axes) -> None:
    from matplotlib.dates import ConciseDateFormatter

    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = blank(height, width)
    return figure, figure.add_subplot()


def _curves(
    encoded: EncodedPredictions, names: Sequence[str], line: Callable[[Axes, np.ndarray, np.ndarray, str, str], None]
) -> Figure | None:
    """One curve for the positive class, or one for each of the most frequent classes."""
    if encoded.probabilities is None or len(np.unique(encoded.truth)) < 2:
        return None
    labels = np.array([1])
    if encoded.task == "multiclass":
        present, counts = np.unique(encoded.truth, return_counts=True)
        labels = np.sort(present[np.argsort(-counts, kind="stable")][:MAX_CURVES])
    figure, axes = _figure(5.0, 5.2)
    for label, color in zip(labels, LINES, strict=False):
        line(axes, encoded.truth == label, encoded.probabilities[:, label], _short(names[label], 18), color)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure


def _scatter(figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) <= MAX_POINTS:
        axes.plot(x, y, "o", color=MODEL, alpha=0.35, markersize=3.5, markeredgewidth=0)
        return
    cells = axes.hexbin(x, y, gridsize=45, bins="log", cmap="Blues", mincnt=1, linewidths=0.1)
    figure.colorbar(cells, ax=axes, label="rows", shrink=0.6, aspect=30, format="{x:,.0f}")


def _merge_classes(encoded: EncodedPredictions, names: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth, predictions and class names, with all but the most frequent classes merged into one."""
    if len(names) <= MAX_CLASSES:
        return encoded.truth, encoded.predicted, names
    counts = np.bincount(encoded.truth, minlength=len(names))
    largest = np.sort(np.argsort(-counts, kind="stable")[: MAX_CLASSES - 1])
    position = np.full(len(names), len(largest))
    position[largest] = np.arange(len(largest))
    merged_names = [*(names[number] for number in largest), f"{len(names) - len(largest)} others"]
    return position[encoded.truth], position[encoded.predicted], merged_names


def _label_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name, 44) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _short(name: str, length: int = 28) -> str:
    """The name on one line; the middle of a long name is left out, because names differ at both ends."""
    line = textwrap.shorten(name, 10_000) or repr(name)
    return line if len(line) <= length else f"{line[: length // 2]}…{line[-(length // 2 - 1) :]}"
