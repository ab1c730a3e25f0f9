"""Rollouts in the ledger: which versions may start one, which rows change it, and which end it."""

import datetime as dt
from pathlib import Path

import pytest
from pydantic import ValidationError

from towline.config import RolloutConfig
from towline.errors import PromotionRejectedError
from towline.registry.ledger import JudgedVersion, Ledger
from towline.registry.rollouts import (
    Rollout,
    active_rollout,
    change_rollout,
    end_rollout,
    reject_waiting,
    start_rollout,
    waiting_version,
)

PASSED = {"verdict": "pass", "checks": []}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Version 1 is champion; versions 2 and 3 passed, version 4 was refused."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    judged = {}
    for version in (1, 2, 3, 4):
        run_key = f"run{version}"
        ledger.register("houses", "ann", "trained", {}, run_key)
        evidence = {**PASSED, "release": f"digest{version}"}
        judged[version] = JudgedVersion(version, run_key, f"releases/houses/v{version}", evidence)
    ledger.promote("houses", judged[1], None, "ann", "passed")
    ledger.mark_passed("houses", judged[2], "ann", "passed")
    ledger.mark_passed("houses", judged[3], "ann", "passed")
    ledger.refuse("houses", judged[4]._replace(evidence={"verdict": "fail"}), "ann", "fail")
    return ledger


def rollout_of(ledger: Ledger) -> Rollout:
    rollout = active_rollout(ledger.rows("houses"))
    assert rollout is not None
    return rollout


def start(ledger: Ledger, version: int = 2, *, replace: bool = False) -> Rollout:
    start_rollout(ledger, "houses", version, RolloutConfig(), "ann", "passed", replace=replace)
    return rollout_of(ledger)


def test_a_rollout_starts_in_shadow_and_keeps_the_champion(ledger: Ledger) -> None:
    rollout = start(ledger)
    assert (rollout.champion, rollout.challenger, rollout.weight) == (1, 2, 0.0)
    assert (rollout.release, rollout.digest) == ("releases/houses/v2", "digest2")
    champion = ledger.champion("houses")
    assert champion is not None
    assert champion.version == 1


def test_a_step_changes_the_weight_and_the_time_of_the_step(ledger: Ledger) -> None:
    first = start(ledger)
    change_rollout(ledger, first, "ann", "no error", step=2)
    second = rollout_of(ledger)
    assert (second.weight, second.id) == (0.05, first.id)
    assert second.since > first.since
    assert second.started == first.started


def test_a_pause_keeps_weight_and_time_of_the_step(ledger: Ledger) -> None:
    change_rollout(ledger, start(ledger), "ann", "no error", step=1)
    before = rollout_of(ledger)
    change_rollout(ledger, before, "bob", "holiday", paused=True)
    paused = rollout_of(ledger)
    assert (paused.paused, paused.weight, paused.since) == (True, before.weight, before.since)
    change_rollout(ledger, paused, "bob", "back", paused=False)
    assert not rollout_of(ledger).paused


def test_a_promotion_by_the_rollout_makes_the_challenger_champion_with_its_verdict(ledger: Ledger) -> None:
    entry = end_rollout(ledger, start(ledger), "promoted", "ann", "better", {})
    assert (entry.event, entry.version, entry.previous) == ("promoted", 2, 1)
    assert entry.evidence["verdict"] == "pass"
    assert active_rollout(ledger.rows("houses")) is None
    ledger.verify()


def test_after_an_abort_the_champion_stays_and_the_challenger_may_be_promoted_by_hand(ledger: Ledger) -> None:
    rollout = start(ledger)
    first = end_rollout(ledger, rollout, "aborted", "ann", "raises", {})
    assert end_rollout(ledger, rollout, "aborted", "ann", "raises", {}).seq == first.seq
    assert active_rollout(ledger.rows("houses")) is None
    assert ledger.aliases("houses")["champion"] == 1
    assert ledger.promote_again("houses", 2, 1, "ann", "by hand").event == "promoted"


@pytest.mark.parametrize("version", [1, 4, 9], ids=["the champion", "a refused version", "an unknown version"])
def test_a_version_that_cannot_be_rolled_out_is_refused_and_nothing_changes(ledger: Ledger, version: int) -> None:
    rows = ledger.rows("houses")
    with pytest.raises(PromotionRejectedError):
        start(ledger, version)
    assert ledger.rows("houses") == rows


def test_a_second_rollout_is_refused_unless_it_replaces_the_first(ledger: Ledger) -> None:
    first = start(ledger)
    with pytest.raises(PromotionRejectedError, match="under way") as refusal:
        start(ledger, 3)
    assert "towline rollout abort houses" in refusal.value.remedy
    assert rollout_of(ledger) == first
    second = start(ledger, 3, replace=True)
    assert second.challenger == 3
    with pytest.raises(PromotionRejectedError, match="has ended"):
        change_rollout(ledger, first, "ann", "no error", step=1)


