"""The evaluation of a rollout: evidence from the service and from labels, a verdict, and an action.

The champion's and the challenger's answers for the same row are compared on its ground-truth label: one of them is in
the prediction log, the other in the rollout's shadow log.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from towline.config import PipelineConfig, RolloutConfig, Settings, format_duration
from towline.data.schema.contract import Contract
from towline.data.schema.values import parse_number
from towline.errors import ConfigError, PromotionRejectedError
from towline.monitoring.performance.logged_predictions import (
    LoggedPredictions,
    pad_probabilities,
    read_logged_predictions,
    read_times,
    select_evaluated_slices,
    select_labels,
    to_datetime64,
)
from towline.monitoring.rollout_history import RolloutAction, RolloutEvaluation, read_evaluations
from towline.prediction_log import labels
from towline.prediction_log.label_store import REQUEST
from towline.prediction_log.parquet_store import read_predictions
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, read_privacy_filter
from towline.promotion.rollout_start import begin_rollout
from towline.registry.ledger import Ledger, open_ledger
from towline.registry.rollouts import (
    Rollout,
    RolloutEnd,
    active_rollout,
    change_rollout,
    end_rollout,
    reject_waiting,
    waiting_version,
)
from towline.rollout.analysis import ArmCounts, Criteria, RolloutEvidence, RolloutVerdict, WeightPeriod, analyse
from towline.rollout.service_counts import ServiceCounts, read_counts, stop_reason
from towline.training.evaluation.definitions import Metric, primary_metric
from towline.training.evaluation.row_losses import LARGEST_LOSS, Loss, choose_loss, row_losses


class LabelledLosses(NamedTuple):
    """Losses on labelled rows, in the order in which the labels arrived.

    Attributes:
        champion_loss, challenger_loss: (n,) losses of the same rows; in an A/B test, of the rows that each answered.
        slices: name of a slice → (n,) whether a row belongs to it.
        per_day: labels that arrived per day since the first one.
        bound: the largest loss; None: it has no largest value.
    """

    champion_loss: np.ndarray
    challenger_loss: np.ndarray
    slices: Mapping[str, np.ndarray]
    per_day: float
    bound: float | None = None

    @property
    def usable(self) -> int:
        """Labels with a loss of the champion."""
        return int(np.isfinite(self.champion_loss).sum())


def find_rollout(settings: Settings, model: str) -> Rollout | None:
    """The current rollout; None without one."""
    return active_rollout(open_ledger(settings).rows(model))


def evaluate_rollout(
    settings: Settings, config: PipelineConfig, rollout: Rollout, now: dt.datetime
) -> RolloutEvaluation:
    """Measures both versions and decides, without a change of the rollout.

    Args:
        settings: for the store.
        config: for the metric.
        rollout: that is under way.
        now: ignore predictions and labels from this time on.

    Raises:
        DataError: a part of a log cannot be read.
        ConfigError: the metric does not fit the task.
        TransientError: a log's folder cannot be written, which its lock needs.
    """
    folder = settings.layout.rollout(rollout.model, rollout.id)
    counts, earlier = read_counts(folder), read_evaluations(folder)
    losses = read_labelled_losses(settings, config, rollout, now)
    totals, periods = counts.totals(), _weight_periods(rollout, counts)
    answered = counts.asked_rows - max((each.asked_rows for each in earlier if each.step < rollout.step), default=0)
    evidence = _evidence(counts, losses, periods, paired=rollout.config.strategy != "ab")
    verdict = analyse(evidence, criteria_of(rollout.config))
    action, reason = decide_action(rollout, answered, verdict, stop_reason(folder), now)
    return RolloutEvaluation(
        model=rollout.model,
        champion=rollout.champion,
        challenger=rollout.challenger,
        at=now,
        strategy=rollout.config.strategy,
        weight=rollout.weight,
        step=rollout.step,
        paused=rollout.paused,
        verdict=verdict.verdict,
        checks=tuple(check._asdict() for check in verdict.checks),
        champion_requests=totals["champion_requests"],
        challenger_requests=totals["challenger_requests"],
        champion_rows=counts.champion_rows,
        challenger_rows=counts.challenger_rows,
        asked_rows=counts.asked_rows,
        labels=losses.usable,
        labels_needed=verdict.labels_needed,
        days_needed=verdict.days_needed,
        action=action,
        reason=reason,
    )


def decide_action(
    rollout: Rollout, answered: int, verdict: RolloutVerdict, stopped: str, now: dt.datetime
) -> tuple[RolloutAction, str]:
    """The action that follows from a verdict, with its reason; a pure function.

    A challenger that fails or is worse is aborted, even while the rollout is paused. Weights grow with time and
    traffic, but all requests go to the challenger only if the verdict is "promote". Without traffic or labels the
    rollout waits, until its maximum time is over.

    Args:
        rollout: that is under way.
        answered: rows that the challenger was asked in this step, also in shadow.
        verdict: of the analysis.
        stopped: why the service took the challenger out; empty if it did not.
        now: time of the decision.
    """
    config, is_better = rollout.config, verdict.verdict == "promote"
    if stopped or verdict.verdict == "abort":
        return "abort", stopped or verdict.text
    if rollout.paused:
        return "wait", f"paused; {verdict.text}"
    if now >= rollout.started + config.until and not (is_better and rollout.is_last_step):
        reason = (
            f"no decision within {format_duration(config.until)}, and rollout.inconclusive is {config.inconclusive}"
        )
        return ("promote" if config.inconclusive == "promote" else "end"), reason
    if answered < config.min_rows:
        return "wait", f"the challenger has answered {answered:,} of {config.min_rows:,} rows in this step"
    if now < (end := rollout.since + config.bake):
        return "wait", f"this step lasts until {end:%Y-%m-%d %H:%M:%S} UTC; {verdict.text}"
    if rollout.is_last_step:
        return ("promote" if is_better else "wait"), verdict.text
    weight = config.weights[rollout.step + 1]
    if weight < 100 or is_better:
        return "advance", f"{answered:,} rows in this step without a fault: the weight grows to {weight:g} %"
    return "wait", verdict.text


def act(ledger: Ledger, rollout: Rollout, evaluation: RolloutEvaluation, actor: str) -> str:
    """Carries out an evaluation's action in the ledger; returns a description, empty without a change.

    Raises:
        PromotionRejectedError: the rollout has ended or changed in the meantime.
    """
    action, reason = evaluation.action, evaluation.reason
    if action == "wait":
        return ""
    if action == "advance":
        change_rollout(ledger, rollout, actor, reason, step=rollout.step + 1)
        return f"weight {rollout.config.weights[rollout.step + 1]:g} %"
    ends: dict[RolloutAction, RolloutEnd] = {"promote": "promoted", "abort": "aborted", "end": "inconclusive"}
    evidence = evaluation.model_dump(mode="json", include={"checks", "labels", "champion_rows", "challenger_rows"})
    end_rollout(ledger, rollout, ends[action], actor, f"rollout: {reason}", evidence)
    return f"version {rollout.challenger} {ends[action]}"


def start_waiting(settings: Settings, config: PipelineConfig, actor: str) -> int | None:
    """Starts the rollout of the newest version that waits for one; returns the version, None if none waits."""
    ledger = open_ledger(settings)
    rows = ledger.rows(config.name)
    version = waiting_version(rows)
    if config.rollout is None or version is None or active_rollout(rows) is not None:
        return None
    try:
        reason = "it waited for the end of another rollout"
        begin_rollout(settings, ledger, config.name, version, config.rollout, actor, reason)
    except (PromotionRejectedError, ConfigError) as error:
        reject_waiting(ledger, config.name, version, actor, f"{error.what}; {error.remedy}")
        return None
    return version


def read_labelled_losses(
    settings: Settings, config: PipelineConfig, rollout: Rollout, now: dt.datetime
) -> LabelledLosses:
    """The losses of both versions on the labels since the start of the rollout.

    Slices are those of the challenger's evaluation: they are known before the first label, and stay, since the
    probability of an error is divided among them.

    Args:
        settings: for the store.
        config: for the metric.
        rollout: that is under way.
        now: ignore predictions and labels from this time on.

    Raises:
        DataError: a part of a log cannot be read.
        ConfigError: the metric does not fit the task.
    """
    layout = settings.layout
    release = layout.release(rollout.release)
    contract = Contract.read(release)
    metric = primary_metric(config, contract.task)
    predictions = layout.predictions(rollout.model)
    policy = read_privacy_filter(release, contract, HashKeys(predictions / HASH_KEYS))
    log = labels.LoggedModel(predictions, layout.labels(rollout.model), policy.fields)
    rows = labels.read(log, rollout.started, now, known=now)
    rows = _select_comparable(rows, contract, metric)
    if rollout.config.strategy == "ab":
        return _unpaired(rows, rollout, contract, metric, now)
    shadow = read_predictions(layout.rollout(rollout.model, rollout.id) / "shadow", rollout.started, now)
    rows, shadow = _join(rows, shadow, {rollout.champion, rollout.challenger})
    if not len(rows):
        return LabelledLosses(np.empty(0), np.empty(0), {}, 0.0)
    shadow = shadow.append_column("label", rows["label"])
    loss, (answered, shadowed) = _losses((rows, shadow), contract, metric)
    by_challenger = rows["version"].to_numpy() == rollout.challenger
    times = read_times(rows["labelled_at"])
    order = np.argsort(times, kind="stable")
    members = select_evaluated_slices(rows, release, _logged_by_both(settings, rollout, contract))
    slices = {name: inside[order] for name, inside in members.items()}
    champion, challenger = np.where(by_challenger, (shadowed, answered), (answered, shadowed))[:, order]
    return LabelledLosses(champion, challenger, slices, _per_day(times[order], now), LARGEST_LOSS.get(loss))


def _logged_by_both(settings: Settings, rollout: Rollout, contract: Contract) -> Contract:
    """The challenger's contract without the columns that are not logged if the champion answers."""
    entry = open_ledger(settings).entry(rollout.model, rollout.champion)
    if rollout.config.fields == "same" or entry is None:
        return contract
    names = {column.name for column in Contract.read(settings.layout.release(entry.release)).input_columns}
    columns = tuple(column for column in contract.columns if column.role != "feature" or column.name in names)
    return contract.model_copy(update={"columns": columns})


