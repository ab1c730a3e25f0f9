"""The monitoring policy: the action for each kind of evidence."""

import datetime as dt
from typing import Any

import pytest

from towline.config import RetrainConfig
from towline.monitoring.policy import Evidence, decide
from towline.monitoring.results import (
    ChampionComparison,
    DriftResult,
    DriftState,
    GainResult,
    QualityResult,
    QualityState,
)
from towline.training.evaluation.predictions import Interval

NOW = dt.datetime(2026, 3, 10, 2, tzinfo=dt.UTC)
PLAIN = RetrainConfig()


def drift_windows(*states: DriftState) -> tuple[DriftResult, ...]:
    ends = [NOW - dt.timedelta(days=len(states) - 1 - at) for at in range(len(states))]
    return tuple(
        DriftResult(state=state, version=2, rows=900, end=end, budget=4, reason=f"drift {state}")
        for state, end in zip(states, ends, strict=True)
    )


def quality_windows(*states: QualityState) -> tuple[QualityResult, ...]:
    value = Interval(value=90, low=85, high=95)
    return tuple(
        QualityResult(
            state=state,
            version=2,
            metric="mae",
            value=value,
            holdout=50,
            bound=62.5,
            rows=900,
            labelled=800,
            due=900,
            end=NOW - dt.timedelta(days=len(states) - at),
            reason=f"quality {state}",
        )
        for at, state in enumerate(states)
    )


def gain_windows(*refits: float, **changes: Any) -> tuple[GainResult, ...]:
    """Windows in which the champion's loss is about 10, and the refit's loss about a given value."""
    noise = [0.1 * (-1) ** block for block in range(12)]
    return tuple(
        GainResult(
            **{
                "state": "measured",
                "version": 2,
                "loss": "absolute error",
                "blocks": tuple((10.0, refit + each) for each in noise),
                "reason": "",
                **changes,
            }
        )
        for refit in refits
    )


def comparison(*, better: bool = False, valid: bool = True) -> ChampionComparison:
    return ChampionComparison(
        rows=800, champion=90, previous=60, previous_is_better=better, input_valid=valid, reason="mae 90 against 60"
    )


def evidence(**changes: Any) -> Evidence:
    return Evidence(**{"now": NOW, "champion": 2, "since": NOW - dt.timedelta(days=40), "previous": 1, **changes})


def test_ok_windows_lead_to_nothing() -> None:
    """Unknown windows, or no windows, also lead to no action."""
    assert decide(evidence(drift=drift_windows("ok", "ok"), quality=quality_windows("ok")), PLAIN).action == "nothing"
    assert (
        decide(evidence(drift=drift_windows("unknown"), quality=quality_windows("unknown")), PLAIN).action == "nothing"
    )
    assert decide(evidence(), PLAIN).action == "nothing"


@pytest.mark.parametrize("sign", ["drift", "quality"])
def test_one_bad_window_warns_and_the_second_of_three_retrains(sign: str) -> None:
    """A single bad window starts no training, nor do older ones if the newest window is ok."""
    made: Any = drift_windows if sign == "drift" else quality_windows
    bad, fine = ("drift", "ok") if sign == "drift" else ("degraded", "ok")
    each = decide(evidence(**{sign: made(fine, fine, bad)}), PLAIN)
    two = decide(evidence(**{sign: made(bad, fine, bad)}), PLAIN)
    over = decide(evidence(**{sign: made(bad, bad, fine)}), PLAIN)
    assert (each.action, two.action, over.action) == ("warn", "retrain", "nothing")
    assert two.trigger == sign


def test_a_trigger_that_is_not_configured_only_warns() -> None:
    """With retraining on quality only, drift leads to a warning."""
    config = RetrainConfig(triggers=("quality",))
    assert decide(evidence(drift=drift_windows("drift", "drift", "drift")), config).action == "warn"


def test_invalid_input_blocks() -> None:
    """No model is trained on invalid input, and no version is rolled back because of it."""
    problem = evidence(
        drift=drift_windows("drift", "invalid_schema"),
        quality=quality_windows("degraded", "degraded"),
        comparison=comparison(better=True),
    )
    assert decide(problem, PLAIN).action == "block"
    assert (
        decide(
            evidence(quality=quality_windows("degraded", "degraded"), comparison=comparison(valid=False)), PLAIN
        ).action
        == "block"
    )


def test_rollback_if_the_previous_champion_is_better() -> None:
    """One bad window is enough if the comparison is significant and the config allows a rollback."""
    problem = evidence(quality=quality_windows("degraded"), comparison=comparison(better=True))
    assert decide(problem, PLAIN).action == "roll back"
    assert decide(problem, RetrainConfig(rollback=False)).action == "warn"
    assert decide(problem.model_copy(update={"previous": None}), PLAIN).action == "warn"
    assert (
        decide(evidence(quality=quality_windows("degraded", "degraded"), comparison=comparison()), PLAIN).action
        == "retrain"
    )


