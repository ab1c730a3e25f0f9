"""The ledger records the versions of each model, and when and why they were champion.

It is an append-only table of hash-chained rows (``hash_chain.py``). It numbers versions and decides which version is
the champion; MLflow mirrors it. A version belongs to one run, by its run key, and a verdict to one release.
"""

import datetime as dt
import getpass
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from towline.config import Settings
from towline.errors import PromotionRejectedError
from towline.registry.approvals import (
    ApprovalRequest,
    Signatures,
    approver_error,
    check_approved,
    counted_approvals,
    expired_error,
)
from towline.registry.hash_chain import Chain, Entry, Event, NewRow
from towline.registry.seals import Seal, Seals, open_seals

VERDICTS: tuple[Event, ...] = ("passed", "promoted", "refused")
VERSION_EVENTS: tuple[Event, ...] = ("registered", *VERDICTS, "rolled_back")

__all__ = ["Entry", "JudgedVersion", "Ledger", "actor", "open_ledger"]


class JudgedVersion(NamedTuple):
    """A version with its verdict.

    Attributes:
        version: the number that the ledger gave the run.
        run_key: of the run.
        release: the folder of the release that was judged, within the store.
        evidence: ``verdict`` and its ``checks``; ``release``: the digest of that release.
    """

    version: int
    run_key: str
    release: str
    evidence: Mapping[str, Any]


