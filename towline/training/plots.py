"""What a model did, drawn: one PNG a question, all in one quiet style."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from towline.config import GREATER_IS_BETTER, TrainingConfig
from towline.data.workspace import Workspace
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
from towline.training.cross_validation import CrossValidationResult
from towline.training.detrend import Trend
from towline.training.evaluation.holdout import Evaluation, load_evaluation_predictions
from towline.training.evaluation.metrics import EncodedPredictions
from towline.training.result import TrainingResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = {"columns": 20, "slices": 30, "classes": 20, "curves": len(LINES)}
DENSE = 2_000  # more points than this become a density


def draw_plots(work: Workspace, config: TrainingConfig, result: TrainingResult) -> tuple[str, ...]:
    """Draws what there is to see into ``plots/`` of the workspace; what is undefined on these rows is not drawn.

    Returns:
        The file names: fold_scores, importance, slices; confusion_matrix, roc, precision_recall, calibration for
        classes; predicted_vs_actual, residuals, where the split is by time over_time, and where targets were brought to
        a level that level, for numbers.
    """
    names = []
    with styled():
        for name, figure in _figures(work, config, result):
            save(figure, work.file(f"plots/{name}.png"))
            names.append(f"{name}.png")
    return tuple(names)


def _figures(work: Workspace, config: TrainingConfig, result: TrainingResult) -> list[tuple[str, Figure]]:
    contract, evaluation = work.contract(), result.evaluation
    truth, answers, _ = load_evaluation_predictions(work)
    coded = EncodedPredictions.of(truth, answers, contract)
    drawn: list[tuple[str, Figure | None]] = [
        ("fold_scores", plot_fold_scores(result.candidates, evaluation.primary)),
        ("importance", plot_importance(evaluation)),
        ("slices", plot_slices(evaluation)),
    ]
    if coded.task == "regression":
        drawn += [
            ("predicted_vs_actual", plot_predicted_vs_actual(coded, contract.target)),
            ("residuals", plot_residuals(coded, contract.target)),
        ]
        if config.data.time and config.split.by != "random":
            times = pd.to_datetime(work.subset("holdout").rows[config.data.time])
            drawn.append(("over_time", plot_over_time(coded, times, contract.target)))
        if result.model.trend:
            drawn.append(("trend", plot_trend(result.model.trend, contract.target)))
    else:
        # in the order of Coded: a binary task's positive class is the second
        names = [str(label) for label in sorted(contract.classes, key=lambda label: label == contract.positive)]
        drawn += [
            ("confusion_matrix", plot_confusion_matrix(coded, names)),
            ("roc", plot_roc(coded, names, evaluation)),
            ("precision_recall", plot_precision_recall(coded, names, evaluation)),
            ("calibration", plot_calibration(coded, names)),
        ]
    return [(name, figure) for name, figure in drawn if figure is not None]


def plot_fold_scores(scores: Sequence[CrossValidationResult], metric: str) -> Figure | None:
    """Each candidate's folds and their mean."""
    shown = sorted((s for s in scores if metric in s.mean), key=lambda s: s.mean[metric])
    if not shown:
        return None
    best = GREATER_IS_BETTER[metric]
    shown = shown if best else shown[::-1]  # the best on top
    figure, axes = _figure(1.2 + 0.42 * len(shown))
    for at, score in enumerate(shown):
        colour = SOFT if score.candidate == "baseline" else MODEL
        folds = [fold[metric] for fold in score.folds if metric in fold]
        axes.plot(folds, [at] * len(folds), "o", color=colour, alpha=0.45, markersize=5, markeredgewidth=0)
        axes.plot([score.mean[metric]], [at], "|", color=colour, markersize=17, markeredgewidth=2.4)
        text = f"{score.mean[metric]:.4g} ± {score.sd[metric]:.2g}"
        axes.text(1.02, at, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    _names(axes, [score.candidate for score in shown])
    axes.set_xlabel(f"{metric}, {'higher' if best else 'lower'} is better; a dot is a fold, the bar their mean")
    title(figure, f"Cross-validation: {_short(shown[-1].candidate)} comes first")
    return figure


def plot_importance(evaluation: Evaluation) -> Figure | None:
    """How much worse the primary metric gets when a column is shuffled."""
    importance = evaluation.importance[: MOST["columns"]][::-1]
    if not importance:
        return None
    figure, axes = _figure(1.2 + 0.24 * len(importance))
    names, means, errors = zip(*importance, strict=True)
    axes.barh(range(len(importance)), means, xerr=errors, color=MODEL, height=0.62, error_kw={"ecolor": INK, "lw": 0.9})
    axes.axvline(0, color=SOFT, linewidth=0.8)
    _names(axes, [_short(name, 32) for name in names])
    axes.set_xlabel(f"loss of {evaluation.primary} when shuffled, ± 1 sd")
    more = len(evaluation.importance) - len(importance)
    rest = f" ({more} lesser columns left out)" if more else ""
    first = f"{_short(names[-1])} matters most" if means[-1] > 0 else "no column matters"
    title(figure, f"Importance: {first}{rest}")
    return figure


def plot_slices(evaluation: Evaluation) -> Figure | None:
    """The primary metric by slice with its interval, the baseline's beside it."""
    sign = 1 if GREATER_IS_BETTER[evaluation.primary] else -1
    known = [part for part in evaluation.slices if part.metric.value is not None]
    weakest = sorted(known, key=lambda part: sign * (part.metric.value or 0.0))[: MOST["slices"]]
    shown = [part for part in known if part in weakest][::-1]
    if not shown:
        return None
    figure, axes = _figure(1.3 + 0.22 * len(shown))
    for at, part in enumerate(shown):
        if part.metric.low is not None and part.metric.high is not None:
            axes.plot([part.metric.low, part.metric.high], [at, at], color=MODEL, linewidth=1.6, alpha=0.5)
        axes.plot([part.metric.value or 0.0], [at], "o", color=MODEL, markersize=5, label="model" if at == 0 else None)
        if part.baseline is not None:
            label = "baseline" if at == 0 else None
            axes.plot([part.baseline], [at], "|", color=BEFORE, markersize=9, markeredgewidth=1.8, label=label)
    overall = evaluation.metrics[evaluation.primary].value
    if overall is not None:
        axes.axvline(overall, color=SOFT, linewidth=0.9, linestyle=DASHED, label="model, all rows", zorder=1)
    _names(axes, [f"{_short(part.column, 19)} = {_short(part.value, 13)} ({part.rows:,})" for part in shown])
    axes.set_xlabel(f"{evaluation.primary} with 95 % interval, {'higher' if sign > 0 else 'lower'} is better")
    some = f" ({len(shown)} of {len(known)} shown)" if len(known) > len(shown) else ""
    worst = f"{_short(weakest[0].column, 20)} = {_short(weakest[0].value, 20)}"
    title(figure, f"By slice: weakest where {worst}{some}")
    legend_below(figure, axes)
    return figure


def plot_confusion_matrix(coded: EncodedPredictions, names: Sequence[str]) -> Figure:
    """True against predicted classes, as shares of the true class; rare classes of many stand together."""
    truth, predicted, names = _merged(coded, list(names))
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
                colour = "white" if shares[row, column] > 0.55 else INK
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 if k <= 12 else 6)
    ticks = [_short(name, 13) for name in names]
    turned: dict[str, Any] = {} if k <= 3 else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(k), ticks, **turned)
    axes.set_yticks(range(k), ticks)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if k > 8:
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.7, format=lambda v, _: f"{100 * v:.0f}")
    right = float((coded.truth == coded.predicted).mean())
    title(figure, f"{right:.1%} of {len(truth):,} rows are right")
    return figure


