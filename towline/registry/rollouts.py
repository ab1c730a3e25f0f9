"""The rollouts of a model, as the ledger records them: start, changes, end.

At most one rollout of a model is under way. It ends with ``rollout_ended``, and also with any promotion or rollback:
the champion that it compares with has then changed.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Literal

from towline.config import Frozen, RolloutConfig
from towline.errors import PromotionRejectedError
from towline.registry.approvals import is_waiting
from towline.registry.hash_chain import Entry, Event, NewRow
from towline.registry.ledger import JudgedVersion, Ledger, champion_of, check_passed, digest_of, draft_row, judged_row

ID_LENGTH = 16  # characters of the hash of the row that starts a rollout
RolloutEnd = Literal["promoted", "aborted", "inconclusive", "replaced"]


class Rollout(Frozen):
    """The current rollout.

    Attributes:
        id: differs for each rollout; the salt of the assignment of rows.
        model: its name.
        champion, challenger: versions.
        release, digest: the challenger's release, relative to the store, and the digest of its manifest.
        config: how it is rolled out.
        step: index into ``config.weights``.
        paused: whether its weight does not change.
        started, since: when it began, and when the present step began (UTC).
    """

    id: str
    model: str
    champion: int
    challenger: int
    release: str
    digest: str
    config: RolloutConfig
    step: int = 0
    paused: bool = False
    started: dt.datetime
    since: dt.datetime

    @property
    def weight(self) -> float:
        """The share of rows, 0 to 1, that the challenger answers."""
        return self.config.weights[self.step] / 100

    @property
    def is_last_step(self) -> bool:
        return self.step == len(self.config.weights) - 1

    def describe(self) -> str:
        """One line: versions, strategy, weight."""
        weight = f"weight {100 * self.weight:g} %" if self.weight else "shadow only"
        paused = ", paused" if self.paused else ""
        return f"version {self.challenger} instead of {self.champion}: {self.config.strategy}, {weight}{paused}"


def active_rollout(rows: Sequence[Entry]) -> Rollout | None:
    """The current rollout, from the rows of a model, oldest first."""
    rollout: Rollout | None = None
    for row in rows:
        if row.event == "rollout_started":
            rollout = _started(row, rows)
        elif row.event in ("rollout_ended", "promoted", "rolled_back"):
            rollout = None
        elif row.event == "rollout_changed" and rollout is not None:
            step, paused = row.evidence["step"], row.evidence["paused"]
            since = rollout.since if step == rollout.step else dt.datetime.fromisoformat(row.time)
            rollout = rollout.model_copy(update={"step": step, "paused": paused, "since": since})
    return rollout


def waiting_version(rows: Sequence[Entry]) -> int | None:
    """The newest version that passed during a rollout and waits for its end."""
    waiting, under_way = 0, False
    for row in rows:
        if row.event == "rollout_started":
            under_way, waiting = True, waiting if waiting > row.version else 0
        elif row.event in ("rollout_ended", "promoted", "rolled_back"):
            under_way, waiting = False, waiting if waiting > row.version else 0
        elif row.event in ("passed", "approved") and under_way and not is_waiting(rows, row):
            waiting = row.version
    return waiting or None


def start_rollout(
    ledger: Ledger, model: str, version: int, config: RolloutConfig, actor: str, reason: str, *, replace: bool = False
) -> Entry:
    """Starts the rollout of a version that has passed; repeated, it returns the row written before.

    Args:
        ledger: of the model.
        model: its name.
        version: the challenger.
        config: how it is rolled out.
        actor: who acts.
        reason: why.
        replace: whether it replaces the challenger of the current rollout.

    Raises:
        PromotionRejectedError: the version has not passed or serves already, there is no champion, or another rollout
            is under way.
    """

    def decide(rows: Sequence[Entry]) -> Entry | NewRow:
        rollout, champion = active_rollout(rows), champion_of(rows)
        if rollout is not None and rollout.challenger == version:
            return next(row for row in reversed(rows) if row.event == "rollout_started")
        judged = judged_row(model, rows, version)
        check_passed(model, judged)
        ledger.check_approved(rows, judged)
        if champion is None or champion.version == version:
            what = "there is no champion to compare with" if champion is None else f"version {version} serves already"
            remedy = f"towline promote {model}@{version}" if champion is None else f"see `towline models {model}`"
            raise PromotionRejectedError(what, where=model, remedy=remedy)
        if rollout is not None and not replace:
            raise PromotionRejectedError(
                f"a rollout is under way: {rollout.describe()}",
                where=model,
                remedy=f"wait for its end (`towline rollout status {model}`), or end it: towline rollout abort {model}",
            )
        settings = config.model_dump(mode="json")
        evidence = {"rollout": settings, "release": digest_of(rows, judged.release), "replaces": _challenger(rollout)}
        version_row = JudgedVersion(version, judged.run_key, judged.release, evidence)
        return draft_row("rollout_started", version_row, rows, actor, reason)

    return ledger.append(model, decide)


def change_rollout(
    ledger: Ledger, rollout: Rollout, actor: str, reason: str, *, step: int | None = None, paused: bool | None = None
) -> Entry:
    """Moves a rollout to another step, pauses or resumes it; repeated, it returns the row written before.

    Raises:
        PromotionRejectedError: it has ended, its step has changed in the meantime, or a step is requested and it was
            paused in the meantime.
    """
    new_step = rollout.step if step is None else step

    def decide(rows: Sequence[Entry]) -> Entry | NewRow:
        present = _require_same(rows, rollout)
        new_paused = present.paused if paused is None else paused
        if (present.step, present.paused) == (new_step, new_paused):
            return next(row for row in reversed(rows) if row.event in ("rollout_changed", "rollout_started"))
        if present.step != rollout.step or (step is not None and present.paused and not rollout.paused):
            raise _changed_error(present)
        evidence = {"step": new_step, "paused": new_paused, "weight": rollout.config.weights[new_step]}
        return _rollout_row("rollout_changed", rollout, rows, evidence, actor, reason)

    return ledger.append(rollout.model, decide)


def end_rollout(
    ledger: Ledger, rollout: Rollout, end: RolloutEnd, actor: str, reason: str, evidence: Mapping[str, object]
) -> Entry:
    """Ends a rollout; ``promoted`` makes the challenger champion. Repeated, it returns the row written before.

    Raises:
        PromotionRejectedError: the rollout has ended otherwise, or was paused in the meantime.
    """

    def decide_promotion(rows: Sequence[Entry]) -> Entry | NewRow:
        champion = champion_of(rows)
        if champion is not None and champion.version == rollout.challenger:
            return champion
        present = _require_same(rows, rollout)  # any promotion or rollback ends it
        if present.paused and not rollout.paused:
            raise _changed_error(present)
        judged = judged_row(rollout.model, rows, rollout.challenger)
        check_passed(rollout.model, judged)
        ledger.check_approved(rows, judged)
        return draft_row("promoted", judged, rows, actor, reason)

    def decide_end(rows: Sequence[Entry]) -> Entry | NewRow:
        earlier = (row for row in rows if row.event == "rollout_ended" and row.evidence["id"] == rollout.id)
        if (ended := next(earlier, None)) is not None:
            return ended
        _require_same(rows, rollout)
        return _rollout_row("rollout_ended", rollout, rows, {**evidence, "end": end}, actor, reason)

    return ledger.append(rollout.model, decide_promotion if end == "promoted" else decide_end)


def reject_waiting(ledger: Ledger, model: str, version: int, actor: str, reason: str) -> Entry:
    """Records that a waiting version cannot be rolled out; if another rollout has started, it still waits."""

    def decide(rows: Sequence[Entry]) -> Entry | NewRow:
        judged = judged_row(model, rows, version)
        if active_rollout(rows) is not None:
            return judged
        evidence = {"id": "", "end": "rejected"}
        return draft_row(
            "rollout_ended", JudgedVersion(version, judged.run_key, judged.release, evidence), rows, actor, reason
        )

    return ledger.append(model, decide)


def _started(row: Entry, rows: Sequence[Entry]) -> Rollout:
    time = dt.datetime.fromisoformat(row.time)
    return Rollout(
        id=row.hash[:ID_LENGTH],
        model=row.model,
        champion=row.previous or 0,
        challenger=row.version,
        release=row.release,
        digest=digest_of(rows, row.release),
        config=RolloutConfig.model_validate(row.evidence["rollout"]),
        started=time,
        since=time,
    )


def _require_same(rows: Sequence[Entry], rollout: Rollout) -> Rollout:
    present = active_rollout(rows)
    if present is None or present.id != rollout.id:
        raise PromotionRejectedError(
            f"the rollout of version {rollout.challenger} has ended",
            where=rollout.model,
            remedy=f"see `towline history {rollout.model}`",
        )
    return present


def _changed_error(present: Rollout) -> PromotionRejectedError:
    what = f"the rollout has changed meanwhile: {present.describe()}"
    return PromotionRejectedError(what, where=present.model, remedy="run the command again")


def _rollout_row(
    event: Event, rollout: Rollout, rows: Sequence[Entry], evidence: Mapping[str, object], actor: str, reason: str
) -> NewRow:
    run_key = next(row.run_key for row in rows if row.event == "rollout_started" and row.hash[:ID_LENGTH] == rollout.id)
    version = JudgedVersion(rollout.challenger, run_key, rollout.release, {**evidence, "id": rollout.id})
    return draft_row(event, version, rows, actor, reason)


def _challenger(rollout: Rollout | None) -> int | None:
    return rollout.challenger if rollout else None