def actor() -> str:
    """The name of the user, for ledger rows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def open_ledger(settings: Settings) -> "Ledger":
    """The ledger that the settings name."""
    return Ledger(settings.ledger_url, open_seals(settings), Signatures(settings.store).is_signed)


class Ledger:
    """The ledger at an SQLAlchemy URL, SQLite or PostgreSQL; ``Chain`` documents the errors of the database.

    Methods that write take ``actor``, who acts, and ``reason``, why; ``towline history`` shows both.
    """

    def __init__(
        self, url: str, seals: Seals | None = None, is_signed: Callable[[Entry], bool] = lambda _row: False
    ) -> None:
        self._chain = Chain(url, seals)
        self._is_signed = is_signed

    def register(
        self, model: str, actor: str, reason: str, evidence: Mapping[str, Any], run_key: str, least: int = 1
    ) -> Entry:
        """Gives a run the next version number, at least ``least``; the same run always gets the same number."""

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            registered = (row for row in rows if row.event == "registered" and row.run_key == run_key)
            number = max([least, *(row.version + 1 for row in rows)])
            version = JudgedVersion(number, run_key, "", evidence)
            return next(registered, None) or draft_row("registered", version, rows, actor, reason)

        return self._chain.append(model, decide)

    def promote(self, model: str, judged: JudgedVersion, expected: int | None, actor: str, reason: str) -> Entry:
        """Makes a version champion, if the champion is still ``expected``; repeated, it returns the row written before.

        Args:
            model: name of the model.
            judged: the version; its verdict must be ``pass``.
            expected: the champion's version when the version was judged; None if there was no champion.
            actor: who acts.
            reason: why.

        Raises:
            PromotionRejectedError: the verdict is not pass, the number is another run's, or the champion has changed.
        """

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            champion = champion_of(rows)
            promoted = ("promoted", judged.version, judged.run_key)
            if champion and (champion.event, champion.version, champion.run_key) == promoted:
                return champion
            _check_number(model, rows, judged)
            check_passed(model, judged)
            self.check_approved(rows, judged)
            _check_champion(model, champion, expected, "run again: the version is then judged against that one")
            return draft_row("promoted", judged, rows, actor, reason)

        return self._chain.append(model, decide)

    def promote_again(self, model: str, version: int, expected: int | None, actor: str, reason: str) -> Entry:
        """Makes a version with a recorded verdict champion; returns the champion's row if it serves already.

        Raises:
            PromotionRejectedError: the version is not in the ledger, has not passed, waits for approvals, or the
                champion has changed.
        """

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            champion = champion_of(rows)
            if champion and champion.version == version:
                return champion
            judged = judged_row(model, rows, version)
            check_passed(model, judged)
            self.check_approved(rows, judged)
            _check_champion(model, champion, expected, "see `towline models`, then promote again if you still want to")
            return draft_row("promoted", judged, rows, actor, reason)

        return self._chain.append(model, decide)

    def mark_passed(self, model: str, judged: JudgedVersion, actor: str, reason: str) -> Entry:
        """Records that a version passed its gate and is not champion yet; repeated, it returns the row written before.

        Raises:
            PromotionRejectedError: the verdict is not pass, or the number is another run's.
        """

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            earlier = (row for row in rows if row.event in VERDICTS and row.run_key == judged.run_key)
            if (verdict := next(earlier, None)) is not None:
                return verdict
            _check_number(model, rows, judged)
            check_passed(model, judged)
            return draft_row("passed", judged, rows, actor, reason)

        return self._chain.append(model, decide)

    def approve(self, request: ApprovalRequest, evidence: Mapping[str, Any], actor: str, reason: str) -> Entry:
        """Records an approval of the release of a request; a person's second one is not recorded.

        Args:
            request: the approvals that the version waits for.
            evidence: ``key`` (its id), ``holder`` (its name), ``release`` (the digest) and ``signature``.
            actor: who acts.
            reason: why.

        Raises:
            PromotionRejectedError: the time for approvals is over, or this person may not approve.
        """

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            judged = judged_row(request.model, rows, request.version)
            check_passed(request.model, judged)
            counted = counted_approvals(rows, request, self._is_signed)
            same = (row for row in counted if row.evidence["holder"] == evidence["holder"])
            if (earlier := next(same, None)) is not None:
                return earlier
            if dt.datetime.now(dt.UTC) >= request.expires:
                raise expired_error(request, len(counted))
            approval = JudgedVersion(request.version, request.run_key, request.release, evidence)
            draft = draft_row("approved", approval, rows, actor, reason)
            if why := approver_error(request, str(evidence["key"]), str(evidence["holder"]), actor):
                name = f"{request.model}@{request.version}"
                remedy = f"another person approves: towline approve {name}"
                raise PromotionRejectedError(f"this approval does not count: {why}", where=name, remedy=remedy)
            return draft

        return self._chain.append(request.model, decide)

    def expire(self, request: ApprovalRequest, actor: str) -> Entry | None:
        """Refuses a version whose time for approvals is over; None if it still waits, was approved or was decided."""
        if dt.datetime.now(dt.UTC) < request.expires:
            return None

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            judged = judged_row(request.model, rows, request.version)
            count = len(counted_approvals(rows, request, self._is_signed))
            if judged.event != "passed" or count >= request.required:
                return judged
            evidence = {**judged.evidence, "verdict": "expired"}
            refused = JudgedVersion(request.version, request.run_key, request.release, evidence)
            return draft_row("refused", refused, rows, actor, expired_error(request, count).what)

        row = self._chain.append(request.model, decide)
        return row if row.event == "refused" else None

    def approvals(self, request: ApprovalRequest) -> list[Entry]:
        """The approvals of a request that count."""
        return counted_approvals(self._chain.read(request.model), request, self._is_signed)

    def check_approved(self, rows: Sequence[Entry], judged: JudgedVersion | Entry) -> None:
        """Rejects a version that needs more approvals than it has.

        Raises:
            PromotionRejectedError: says how many are missing, or that the time for them is over.
        """
        check_approved(rows, judged.version, judged.run_key, self._is_signed, dt.datetime.now(dt.UTC))

    def append(self, model: str, decide: Callable[[Sequence[Entry]], Entry | NewRow]) -> Entry:
        """Adds the row that ``decide`` returns for the rows of a model, oldest first, or returns its row as it is."""
        return self._chain.append(model, decide)

    def refuse(self, model: str, judged: JudgedVersion, actor: str, reason: str) -> Entry:
        """Records that a version did not pass; the champion stays.

        Raises:
            PromotionRejectedError: the number is another run's.
        """

        def decide(rows: Sequence[Entry]) -> NewRow:
            _check_number(model, rows, judged)
            return draft_row("refused", judged, rows, actor, reason)

        return self._chain.append(model, decide)

    def decide(self, model: str, actor: str, reason: str, evidence: Mapping[str, Any], cause: str) -> Entry:
        """Records a decision of monitoring about the champion; a decision with the same cause is recorded once.

        Raises:
            PromotionRejectedError: no version serves.
        """

        def choose(rows: Sequence[Entry]) -> Entry | NewRow:
            champion = champion_of(rows)
            if champion is None:
                raise PromotionRejectedError("no version serves", where=model, remedy="towline run CONFIG trains one")
            recorded = (row for row in rows if row.event == "decided" and row.run_key == cause)
            version = JudgedVersion(champion.version, cause, champion.release, evidence)
            draft = draft_row("decided", version, rows, actor, reason)
            return next(recorded, None) or draft.model_copy(update={"previous": champion.previous})

        return self._chain.append(model, choose)

    def packaged(
        self, model: str, version: int, actor: str, reason: str, evidence: Mapping[str, Any], release: str
    ) -> Entry:
        """Records a container image of a version, ``evidence["image_id"]``; the same image is recorded once.

        Raises:
            PromotionRejectedError: the version is not in the ledger.
        """

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            run_key = _registered(model, rows, version).run_key
            images = (row for row in rows if row.event == "packaged" and row.version == version)
            same_image = (row for row in images if row.evidence["image_id"] == evidence["image_id"])
            packaged = JudgedVersion(version, run_key, release, evidence)
            return next(same_image, None) or draft_row("packaged", packaged, rows, actor, reason)

        return self._chain.append(model, decide)

    def record_batch(self, model: str, version: int, actor: str, evidence: Mapping[str, Any], job: str) -> Entry:
        """Records a scored batch with its digests and counts; the same job is recorded once.

        Raises:
            PromotionRejectedError: the version is not in the ledger.
        """

        def decide(rows: Sequence[Entry]) -> Entry | NewRow:
            _registered(model, rows, version)
            recorded = (row for row in rows if row.event == "scored" and row.run_key == job)
            reason = f"{evidence['rows']:,} rows: {evidence['output']}"
            return next(recorded, None) or draft_row(
                "scored", JudgedVersion(version, job, "", evidence), rows, actor, reason
            )

        return self._chain.append(model, decide)

    def decisions(self, model: str) -> list[Entry]:
        """The decisions of monitoring, oldest first; ``evidence["action"]`` is the action."""
        return [row for row in self._chain.read(model) if row.event == "decided"]

    def rollback(self, model: str, actor: str, reason: str) -> Entry:
        """Makes the previous champion champion again.

        The version that is rolled back stays out until it is promoted again: two rollbacks go back two champions. Of
        two rollbacks at the same moment, one is rejected.

        Raises:
            PromotionRejectedError: there is no earlier champion, or the champion has changed in the meantime.
        """
        expected = _version(self.champion(model))

        def decide(rows: Sequence[Entry]) -> NewRow:
            remedy = "see `towline models`, then roll back again if you still want to"
            _check_champion(model, champion_of(rows), expected, remedy)
            return draft_row("rolled_back", _previous_champion(model, rows), rows, actor, reason)

        return self._chain.append(model, decide)

    def rollback_target(self, model: str) -> Entry:
        """The row of the champion that a rollback would restore.

        Raises:
            PromotionRejectedError: there is none.
        """
        return _previous_champion(model, self._chain.read(model))

    def champion(self, model: str) -> Entry | None:
        """The row that made the present champion so (``promoted`` or ``rolled_back``)."""
        return champion_of(self._chain.read(model))

    def aliases(self, model: str) -> dict[str, int | None]:
        """The versions of champion, previous (a rollback restores it), challenger (the newest, without verdict)."""
        rows = self._version_rows(model)
        champions: list[Entry | None] = [None, None, *champions_of(rows)]
        newest = max(rows, key=lambda row: (row.version, row.seq), default=None)
        challenger = newest if newest and newest.event == "registered" else None
        return {
            "champion": _version(champions[-1]),
            "challenger": _version(challenger),
            "previous": _version(champions[-2]),
        }

    def state(self, model: str, version: int) -> str:
        """The state: champion, previous, passed (may serve), awaiting approval, rolled back, refused, registered or
        unknown.
        """
        rows = self._version_rows(model)
        served = [row.version for row in champions_of(rows)]
        if version in served[-2:]:
            return "champion" if version == served[-1] else "previous"
        events = [row.event for row in rows if row.version == version]
        if version not in served and "promoted" in events:
            return "rolled back"
        if events and events[-1] == "passed" and self._is_waiting(model, version):
            return "awaiting approval"
        return {"refused": "refused", "registered": "registered"}.get(events[-1], "passed") if events else "unknown"

    def history(self, model: str | None = None, limit: int | None = None) -> list[Entry]:
        """Rows of one model or of all, newest first; those of a model by number, since the clock may be set back."""
        latest: dict[str, str] = {}  # time of a model's rows so far

        def order(row: Entry) -> tuple[str, int]:
            latest[row.model] = max(row.time, latest.get(row.model, ""))
            return latest[row.model], row.seq

        return sorted(self._chain.read(model), key=order, reverse=True)[:limit]

    def models(self) -> list[str]:
        """Names of every model that has a row."""
        return self._chain.models()

    def rows(self, model: str) -> list[Entry]:
        """Every row of a model, oldest first."""
        return self._chain.read(model)

    def versions(self, model: str) -> list[Entry]:
        """The last row of each version, by version; decisions do not count."""
        return [row for _, row in sorted({row.version: row for row in self._version_rows(model)}.items())]

    def entry(self, model: str, version: int) -> Entry | None:
        """The last row of a version."""
        return next((row for row in self.versions(model) if row.version == version), None)

    def digest(self, entry: Entry) -> str:
        """The sha256 of the manifest of an entry's release, as it was recorded; empty if it never was."""
        return digest_of(self._chain.read(entry.model), entry.release)

    def finished(self, model: str, run_key: str) -> Entry | None:
        """The last row with a verdict of a run; None if it has not ended."""
        return next((row for row in reversed(self._verdicts(model)) if row.run_key == run_key), None)

    def ended(self, model: str) -> set[str]:
        """The keys of the runs that have a verdict."""
        return {row.run_key for row in self._verdicts(model)}

    def _is_waiting(self, model: str, version: int) -> bool:
        """Whether a version that passed needs more approvals than it has."""
        rows = self._chain.read(model)
        try:
            self.check_approved(rows, judged_row(model, rows, version))
        except PromotionRejectedError:
            return True
        return False

    def _version_rows(self, model: str) -> list[Entry]:
        """Rows that change the state of a version."""
        return [row for row in self._chain.read(model) if row.event in VERSION_EVENTS]

    def _verdicts(self, model: str) -> list[Entry]:
        return [row for row in self._chain.read(model) if row.event in VERDICTS]

    def seals(self, model: str) -> dict[int, Seal]:
        """The seals of a model's rows, by number."""
        return self._chain.seals(model)

    def accept(self, model: str, actor: str, reason: str, faults: Sequence[str]) -> Entry:
        """Records that a person trusts the current rows of a model, then seals and anchors them.

        Raises:
            ReleaseError: a row does not follow from the row before it.
            TransientError: another process has added a row in the meantime.
        """

        def decide(rows: Sequence[Entry]) -> NewRow:
            champion = champion_of(rows)
            run_key, release = (champion.run_key, champion.release) if champion else ("", "")
            version = JudgedVersion(champion.version if champion else 0, run_key, release, {"faults": list(faults)})
            return draft_row("accepted", version, rows, actor, reason)

        return self._chain.accept(model, decide)

    def verify(self) -> None:
        """Checks every row against its digest and the row before it; ``verification.py`` checks more.

        Raises:
            ReleaseError: names the first row that was changed.
        """
        self._chain.read()