def test_cooldown_and_too_few_new_rows_prevent_a_training() -> None:
    """The warning has the reason."""
    bad = evidence(quality=quality_windows("degraded", "degraded"))
    in_cooldown = decide(bad.model_copy(update={"last_training": NOW - dt.timedelta(days=3)}), PLAIN)
    few = decide(bad.model_copy(update={"new_rows": 12}), PLAIN)
    free = decide(bad.model_copy(update={"last_training": NOW - dt.timedelta(days=7), "new_rows": 200}), PLAIN)
    assert (in_cooldown.action, few.action, free.action) == ("warn", "warn", "retrain")
    assert "cooldown 7 days" in in_cooldown.reason
    assert "12 new rows" in few.reason


@pytest.mark.parametrize(("reaction", "action"), [("alert", "warn"), ("rollback", "roll back"), ("retrain", "retrain")])
def test_an_slo_breach_causes_the_configured_action(reaction: Any, action: str) -> None:
    """An SLO breach causes a warning, a rollback or a training."""
    assert decide(evidence(breach="99.1 % answered", on_breach=reaction), PLAIN).action == action


def test_degraded_quality_beside_a_breach_has_its_own_alert() -> None:
    """The breach alone is left to the alert of its SLO."""
    breach = {"breach": "99.1 % answered", "on_breach": "alert"}
    assert decide(evidence(**breach), PLAIN).trigger == "slo"
    both = decide(evidence(**breach, quality=quality_windows("degraded"), labels_arrive=True), PLAIN)
    assert (both.action, both.trigger, "99.1 %" in both.reason) == ("warn", None, True)


def test_the_cause_changes_only_after_an_action() -> None:
    """Two flows that detect the same problem have the same cause; after a training there is a new cause."""
    problem = evidence(drift=drift_windows("drift", "drift"))
    other = evidence(quality=quality_windows("degraded", "degraded"), now=NOW + dt.timedelta(hours=2))
    later = problem.model_copy(update={"last_training": NOW - dt.timedelta(days=30)})
    assert decide(problem, PLAIN).cause == decide(other, PLAIN).cause != decide(later, PLAIN).cause
    warned = [decide(evidence(drift=drift_windows("drift"), now=NOW + dt.timedelta(days=n)), PLAIN) for n in (0, 1)]
    assert warned[0].cause != warned[1].cause


def test_a_training_that_pays_is_started_without_a_bad_window() -> None:
    """One window is enough; a smaller gain than the required one starts nothing."""
    pays = decide(evidence(labels_arrive=True, quality=quality_windows("ok"), gain=gain_windows(8.0)), PLAIN)
    assert (pays.action, pays.trigger) == ("retrain", "gain")
    assert "20.0%" in pays.reason
    small = decide(evidence(labels_arrive=True, quality=quality_windows("ok"), gain=gain_windows(9.7)), PLAIN)
    assert small.action == "nothing"
    assert "3.0%" in small.reason
    cooldown = evidence(labels_arrive=True, gain=gain_windows(8.0), last_training=NOW - dt.timedelta(days=1))
    assert decide(cooldown, PLAIN).action == "warn"


def test_drift_and_quality_only_warn_while_the_gain_is_measured() -> None:
    """The warning says that a training would change nothing."""
    bad = {"drift": drift_windows("drift", "drift"), "quality": quality_windows("degraded", "degraded")}
    decision = decide(evidence(**bad, labels_arrive=True, gain=gain_windows(10.0, 10.0)), PLAIN)
    assert decision.action == "warn"
    assert "quality degraded" in decision.reason
    assert "a training would" in decision.reason
    assert decide(evidence(**bad, labels_arrive=True), PLAIN).action == "warn", "the first window is awaited"


def test_drift_and_quality_decide_where_the_gain_is_not_known() -> None:
    """The gain is unknown without labels, without a refit of the recipe, or if it is no trigger."""
    bad = {"drift": drift_windows("drift", "drift")}
    unavailable = gain_windows(10.0, state="unavailable")
    assert decide(evidence(**bad), PLAIN).trigger == "drift"
    assert decide(evidence(**bad, labels_arrive=True, gain=unavailable), PLAIN).trigger == "drift"
    explicit = RetrainConfig(triggers=("drift", "quality"))
    assert decide(evidence(**bad, labels_arrive=True, gain=gain_windows(10.0)), explicit).trigger == "drift"