def _unpaired(rows: pa.Table, rollout: Rollout, contract: Contract, metric: Metric, now: dt.datetime) -> LabelledLosses:
    """The losses of the rows that each version answered: in an A/B test an answer may change the label."""
    rows = _remove_repetitions(rows).sort_by("labelled_at")
    loss, (losses,) = _losses((rows,), contract, metric)
    versions, per_day = rows["version"].to_numpy(), _per_day(read_times(rows["labelled_at"]), now)
    champion, challenger = (losses[versions == version] for version in (rollout.champion, rollout.challenger))
    return LabelledLosses(champion, challenger, {}, per_day, LARGEST_LOSS.get(loss))


def _per_day(times: np.ndarray, now: dt.datetime) -> float:
    """Labels per day from the first one until now."""
    if not len(times):
        return 0.0
    days = (to_datetime64(now) - times.min()) / np.timedelta64(1, "D")
    return len(times) / max(float(days), 1 / 24)


def _join(rows: pa.Table, shadow: pa.Table, versions: set[int]) -> tuple[pa.Table, pa.Table]:
    """The rows of both tables that are the same row of a request, in the same order; each answered by both versions."""
    key = [REQUEST, "row"]
    left, right = (table.select([*key, "version"]).to_pandas() for table in (rows, shadow))
    left, right = (frame.assign(place=np.arange(len(frame))) for frame in (left, right))
    left, right = (frame[frame["version"].isin(versions)].drop_duplicates(key, keep="last") for frame in (left, right))
    pairs = left.merge(right, on=key, suffixes=("", "_shadow"))
    pairs = pairs[pairs["version"] != pairs["version_shadow"]]
    return rows.take(pa.array(pairs["place"])), shadow.take(pa.array(pairs["place_shadow"]))