def champions_of(rows: Sequence[Entry]) -> list[Entry]:
    """The champions that rollbacks can still reach, oldest first; the last one serves."""
    champions: list[Entry] = []
    for row in rows:
        if row.event in ("promoted", "rolled_back"):
            removed = (row.version, row.previous if row.event == "rolled_back" else None)
            champions = [*(champion for champion in champions if champion.version not in removed), row]
    return champions


def draft_row(event: Event, version: JudgedVersion | Entry, rows: Sequence[Entry], actor: str, reason: str) -> NewRow:
    """A row about a version; ``previous`` is the present champion."""
    return NewRow(
        event=event,
        version=version.version,
        previous=_version(champion_of(rows)),
        actor=actor,
        reason=reason,
        evidence=version.evidence,
        run_key=version.run_key,
        release=version.release,
    )


def digest_of(rows: Sequence[Entry], release: str) -> str:
    """The digest of a release, from the rows of its model; empty if none is recorded."""
    digests = (row.evidence.get("release") for row in rows if row.release == release)
    return next((digest for digest in digests if isinstance(digest, str)), "")


def champion_of(rows: Sequence[Entry]) -> Entry | None:
    """The row that made the champion champion, from the rows of its model, oldest first."""
    return next(reversed(champions_of(rows)), None)


