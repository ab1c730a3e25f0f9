"""The decision that follows from the evidence of a rollout: wait, advance, promote, abort, end."""

import datetime as dt
from typing import Any

import pytest

from towline.config import RolloutConfig
from towline.monitoring.rollout_evaluation import decide_action
from towline.registry.rollouts import Rollout
from towline.rollout.analysis import RolloutVerdict

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def rollout(step: int = 1, *, paused: bool = False, **config: Any) -> Rollout:
    return Rollout(
        id="a", model="houses", champion=1, challenger=2, release="r", digest="d", config=RolloutConfig(**config),
        step=step, paused=paused, started=START, since=START,
    )  # fmt: skip


def decide(
    verdict: str, rollout: Rollout, *, answered: int = 1000, stopped: str = "", after: dt.timedelta = 2 * HOUR
) -> str:
    judged = RolloutVerdict(verdict, (), None, None, "the reason")  # type: ignore[arg-type]
    return decide_action(rollout, answered, judged, stopped, START + after)[0]


def test_the_weight_increases_after_a_step_without_faults() -> None:
    assert decide("waiting", rollout(step=1)) == "advance"


def test_the_step_lasts_at_least_its_time() -> None:
    assert decide("waiting", rollout(step=1), after=HOUR / 2) == "wait"


def test_no_traffic_is_neither_promoted_nor_aborted() -> None:
    """Without responses of the challenger the weight does not increase, however long the step lasts."""
    for verdict in ("waiting", "promote"):
        assert decide(verdict, rollout(step=1), answered=0, after=100 * HOUR) == "wait"


def test_all_requests_go_to_the_challenger_only_when_it_is_better() -> None:
    before_full = len(RolloutConfig().weights) - 2
    assert decide("waiting", rollout(step=before_full)) == "wait"
    assert decide("promote", rollout(step=before_full)) == "advance"


def test_it_is_promoted_after_the_last_step() -> None:
    last = len(RolloutConfig().weights) - 1
    assert decide("promote", rollout(step=last)) == "promote"
    assert decide("promote", rollout(step=last), after=HOUR / 2) == "wait"
    assert decide("waiting", rollout(step=last)) == "wait"


@pytest.mark.parametrize("strategy", ["shadow", "blue-green", "ab"])
def test_strategies_of_one_step_end_with_the_verdict(strategy: str) -> None:
    assert decide("promote", rollout(step=0, strategy=strategy)) == "promote"
    assert decide("waiting", rollout(step=0, strategy=strategy)) == "wait"
    assert decide("abort", rollout(step=0, strategy=strategy)) == "abort"


def test_a_worse_or_stopped_challenger_is_aborted_also_while_paused() -> None:
    for paused in (False, True):
        assert decide("abort", rollout(paused=paused), after=HOUR / 2) == "abort"
        assert decide("promote", rollout(paused=paused), stopped="raises") == "abort"


def test_a_paused_rollout_waits() -> None:
    assert decide("promote", rollout(step=5, paused=True), after=100 * HOUR) == "wait"


def test_after_the_maximum_time_the_champion_stays_unless_the_config_promotes() -> None:
    late = RolloutConfig().until + HOUR
    assert decide("waiting", rollout(), after=late) == "end"
    assert decide("waiting", rollout(inconclusive="promote"), after=late) == "promote"


def test_a_rollout_waits_if_the_clock_was_set_back() -> None:
    assert decide("waiting", rollout(), after=-1000 * HOUR) == "wait"
