"""What is done for which evidence."""

import datetime as dt
from typing import Any

import pytest

from towline.config import RetrainConfig
from towline.monitoring.policy import Evidence, decide
from towline.monitoring.results import ChampionComparison, DriftResult, DriftState, QualityResult, QualityState
from towline.training.evaluation.interval import Interval

NOW = dt.datetime(2026, 3, 10, 2, tzinfo=dt.UTC)
PLAIN = RetrainConfig()


def nights(*states: DriftState) -> tuple[DriftResult, ...]:
    ends = [NOW - dt.timedelta(days=len(states) - 1 - at) for at in range(len(states))]
    return tuple(
        DriftResult(state=state, version=2, rows=900, end=end, budget=4, reason=f"drift {state}")
        for state, end in zip(states, ends, strict=True)
    )


def days(*states: QualityState) -> tuple[QualityResult, ...]:
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


def triage(*, better: bool = False, sound: bool = True) -> ChampionComparison:
    return ChampionComparison(
        rows=800, champion=90, previous=60, better=better, sound=sound, reason="mae 90 against 60"
    )


def known(**given: Any) -> Evidence:
    return Evidence(**{"now": NOW, "champion": 2, "since": NOW - dt.timedelta(days=40), "previous": 1, **given})


def test_calm_nights_lead_to_nothing() -> None:
    """Quiet windows, windows that say nothing and no windows at all."""
    assert decide(known(drift=nights("ok", "ok"), quality=days("ok")), PLAIN).action == "nothing"
    assert decide(known(drift=nights("unknown"), quality=days("unknown")), PLAIN).action == "nothing"
    assert decide(known(), PLAIN).action == "nothing"


@pytest.mark.parametrize("sign", ["drift", "quality"])
def test_one_bad_window_warns_and_the_second_of_three_retrains(sign: str) -> None:
    """k of n: a single bad window is no reason to train, and old ones that passed are none either."""
    made: Any = nights if sign == "drift" else days
    bad, fine = ("drift", "ok") if sign == "drift" else ("degraded", "ok")
    one = decide(known(**{sign: made(fine, fine, bad)}), PLAIN)
    two = decide(known(**{sign: made(bad, fine, bad)}), PLAIN)
    over = decide(known(**{sign: made(bad, bad, fine)}), PLAIN)
    assert (one.action, two.action, over.action) == ("warn", "retrain", "nothing")
    assert two.trigger == sign


def test_a_sign_that_is_not_asked_for_only_warns() -> None:
    """Who retrains on measured quality alone is told of drift, and no more."""
    config = RetrainConfig(triggers=("quality",))
    assert decide(known(drift=nights("drift", "drift", "drift")), config).action == "warn"


def test_broken_input_blocks_whatever_else_is_seen() -> None:
    """Nothing is learnt from input that breaks its contract, and no version is blamed for it."""
    seen = known(
        drift=nights("drift", "invalid_schema"), quality=days("degraded", "degraded"), triage=triage(better=True)
    )
    assert decide(seen, PLAIN).action == "block"
    assert decide(known(quality=days("degraded", "degraded"), triage=triage(sound=False)), PLAIN).action == "block"


def test_the_previous_champion_comes_back_where_it_does_better() -> None:
    """One bad window is enough where the triage is beyond doubt, there is a champion to return to, and it is wanted."""
    seen = known(quality=days("degraded"), triage=triage(better=True))
    assert decide(seen, PLAIN).action == "roll back"
    assert decide(seen, RetrainConfig(rollback=False)).action == "warn"
    assert decide(seen.model_copy(update={"previous": None}), PLAIN).action == "warn"
    assert decide(known(quality=days("degraded", "degraded"), triage=triage()), PLAIN).action == "retrain"


def test_cooldown_and_too_few_new_rows_hold_a_training_back() -> None:
    """The warning says why nothing is trained."""
    bad = known(quality=days("degraded", "degraded"))
    held = decide(bad.model_copy(update={"trained": NOW - dt.timedelta(days=3)}), PLAIN)
    few = decide(bad.model_copy(update={"new_rows": 12}), PLAIN)
    free = decide(bad.model_copy(update={"trained": NOW - dt.timedelta(days=7), "new_rows": 200}), PLAIN)
    assert (held.action, few.action, free.action) == ("warn", "warn", "retrain")
    assert "cooldown 7 days" in held.reason
    assert "12 new rows" in few.reason


@pytest.mark.parametrize(("wanted", "action"), [("alert", "warn"), ("rollback", "roll back"), ("retrain", "retrain")])
def test_a_breach_does_what_the_config_says(wanted: Any, action: str) -> None:
    """A budget that burns too fast is told, rolled back from or trained away."""
    assert decide(known(breach="99.1 % answered", on_breach=wanted), PLAIN).action == action


def test_a_cause_is_the_same_until_something_was_done_about_it() -> None:
    """Two flows that see the same ill have one cause, whatever showed it; after a training there is another."""
    seen = known(drift=nights("drift", "drift"))
    other = known(quality=days("degraded", "degraded"), now=NOW + dt.timedelta(hours=2))
    later = seen.model_copy(update={"trained": NOW - dt.timedelta(days=30)})
    assert decide(seen, PLAIN).cause == decide(other, PLAIN).cause != decide(later, PLAIN).cause
    warned = [decide(known(drift=nights("drift"), now=NOW + dt.timedelta(days=n)), PLAIN) for n in (0, 1)]
    assert warned[0].cause != warned[1].cause
