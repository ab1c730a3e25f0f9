"""Approvals: without them nothing is promoted; each applies to one release, one person and a limited time."""

import datetime as dt
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import towline
from tests.support.commands import CommandResult
from tests.support.sample_store import MODEL, SampleStore
from towline.api_keys import create_key, revoke_key
from towline.config import ApprovalConfig, RolloutConfig
from towline.errors import ConfigError, PromotionRejectedError, ReleaseError, TowlineError
from towline.prediction_log.attribution import attribute_time
from towline.promotion import approval_decision
from towline.promotion.approval_decision import (
    ApprovalStatus,
    approve,
    expire_requests,
    list_approvals,
    promote_approved,
    resume_promotion,
)
from towline.promotion.outcome import Outcome
from towline.registry import approvals, hash_chain
from towline.registry.hash_chain import Entry
from towline.registry.ledger import JudgedVersion, Ledger, open_ledger
from towline.registry.rollouts import active_rollout, end_rollout, start_rollout, waiting_version
from towline.registry.verification import verify_models

Command = Callable[..., CommandResult]


class Store:
    """A store in which a third version, of the release of version 2, waits for approval; version 1 is champion."""

    def __init__(self, sample_store: SampleStore, **approval: Any) -> None:
        self.settings = sample_store.settings
        self.ledger = open_ledger(self.settings)
        rows = self.ledger.rows(MODEL)
        self.judged = next(row for row in rows if row.version == 2 and row.event == "promoted")
        with closing(sqlite3.connect(sample_store.ledger_file)) as connection, connection:
            connection.execute("DELETE FROM ledger WHERE seq > 3")  # version 2 has no verdict yet
        self.request(**approval)

    def request(self, rollout: RolloutConfig | None = None, **approval: Any) -> Entry:
        config = ApprovalConfig(**approval)
        evidence = {
            **self.judged.evidence,
            "approval": approvals.request_evidence(config, dt.datetime.now(dt.UTC)),
            "rollout_after_approval": rollout.model_dump(mode="json") if rollout else None,
        }
        version = JudgedVersion(2, self.judged.run_key, self.judged.release, evidence)
        return self.ledger.mark_passed(MODEL, version, "ann", "passed 9 checks; awaiting approval")

    def key(self, holder: str, scope: Any = "admin") -> str:
        return create_key(self.settings.store, holder, [scope])[0]

    def approve(self, key: str, actor: str = "bob") -> ApprovalStatus:
        return approve(self.settings, f"{MODEL}@2", key, actor=actor, reason="checked")

    @property
    def champion(self) -> int:
        champion = self.ledger.champion(MODEL)
        assert champion is not None
        return champion.version

    @property
    def status(self) -> ApprovalStatus:
        return list_approvals(self.settings, self.ledger, MODEL)[0]