def test_starting_the_same_rollout_again_returns_its_row(ledger: Ledger) -> None:
    start(ledger)
    rows = ledger.rows("houses")
    start(ledger)
    assert ledger.rows("houses") == rows


def test_a_version_that_passes_during_a_rollout_waits_for_its_rollout(ledger: Ledger) -> None:
    assert waiting_version(ledger.rows("houses")) is None
    first = start(ledger)
    judged = JudgedVersion(5, "run5", "releases/houses/v5", {**PASSED, "release": "digest5"})
    ledger.register("houses", "ann", "trained", {}, "run5")
    ledger.mark_passed("houses", judged, "ann", "passed")
    end_rollout(ledger, first, "aborted", "ann", "raises", {})
    assert waiting_version(ledger.rows("houses")) == 5
    start(ledger, 5)
    assert waiting_version(ledger.rows("houses")) is None


def test_a_waiting_version_that_cannot_be_rolled_out_waits_no_longer(ledger: Ledger) -> None:
    first = start(ledger)
    judged = JudgedVersion(5, "run5", "releases/houses/v5", {**PASSED, "release": "digest5"})
    ledger.register("houses", "ann", "trained", {}, "run5")
    ledger.mark_passed("houses", judged, "ann", "passed")
    end_rollout(ledger, first, "aborted", "ann", "raises", {})
    reject_waiting(ledger, "houses", 5, "ann", "needs another field")
    assert waiting_version(ledger.rows("houses")) is None


def test_a_waiting_version_still_waits_if_another_rollout_has_started(ledger: Ledger) -> None:
    """A rollout is started by hand while `towline up` tries to start that of the waiting version."""
    first = start(ledger, 2)
    ledger.register("houses", "ann", "trained", {}, "run5")
    ledger.mark_passed("houses", JudgedVersion(5, "run5", "releases/houses/v5", PASSED), "ann", "passed")
    end_rollout(ledger, first, "aborted", "ann", "worse", {})
    started = start(ledger, 3)
    reject_waiting(ledger, "houses", 5, "ann", "a rollout is under way")
    assert rollout_of(ledger) == started
    assert waiting_version(ledger.rows("houses")) == 5


def test_a_promotion_by_hand_ends_the_rollout(ledger: Ledger) -> None:
    rollout = start(ledger)
    ledger.promote_again("houses", 3, 1, "bob", "urgent")
    assert active_rollout(ledger.rows("houses")) is None
    with pytest.raises(PromotionRejectedError):
        end_rollout(ledger, rollout, "promoted", "ann", "better", {})


@pytest.mark.parametrize("steps", [[1, 5, 25], [50, 5, 100], [-1, 100], [0, 5, 5, 100], [0, 120]])
def test_weights_that_do_not_rise_to_100_percent_are_refused(steps: list[float]) -> None:
    with pytest.raises(ValidationError, match="must rise to 100 percent"):
        RolloutConfig(steps=tuple(steps))


def test_steps_that_take_longer_than_the_rollout_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"rollout\.bake"):
        RolloutConfig(bake=dt.timedelta(days=5))


def test_an_aborted_rollout_is_not_promoted(ledger: Ledger) -> None:
    """It was aborted while its end was decided: the champion stays. A promotion that is repeated has no effect."""
    rollout = start(ledger)
    end_rollout(ledger, rollout, "aborted", "ann", "wrong prices", {})
    with pytest.raises(PromotionRejectedError, match="has ended"):
        end_rollout(ledger, rollout, "promoted", "flow", "better", {})
    assert [row.version for row in ledger.rows("houses") if row.event == "promoted"] == [1]
    second = start(ledger, 3)
    first = end_rollout(ledger, second, "promoted", "flow", "better", {})
    assert end_rollout(ledger, second, "promoted", "flow", "better", {}) == first


def test_a_pause_is_not_overwritten_by_an_earlier_decision(ledger: Ledger) -> None:
    """A person pauses while the flow decides: neither the weight grows nor is the challenger promoted."""
    rollout = start(ledger)
    change_rollout(ledger, rollout, "ann", "check prices", paused=True)
    with pytest.raises(PromotionRejectedError, match="paused"):
        change_rollout(ledger, rollout, "flow", "next step", step=1)
    with pytest.raises(PromotionRejectedError, match="paused"):
        end_rollout(ledger, rollout, "promoted", "flow", "better", {})
    paused = rollout_of(ledger)
    assert (paused.paused, paused.step) == (True, 0)
    change_rollout(ledger, paused, "ann", "prices are right", step=1)
    assert (rollout_of(ledger).paused, rollout_of(ledger).step) == (True, 1)


def test_a_repeated_step_is_recorded_once(ledger: Ledger) -> None:
    """A task that is retried after the change gets the row that it wrote."""
    rollout = start(ledger)
    first = change_rollout(ledger, rollout, "flow", "next step", step=1)
    assert change_rollout(ledger, rollout, "flow", "next step", step=1) == first
