"""Attempts to promote without approval, and races promotions; counts the unapproved ones and the winners.

    python benchmarks/promotions.py --tries 1000 --races 200

Each try is a separate model whose version 2 needs two approvals. Four processes act on it at the same moment:

- missing: promotions and a rollout with one approval of two, and with approvals of one person
- raced: promotions while the two approvals arrive
- expired: approvals and promotions after the time limit
- replayed: approvals of version 2, copied into rows about version 3, and about another digest of version 2

A promotion counts as unapproved if the ledger has fewer than two approvals, of different people, of the digest of this
release, and in time, before it. In each race two processes promote two versions that passed. At the end the chain and
the seals of all models are verified.
"""

import argparse
import datetime as dt
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.api_keys import ApiKey, create_key
from towline.config import ApprovalConfig, RolloutConfig, Settings
from towline.errors import PromotionRejectedError
from towline.registry import approvals
from towline.registry.hash_chain import Entry, NewRow
from towline.registry.ledger import JudgedVersion, Ledger, open_ledger
from towline.registry.rollouts import start_rollout
from towline.registry.verification import verify_models

SCENARIOS = ("missing", "raced", "expired", "replayed")
Action = tuple[Any, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--races", type=int, default=200)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="towline promotions ") as folder, ProcessPoolExecutor(4) as pool:
        store = Path(folder)
        settings = Settings(project=store, store=store, tracking_uri="", ledger_url=f"sqlite:///{store}/ledger.db")
        ledger, people = open_ledger(settings), [create_key(store, name, ["admin"])[1] for name in ("bob", "eva")]
        tries, unapproved, promoted = Counter[str](), Counter[str](), Counter[str]()
        for number in range(given.tries):
            scenario, model = SCENARIOS[number % len(SCENARIOS)], f"try-{number}"
            actions = prepare(ledger, model, scenario, people)
            list(pool.map(act, [settings] * len(actions), [model] * len(actions), actions))
            tries[scenario] += 1
            rows = ledger.rows(model)
            promoted[scenario] += sum(row.event == "promoted" and row.version != 1 for row in rows)
            unapproved[scenario] += sum(not is_approved(rows, row) for row in rows if row.version != 1)
        winners = Counter(race(settings, ledger, pool, number) for number in range(given.races))
        faults = [check.what for check in verify_models(settings, quick=True) if check.state == "fault"]
    for scenario in SCENARIOS:
        print(f"{scenario:<10} {tries[scenario]:>5} tries {promoted[scenario]:>5} promoted "
              f"{unapproved[scenario]:>3} unapproved")  # fmt: skip
    print(f"{'total':<10} {tries.total():>5} tries {promoted.total():>5} promoted {unapproved.total():>3} unapproved")
    print(f"races      {given.races:>5}; winners: {dict(winners)}; faults of chain, seals, approvals: {len(faults)}")
    if unapproved.total() or set(winners) - {1} or faults:
        raise SystemExit("\n".join(["FAILED", *faults]))


def prepare(ledger: Ledger, model: str, scenario: str, people: Sequence[ApiKey]) -> list[Action]:
    """Writes version 1, which serves, and versions that wait for two approvals; returns what processes attempt."""
    ledger.promote(model, judge(ledger, model, 1), None, "ann", "first")
    age = dt.timedelta(days=8 if scenario == "expired" else 0)
    for version in (2, 3):
        judged = judge(ledger, model, version)
        approval_request = approvals.request_evidence(ApprovalConfig(required=2), dt.datetime.now(dt.UTC) - age)
        passed = judged._replace(evidence={**judged.evidence, "approval": approval_request})
        ledger.mark_passed(model, passed, "ann", "passed; awaiting approval")
    request, other = approvals.list_requests(ledger.rows(model))
    signed = [
        {"key": key.id, "holder": key.name, "release": request.digest, "signature": approvals.sign(key, request)}
        for key in people
    ]
    both: list[Action] = [("approve", request, evidence) for evidence in signed]
    promotions: list[Action] = [("promote", 2), ("promote", 2), ("rollout", 2)]
    if scenario == "missing":
        return [both[0], *promotions, both[0], ("promote", 2)]
    if scenario in ("raced", "expired"):
        return [promotions[0], *both, *promotions[1:], ("promote", 2), ("promote", 2)]
    copies: list[Action] = [("append", other, evidence) for evidence in signed]
    copies += [("append", other, {**evidence, "release": other.digest}) for evidence in signed]
    copies += [("append", request, {**evidence, "release": "another digest"}) for evidence in signed]
    return [*copies, ("promote", 3), ("promote", 2), ("rollout", 3), ("promote", 3), ("promote", 2)]


def judge(ledger: Ledger, model: str, version: int) -> JudgedVersion:
    ledger.register(model, "ann", "trained", {}, f"run{version}")
    evidence = {"verdict": "pass", "checks": [], "release": f"digest {version}"}
    return JudgedVersion(version, f"run{version}", f"releases/{model}/v{version}", evidence)


def act(settings: Settings, model: str, action: Action) -> bool:
    """One attempt, in a separate process; whether it was accepted."""
    ledger = open_ledger(settings)
    try:
        match action:
            case ("approve", request, evidence):
                ledger.approve(request, evidence, "carl", "checked")
            case ("promote", version):
                ledger.promote_again(model, version, 1, "mallory", "now")
            case ("rollout", version):
                start_rollout(ledger, model, version, RolloutConfig(), "mallory", "now")
            case ("append", request, evidence):
                draft = NewRow(
                    event="approved", version=request.version, previous=1, actor="mallory", reason="copied",
                    evidence=evidence, run_key=request.run_key, release=request.release,
                )  # fmt: skip
                ledger.append(model, lambda _rows: draft)
    except PromotionRejectedError:
        return False
    return True


def is_approved(rows: Sequence[Entry], row: Entry) -> bool:
    """Whether a promotion or a rollout comes after two genuine approvals; true of other rows."""
    if row.event not in ("promoted", "rollout_started"):
        return True
    passed = next(each for each in rows if each.event == "passed" and each.version == row.version)
    people = {
        each.evidence["holder"]
        for each in rows
        if each.event == "approved" and each.seq < row.seq and each.actor != "mallory"
        and (each.version, each.evidence["release"]) == (row.version, f"digest {row.version}")
        and each.time < passed.evidence["approval"]["expires"]
    }  # fmt: skip
    return len(people) >= 2


def race(settings: Settings, ledger: Ledger, pool: ProcessPoolExecutor, number: int) -> int:
    """Two processes promote two versions at the same moment; returns how many were accepted."""
    model = f"race-{number}"
    ledger.promote(model, judge(ledger, model, 1), None, "ann", "first")
    for version in (2, 3):
        ledger.mark_passed(model, judge(ledger, model, version), "ann", "passed")
    accepted = sum(pool.map(act, [settings] * 2, [model] * 2, [("promote", 2), ("promote", 3)]))
    promotions = sum(row.event == "promoted" and row.version != 1 for row in ledger.rows(model))
    return accepted if accepted == promotions else -1


if __name__ == "__main__":
    main()