def set_clock_forward(monkeypatch: pytest.MonkeyPatch, later: dt.timedelta) -> None:
    """Sets the clock of the ledger forward."""

    class Later(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return dt.datetime.now(tz) + later

    class Clock:
        datetime, UTC = Later, dt.UTC
        timedelta = dt.timedelta

    for module in (hash_chain, __import__("towline.registry.ledger", fromlist=["dt"])):
        monkeypatch.setattr(module, "dt", Clock)


@pytest.fixture
def project(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> SampleStore:
    for name in ("PROJECT", "STORE"):
        monkeypatch.setenv(f"TOWLINE_{name}", str(sample_store.settings.store))
    monkeypatch.setenv("TOWLINE_TRACKING_URI", "")
    return sample_store


def test_the_last_approval_promotes(sample_store: SampleStore) -> None:
    """Until then the champion is unchanged; the ledger has approver, approved digest and the reason."""
    store = Store(sample_store, required=2)
    assert store.ledger.state(MODEL, 2) == "awaiting approval"
    assert (store.approve(store.key("bob")).state, store.champion) == ("waiting", 1)
    status = store.approve(store.key("eva"), actor="eva")
    assert (status.state, store.champion) == ("promoted", 2)
    assert [approval.holder for approval in status.approvals] == ["bob", "eva"]
    rows = [row for row in store.ledger.rows(MODEL) if row.event == "approved"]
    assert {row.evidence["release"] for row in rows} == {store.judged.evidence["release"]} == {status.digest}
    champion = store.ledger.champion(MODEL)
    assert champion is not None
    assert "passed 9 checks; approved by bob (key " in champion.reason
    served = attribute_time(store.settings, store.ledger, MODEL, dt.datetime.fromisoformat(champion.time))
    assert [text.partition(" ")[0] for text in served.approved_by] == ["bob", "eva"]
    assert [check.state for check in verify_models(store.settings) if check.name == "approvals"] == ["ok"]


def test_promotion_by_hand_needs_approval_too(project: SampleStore, command: Command) -> None:
    """`towline promote` and a rollout are refused with the command to approve, which works."""
    store = Store(project)
    refused = command("promote", f"{MODEL}@2", "--reason", "now")
    assert (refused.code, store.champion) == (4, 1)
    assert f"towline approve {MODEL}@2" in refused.err
    with pytest.raises(PromotionRejectedError, match="waits for approval"):
        start_rollout(store.ledger, MODEL, 2, RolloutConfig(), "ann", "now")
    assert waiting_version(store.ledger.rows(MODEL)) is None
    key_file = project.settings.store / "key.txt"
    key_file.write_text(store.key("bob") + "\n")
    result = command("approve", f"{MODEL}@2", "--key-file", key_file, "--json")
    assert (result.code, result.json["state"], store.champion) == (0, "promoted", 2)
    assert "promoted, 1 of 1 approvals" in command("approvals", MODEL).out
    assert towline.approvals(MODEL)[0].approvals[0].holder == "bob"


def test_a_rollback_and_a_second_promotion_need_no_new_approval(sample_store: SampleStore) -> None:
    """The approval is for the release, so its version may be promoted again."""
    store = Store(sample_store)
    store.approve(store.key("bob"))
    store.ledger.rollback(MODEL, "policy", "errors")
    assert store.champion == 1
    store.ledger.promote_again(MODEL, 2, 1, "ann", "it was the network")
    store.ledger.promote_again(MODEL, 1, 2, "ann", "back")
    store.ledger.rollback(MODEL, "policy", "errors")
    assert store.champion == 2


def test_an_approval_needs_a_valid_key_with_scope_admin(project: SampleStore, command: Command) -> None:
    """Unknown, without the scope, revoked, or missing: nothing is recorded."""
    store = Store(project)
    revoked, key = create_key(store.settings.store, "bob", ["admin"])
    revoke_key(store.settings.store, key.id)
    for presented in ("tl_00000000_x", store.key("shop", "predict"), revoked, ""):
        with pytest.raises(ConfigError, match="the API key"):
            store.approve(presented)
    none = command("approve", f"{MODEL}@2")
    assert (none.code, "TOWLINE_API_KEY" in none.err) == (2, True)
    assert not any(row.event == "approved" for row in store.ledger.rows(MODEL))


def test_two_person_rule(sample_store: SampleStore) -> None:
    """With two required, the starter of the run, the same person twice, and a key that is not listed do not count."""
    store = Store(sample_store, required=2)
    with pytest.raises(PromotionRejectedError, match="ann started the run"):
        store.approve(store.key("Ann"))
    with pytest.raises(PromotionRejectedError, match="ann started the run"):
        store.approve(store.key("ops"), actor="ann")
    store.approve(store.key("bob"))
    store.approve(store.key("bob"))
    assert (len(store.status.approvals), store.champion) == (1, 1)


def test_only_listed_keys_may_approve(sample_store: SampleStore) -> None:
    """A new key of another person does not count."""
    text, key = create_key(sample_store.settings.store, "eva", ["admin"])
    store = Store(sample_store, approvers=(key.id,))
    with pytest.raises(PromotionRejectedError, match=r"not in approval\.approvers"):
        store.approve(store.key("mallory"))
    assert store.approve(text).state == "promoted"


def test_approvals_expire_to_a_refusal(sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit, the ledger records a refusal; earlier approvals have no effect."""
    store = Store(sample_store, required=2, expires="1h")
    store.approve(store.key("bob"))
    assert expire_requests(store.ledger, MODEL, "up") == []
    set_clock_forward(monkeypatch, dt.timedelta(hours=2))
    key = store.key("eva")
    with pytest.raises(PromotionRejectedError, match="the time to approve version 2 is over") as caught:
        store.approve(key)
    assert "towline run CONFIG --force" in caught.value.remedy
    assert (store.status.state, store.champion, store.ledger.state(MODEL, 2)) == ("refused", 1, "refused")
    with pytest.raises(PromotionRejectedError, match="is over"):
        store.ledger.promote_again(MODEL, 2, 1, "ann", "please")
    row = store.ledger.rows(MODEL)[-1]
    assert (row.event, row.evidence["verdict"]) == ("refused", "expired")
    assert expire_requests(store.ledger, MODEL, "up") != []
    assert store.ledger.rows(MODEL)[-1] == row, "it is refused once"


def test_an_approval_of_another_release_does_not_count(sample_store: SampleStore) -> None:
    """An approval copied to another version, run or digest, or without a signature, is ignored."""
    store = Store(sample_store)
    key = store.key("bob")
    (request,) = approvals.list_requests(store.ledger.rows(MODEL))
    (stored,) = towline_keys(store)
    genuine = {"key": stored.id, "holder": "bob", "release": request.digest}
    signature = approvals.sign(stored, request)
    forged: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"version": 1}, {"signature": signature}),
        ({"run_key": "another run"}, {"signature": signature}),
        ({}, {"signature": signature, "release": "another digest"}),
        ({}, {"signature": "0" * 64}),
        ({}, {}),
        ({}, {"signature": signature, "holder": "eva"}),
    ]
    for fields, evidence in forged:
        row = {"version": 2, "run_key": request.run_key, "release": request.release, **fields}
        draft = hash_chain.NewRow(
            event="approved", previous=1, actor="mallory", reason="", evidence={**genuine, **evidence}, **row
        )
        store.ledger.append(MODEL, lambda _rows, draft=draft: draft)  # type: ignore[misc]
        with pytest.raises(PromotionRejectedError, match="waits for approval: it has 0 of 1"):
            store.ledger.promote_again(MODEL, 2, 1, "mallory", "approved")
    assert store.approve(key).state == "promoted"


def towline_keys(store: Store) -> Any:
    from towline.api_keys import read_keys

    return read_keys(store.settings.store).keys


def test_a_revoked_key_takes_its_approval_back(sample_store: SampleStore) -> None:
    """A stolen key is revoked before the second approval: its approval no longer counts."""
    store = Store(sample_store, required=2)
    text, key = create_key(store.settings.store, "bob", ["admin"])
    store.approve(text)
    revoke_key(store.settings.store, key.id)
    assert (store.approve(store.key("eva")).state, store.champion) == ("waiting", 1)


def test_a_changed_release_cannot_be_approved(sample_store: SampleStore) -> None:
    """The approval is for the files that the gate judged."""
    store = Store(sample_store)
    (sample_store.release(2) / "profile.json").write_text("{}")
    with pytest.raises(ReleaseError, match=r"profile\.json"):
        store.approve(store.key("bob"))
    assert store.champion == 1


def test_a_champion_that_changed_meanwhile(sample_store: SampleStore) -> None:
    """The gate compared with another champion: the approval is recorded, but `towline promote` is needed."""
    store = Store(sample_store)
    key = store.key("bob")
    store.ledger.register(MODEL, "ann", "trained", {}, "key3")
    other = JudgedVersion(3, "key3", "releases/other", {"verdict": "pass"})
    store.ledger.promote(MODEL, other, 1, "ann", "passed")
    status = store.approve(key)
    assert (status.state, store.champion) == ("approved", 3)
    assert "the champion has changed meanwhile" in status.note
    store.ledger.promote_again(MODEL, 2, 3, "ann", "still better")
    assert store.champion == 2


def test_a_rollout_starts_after_the_approval(sample_store: SampleStore) -> None:
    """With both in the config, the last approval starts the rollout instead of a promotion."""
    store = Store(sample_store, rollout=RolloutConfig())
    assert store.approve(store.key("bob")).state == "in rollout"
    rollout = active_rollout(store.ledger.rows(MODEL))
    assert rollout is not None
    assert (rollout.challenger, store.champion) == (2, 1)
    end_rollout(store.ledger, rollout, "aborted", "ann", "it is slow", {})
    assert [each.state for each in list_approvals(store.settings, store.ledger, MODEL)] == ["rollout ended"]


def test_a_promotion_without_approval_is_a_fault(sample_store: SampleStore) -> None:
    """`towline verify` names a promotion that was written to the ledger by other means."""
    store = Store(sample_store)
    forged = hash_chain.NewRow(
        event="promoted", version=2, previous=1, actor="mallory", reason="", evidence=store.judged.evidence,
        run_key=store.judged.run_key, release=store.judged.release,
    )  # fmt: skip
    store.ledger.append(MODEL, lambda _rows: forged)
    (fault,) = [check for check in verify_models(store.settings) if check.name == "approvals"]
    assert (fault.state, "was promoted with 0 of 1 approval" in fault.what) == ("fault", True)


def test_concurrent_approvals_and_promotions(sample_store: SampleStore) -> None:
    """Concurrent approvals and promotions: one promotion, after two approvals."""
    store = Store(sample_store, required=2)
    keys = [store.key("bob"), store.key("eva")]

    def attempt(number: int) -> Entry | ApprovalStatus | TowlineError:
        try:
            if number % 3:
                return open_ledger(store.settings).promote_again(MODEL, 2, 1, "mallory", "now")
            return store.approve(keys[number // 3 % 2])
        except TowlineError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(attempt, range(12)))
    rows = store.ledger.rows(MODEL)
    promotions = [row for row in rows if row.event == "promoted" and row.version == 2]
    counted = [row for row in rows if row.event == "approved" and row.seq < promotions[0].seq]
    assert (len(promotions), len(counted)) == (1, 2)
    store.ledger.verify()


def test_the_run_ends_awaiting_approval(sample_store: SampleStore) -> None:
    """The outcome of the run names the open approvals."""
    store = Store(sample_store, required=2)
    entry = store.ledger.finished(MODEL, store.judged.run_key)
    assert entry is not None
    outcome = Outcome.from_entry(entry, store.judged.run_key)
    assert (outcome.event, outcome.approval.startswith("2 approvals until ")) == ("passed", True)


@pytest.mark.parametrize(
    ("approval", "message"),
    [
        ({"required": 2, "approvers": ["0a1b2c3d"]}, "lists 1 keys"),
        ({"required": 0}, "greater than or equal to 1"),
        ({"expires": "10s"}, "at least a minute"),
        ({"approvers": ["bob"]}, "pattern"),
    ],
)
def test_an_approval_rule_that_cannot_be_met_is_refused(approval: dict[str, Any], message: str) -> None:
    """Before a run, not after it."""
    with pytest.raises(ValidationError, match=message):
        ApprovalConfig.model_validate(approval)


def test_repeated_calls_change_nothing(sample_store: SampleStore, tmp_path: Path) -> None:
    """If an approval was interrupted before the promotion, the same command completes it."""
    store = Store(sample_store)
    key = store.key("bob")
    store.approve(key)
    before = store.ledger.rows(MODEL)
    assert store.approve(key).state == "promoted"
    (request,) = approvals.list_requests(before)
    assert promote_approved(store.settings, store.ledger, request, "bob").state == "promoted"
    assert store.ledger.rows(MODEL) == before
    assert Ledger(f"sqlite:///{tmp_path}/none.db").rows(MODEL) == []


def test_a_promotion_that_was_interrupted_after_the_last_approval_is_resumed(
    sample_store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: after a rollback the version is left to a person."""
    store = Store(sample_store)
    with monkeypatch.context() as patch:
        patch.setattr(approval_decision, "promote_approved", lambda *_: store.status)  # killed between both writes
        assert store.approve(store.key("bob")).state == "approved"
    assert store.champion == 1
    resumed = resume_promotion(store.settings, store.ledger, MODEL, "up")
    assert resumed is not None
    assert (resumed.state, store.champion) == ("promoted", 2)
    assert resume_promotion(store.settings, store.ledger, MODEL, "up") is None
    store.ledger.rollback(MODEL, "ann", "worse")
    assert resume_promotion(store.settings, store.ledger, MODEL, "up") is None
    assert store.champion == 1