def _select_comparable(rows: pa.Table, contract: Contract, metric: Metric) -> pa.Table:
    """The rows with a label; without labels of 0 if the loss is relative to them."""
    rows = rows.filter(pc.is_valid(rows["label"]))
    if contract.task != "regression" or metric != "mape":
        return rows
    return rows.filter(pa.array([parse_number(label) != 0 for label in rows["label"].to_pylist()], pa.bool_()))


def _remove_repetitions(rows: pa.Table) -> pa.Table:
    """The last prediction of each row of a request: clients repeat requests."""
    keys = rows.select([REQUEST, "row"]).to_pandas()
    repeated = keys.duplicated(keep="last") & keys[REQUEST].notna()
    return rows.filter(pa.array(~repeated.to_numpy()))


def _losses(tables: Sequence[pa.Table], contract: Contract, metric: Metric) -> tuple[Loss, list[np.ndarray]]:
    """The loss, and (n,) losses of the logged rows of each table; NaN where a prediction or a label cannot be used.

    The loss is the same for all tables: if some predictions have no probabilities, one that needs none.
    """
    read = [read_logged_predictions(rows, contract) for rows in tables]
    without = next((predictions for predictions, _ in read if predictions.probabilities is None), read[0][0])
    loss = choose_loss(metric, contract, without)
    losses = []
    for rows, (predictions, readable) in zip(tables, read, strict=True):
        labelled = select_labels(LoggedPredictions(rows, predictions, readable, ()), contract)
        padded = pad_probabilities(predictions, labelled.contract)  # labels may have classes that no model has
        values = row_losses(labelled.truth, padded, labelled.contract, loss)
        losses.append(np.where(labelled.usable & readable, values, np.nan))
    return loss, losses


def _evidence(
    counts: ServiceCounts, losses: LabelledLosses, periods: tuple[WeightPeriod, ...], *, paired: bool
) -> RolloutEvidence:
    return RolloutEvidence(
        champion=ArmCounts(counts.champion_attempts, counts.champion_errors, 0),
        challenger=ArmCounts(counts.attempts, counts.failures - counts.nonfinite, counts.nonfinite),
        weight_history=periods,
        disagreements=counts.disagreements,
        compared=counts.compared,
        champion_loss=losses.champion_loss,
        challenger_loss=losses.challenger_loss,
        slices=losses.slices,
        loss_bound=losses.bound,
        labels_per_day=losses.per_day,
        paired=paired,
    )


def criteria_of(config: RolloutConfig) -> Criteria:
    """The criteria for a challenger, from the config of its rollout."""
    return Criteria(
        alpha=config.alpha,
        promote_if=config.promote_if,
        margin=config.margin,
        max_disagreement=config.max_disagreement,
        max_error_rate_increase=config.max_error_rate,
    )


def _weight_periods(rollout: Rollout, counts: ServiceCounts) -> tuple[WeightPeriod, ...]:
    """Assignments by weight, those at the present weight first; none are counted if rows are assigned by a column."""
    assignments = {str(rollout.weight): [0, 0], **counts.assignments}
    return tuple(WeightPeriod(float(weight), *arms) for weight, arms in assignments.items())