def plot_roc(coded: EncodedPredictions, names: Sequence[str], evaluation: Evaluation) -> Figure | None:
    """True against false positive rate at every threshold; several classes each against the rest."""
    from sklearn.metrics import roc_auc_score, roc_curve

    def line(axes: Axes, hit: np.ndarray, chance: np.ndarray, name: str, colour: str) -> None:
        below, above, _ = roc_curve(hit, chance)
        axes.plot(below, above, color=colour, linewidth=1.7, label=f"{name}: {roc_auc_score(hit, chance):.3f}")

    figure = _curves(coded, names, line)
    if figure is None:
        return None
    axes = figure.axes[0]
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=DASHED)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    title(figure, f"ROC curve, area {evaluation.metrics['roc_auc'].text()}")
    axes.legend(loc="lower right", title="area under the curve")
    return figure


def plot_precision_recall(coded: EncodedPredictions, names: Sequence[str], evaluation: Evaluation) -> Figure | None:
    """Precision against recall at every threshold, and how common the class is."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    def line(axes: Axes, hit: np.ndarray, chance: np.ndarray, name: str, colour: str) -> None:
        precision, recall, _ = precision_recall_curve(hit, chance)
        label = f"{name}: {average_precision_score(hit, chance):.3f}"
        axes.plot(recall[:-1], precision[:-1], color=colour, linewidth=1.7, label=label, drawstyle="steps-pre")
        axes.axhline(hit.mean(), color=colour, linewidth=0.9, linestyle=DASHED, alpha=0.7)

    figure = _curves(coded, names, line)
    if figure is None:
        return None
    axes = figure.axes[0]
    axes.set(xlabel="recall", ylabel="precision")
    rate = f", average precision {evaluation.metrics['average_precision'].text()}" if coded.task == "binary" else ""
    title(figure, f"Precision and recall{rate}")
    axes.legend(title="average precision; dashed: by chance")
    return figure


def plot_calibration(coded: EncodedPredictions, names: Sequence[str]) -> Figure | None:
    """How often a predicted probability comes true, in ten bins of equally many rows."""
    if coded.probabilities is None:
        return None
    if coded.task == "binary":
        chance, hit = coded.probabilities[:, 1], coded.truth == 1
        x_label, y_label = f"predicted probability of {_short(names[1])}", f"share of rows that are {_short(names[1])}"
    else:
        best = coded.probabilities.argmax(axis=1)
        chance, hit = coded.probabilities.max(axis=1), coded.truth == best
        x_label, y_label = "probability of the likeliest class", "share of rows where it is the true one"
    bins = [part for part in np.array_split(np.argsort(chance, kind="stable"), 10) if len(part)]
    x = np.array([chance[part].mean() for part in bins])
    y = np.array([hit[part].mean() for part in bins])
    rows = np.array([len(part) for part in bins])
    figure, axes = _figure(5.0, 5.2)
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=DASHED, label="what it should be")
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


def plot_predicted_vs_actual(coded: EncodedPredictions, target: str) -> Figure:
    """Each row's prediction against the truth."""
    figure, axes = _figure(4.5, 5.4)
    _cloud(figure, axes, coded.truth, coded.predicted)
    ends = np.concatenate([coded.truth, coded.predicted])
    low, high = float(ends.min()), float(ends.max())
    pad = 0.03 * (high - low or 1.0)
    axes.plot([low, high], [low, high], color=BEFORE, linewidth=1.0, linestyle=DASHED, label="exact")
    axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
    axes.set(xlabel=f"actual {_short(target)}", ylabel=f"predicted {_short(target)}")
    above = float((coded.predicted > coded.truth).mean())
    title(figure, f"{above:.0%} of {len(coded.truth):,} predictions are too high")
    axes.legend(loc="upper left")
    return figure