def rows_until(rows: Sequence[Entry], moment: dt.datetime) -> list[Entry]:
    """The rows of a model, oldest first, that were written until a time.

    A clock may be set back. A row is older than each row after it, whatever its time says. Rows that are dated in the
    future and follow the others count, too: their true time is unknown, but not later than now.
    """
    present, count = dt.datetime.now(dt.UTC), 0
    for number, row in enumerate(rows):
        time = dt.datetime.fromisoformat(row.time)
        if time <= moment or (time > present and count == number):
            count = number + 1
    return list(rows[:count])


def _previous_champion(model: str, rows: Sequence[Entry]) -> Entry:
    champions = champions_of(rows)
    if len(champions) < 2:
        raise PromotionRejectedError(
            "no earlier champion to roll back to",
            where=model,
            remedy=f"`towline history {model}` lists the champions; promote a version that passed instead",
        )
    return champions[-2]


def _version(entry: Entry | None) -> int | None:
    return entry.version if entry else None


def _registered(model: str, rows: Sequence[Entry], version: int) -> Entry:
    """The row that gave a version its number."""
    for row in rows:
        if row.event == "registered" and row.version == version:
            return row
    raise PromotionRejectedError(
        f"{model} has no version {version}", where=model, remedy=f"see `towline models {model}`"
    )