def plot_residuals(coded: EncodedPredictions, target: str) -> Figure:
    """Errors by predicted value, with the middle half of them."""
    error = coded.predicted - coded.truth
    figure, axes = _figure(4.2)
    _cloud(figure, axes, coded.predicted, error)
    axes.axhline(0, color=SOFT, linewidth=0.9)
    parts = np.array_split(np.argsort(coded.predicted, kind="stable"), min(15, max(1, len(error) // 20)))
    x = [coded.predicted[part].mean() for part in parts]
    low, middle, high = np.array([np.quantile(error[part], (0.25, 0.5, 0.75)) for part in parts]).T
    axes.plot(x, middle, color=BEFORE, linewidth=1.5, label="median error")
    for edge, label in ((low, "half of the errors lie between"), (high, None)):
        axes.plot(x, edge, color=BEFORE, linewidth=0.9, linestyle=DASHED, label=label)
    axes.set(xlabel=f"predicted {_short(target)}", ylabel="predicted less actual")
    title(figure, f"Errors: mean {error.mean():+.3g}, half of them within ±{np.median(np.abs(error)):.3g}")
    axes.legend(loc="lower left")
    return figure


def plot_over_time(coded: EncodedPredictions, times: pd.Series, target: str) -> Figure | None:
    """Actual and predicted means by hour, day, week or month, whichever gives 120 points at most."""
    steps = {"hour": "1h", "day": "1D", "week": "7D", "four weeks": "28D", "year": "365D"}
    span = times.max() - times.min()
    step = next((name for name, freq in steps.items() if span / pd.Timedelta(freq) <= 120), "year")
    values = pd.DataFrame({"actual": coded.truth, "predicted": coded.predicted})
    means = values.groupby(times.dt.floor(steps[step]).to_numpy()).mean()
    if len(means) < 3:
        return None
    figure, axes = _figure(3.4, 7.2)
    marker = "o" if len(means) <= 40 else ""
    for name, colour in (("actual", INK), ("predicted", MODEL)):
        axes.plot(means.index, means[name], color=colour, linewidth=1.4, marker=marker, markersize=3, label=name)
    _dates(axes)
    axes.set_ylabel(f"mean {_short(target)} by {step}")
    error = (means["predicted"] - means["actual"]).to_numpy()
    quarters = np.array_split(error, min(4, len(error)))
    early, late = quarters[0].mean(), quarters[-1].mean()
    title(figure, f"Over the holdout: mean error {early:+.3g} in its first quarter, {late:+.3g} in its last")
    legend_below(figure, axes)
    return figure


def plot_trend(trend: Trend, target: str) -> Figure:
    """How high the target stood beyond what the features explain, beside the newest level, which was learnt."""
    figure, axes = _figure(2.8, 7.2)
    axes.plot(pd.to_datetime(list(trend.times)), trend.values, color=MODEL, linewidth=1.6)
    axes.axhline(1 if trend.is_factor else 0, color=SOFT, linewidth=0.9, linestyle=DASHED)
    if trend.is_factor:
        axes.set_ylim(bottom=0)
    _dates(axes)
    axes.set_ylabel("share of the newest level" if trend.is_factor else "beside the newest level")
    title(figure, f"{_short(target)}, beyond what the columns explain: {trend}")
    return figure


def _dates(axes: Axes) -> None:
    from matplotlib.dates import ConciseDateFormatter

    axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))


def _figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = blank(height, width)
    return figure, figure.add_subplot()


def _curves(
    coded: EncodedPredictions, names: Sequence[str], line: Callable[[Axes, np.ndarray, np.ndarray, str, str], None]
) -> Figure | None:
    """One curve for the positive class, or one for each of the commonest classes."""
    if coded.probabilities is None or len(np.unique(coded.truth)) < 2:
        return None
    labels = np.array([1])
    if coded.task == "multiclass":
        present, counts = np.unique(coded.truth, return_counts=True)
        labels = np.sort(present[np.argsort(-counts, kind="stable")][: MOST["curves"]])
    figure, axes = _figure(5.0, 5.2)
    for label, colour in zip(labels, LINES, strict=False):
        line(axes, coded.truth == label, coded.probabilities[:, label], _short(names[label], 18), colour)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    return figure


def _cloud(figure: Figure, axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) <= DENSE:
        axes.plot(x, y, "o", color=MODEL, alpha=0.35, markersize=3.5, markeredgewidth=0)
        return
    cells = axes.hexbin(x, y, gridsize=45, bins="log", cmap="Blues", mincnt=1, linewidths=0.1)
    figure.colorbar(cells, ax=axes, label="rows", shrink=0.6, aspect=30, format="{x:,.0f}")


def _merged(coded: EncodedPredictions, names: list[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Truth and predictions with all but the commonest classes counted as one."""
    if len(names) <= MOST["classes"]:
        return coded.truth, coded.predicted, names
    counts = np.bincount(coded.truth, minlength=len(names))
    largest = np.sort(np.argsort(-counts, kind="stable")[: MOST["classes"] - 1])
    position = np.full(len(names), len(largest))
    position[largest] = np.arange(len(largest))
    shown = [*(names[at] for at in largest), f"{len(names) - len(largest)} others"]
    return position[coded.truth], position[coded.predicted], shown


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [_short(name, 44) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _short(name: str, most: int = 28) -> str:
    """On one line, its middle left out where it is long: both ends tell names apart."""
    line = textwrap.shorten(name, 10_000) or repr(name)
    return line if len(line) <= most else f"{line[: most // 2]}…{line[-(most // 2 - 1) :]}"