def _check_number(model: str, rows: Sequence[Entry], judged: JudgedVersion) -> None:
    """Rejects a version number that the ledger did not give to this run: the ledger may have been replaced."""
    registered = ("registered", judged.version, judged.run_key)
    if not any((row.event, row.version, row.run_key) == registered for row in rows):
        raise PromotionRejectedError(
            f"version {judged.version} is not the number of this run",
            where=model,
            remedy="run the command of the run again: it gets its own number",
        )


def judged_row(model: str, rows: Sequence[Entry], version: int) -> Entry:
    """The row with the verdict on a version: the last verdict of its own run."""
    run_key = _registered(model, rows, version).run_key
    for row in reversed(rows):
        if (row.version, row.run_key) == (version, run_key) and row.event in VERDICTS:
            return row
    raise PromotionRejectedError(
        f"version {version} has no verdict: its run has not ended",
        where=model,
        remedy="run its command again: it resumes from the last completed step",
    )


def check_passed(model: str, judged: JudgedVersion | Entry) -> None:
    """Rejects a version whose verdict is not pass; names the failed checks and their config keys."""
    verdict = judged.evidence.get("verdict", "none")
    if verdict == "pass":
        return
    if verdict == "expired" and isinstance(judged, Entry):
        remedy = "evaluate the same config and data again: towline run CONFIG --force"
        raise PromotionRejectedError(judged.reason, where=model, remedy=remedy)
    failed = [check for check in judged.evidence.get("checks", ()) if check["outcome"] != "pass"]
    keys = ", ".join(dict.fromkeys(check["key"] for check in failed if check.get("key")))
    raise PromotionRejectedError(
        f"version {judged.version} has not passed the gate (verdict: {verdict})",
        where=model,
        remedy=f"change {f'{keys} in ' if keys else ''}the config, or the data, then towline run CONFIG; "
        "to evaluate the same config and data again: towline run CONFIG --force",
        details=tuple(
            f"{check['name']}: {check['detail']}" + (f" ({check['key']})" if check.get("key") else "")
            for check in failed
        ),
    )


def _check_champion(model: str, champion: Entry | None, expected: int | None, remedy: str) -> None:
    if (present := _version(champion)) != expected:
        raise PromotionRejectedError(
            f"the champion has changed meanwhile: it is version {present}, not {expected}", where=model, remedy=remedy
        )
