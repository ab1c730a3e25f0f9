"""The ledger: which versions there are, who served, when and why.

It numbers versions and decides which one is champion; MLflow mirrors it. A version belongs to one run (its run key),
and its verdict to one release.
"""

import getpass
from collections.abc import Mapping, Sequence
from typing import Any

from towline.config import Settings
from towline.errors import PromotionRejectedError
from towline.registry.hash_chain import Chain, Draft, Entry

__all__ = ["Entry", "Ledger", "actor", "open_ledger"]


def actor() -> str:
    """Who acts, for the ledger."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def open_ledger(settings: Settings) -> "Ledger":
    """The ledger that the settings name."""
    return Ledger(settings.ledger_url)


class Ledger:
    """The ledger at an SQLAlchemy URL (SQLite or PostgreSQL); errors of the database are told by Chain."""

    def __init__(self, url: str) -> None:
        self._chain = Chain(url)

    def register(
        self, model: str, actor: str, reason: str, evidence: Mapping[str, Any], run_key: str, least: int = 1
    ) -> Entry:
        """Gives a run the next version number, ``least`` or more; the same run gets the same number again."""

        def decide(rows: Sequence[Entry]) -> Entry | Draft:
            known = (row for row in rows if row.event == "registered" and row.run_key == run_key)
            return next(known, None) or Draft(
                event="registered",
                version=max([least, *(row.version + 1 for row in rows)]),
                previous=_version(champion_of(rows)),
                actor=actor,
                reason=reason,
                evidence=evidence,
                run_key=run_key,
                release="",
            )

        return self._chain.append(model, decide)

    def promote(
        self,
        model: str,
        version: int,
        expected: int | None,
        actor: str,
        reason: str,
        evidence: Mapping[str, Any],
        run_key: str,
        release: str,
    ) -> Entry:
        """Makes a version champion if the champion is still ``expected`` (None: there is none yet).

        Args:
            model: its name.
            version: the number that the run was given.
            expected: the champion that it was judged against.
            actor: who acts.
            reason: why.
            evidence: ``verdict`` and its ``checks``; ``release``: the digest of what was judged.
            run_key: of the run; repeating its promotion returns the row that it has written.
            release: the folder of what was judged, within the store.

        Raises:
            PromotionRejectedError: no passing verdict, a number of another run, or another promotion came first.
        """

        def decide(rows: Sequence[Entry]) -> Entry | Draft:
            champion = champion_of(rows)
            if champion and (champion.event, champion.version, champion.run_key) == ("promoted", version, run_key):
                return champion
            _own(model, rows, version, run_key)
            if evidence.get("verdict") != "pass":
                raise _unpassed(model, version, evidence)
            _unchanged(model, champion, expected, "run again: the version is then judged against that one")
            return Draft(
                event="promoted",
                version=version,
                previous=_version(champion),
                actor=actor,
                reason=reason,
                evidence=evidence,
                run_key=run_key,
                release=release,
            )

        return self._chain.append(model, decide)

    def promote_again(self, model: str, version: int, expected: int | None, actor: str, reason: str) -> Entry:
        """Makes the release that a version's recorded verdict is about champion; returns the row of one that is.

        Raises:
            PromotionRejectedError: it is not in the ledger, it has not passed, or another promotion came first.
        """

        def decide(rows: Sequence[Entry]) -> Entry | Draft:
            champion = champion_of(rows)
            if champion and champion.version == version:
                return champion
            judged = _judged(model, rows, version)
            if judged.evidence.get("verdict") != "pass":
                raise _unpassed(model, version, judged.evidence)
            _unchanged(model, champion, expected, "see `towline models`, then promote again if that is still wanted")
            return Draft(
                event="promoted",
                version=version,
                previous=_version(champion),
                actor=actor,
                reason=reason,
                evidence=judged.evidence,
                run_key=judged.run_key,
                release=judged.release,
            )

        return self._chain.append(model, decide)

    def refuse(
        self, model: str, version: int, actor: str, reason: str, evidence: Mapping[str, Any], run_key: str, release: str
    ) -> Entry:
        """Records that a version was not let through; the champion stays. Arguments are those of ``promote``.

        Raises:
            PromotionRejectedError: the number is another run's.
        """

        def decide(rows: Sequence[Entry]) -> Draft:
            _own(model, rows, version, run_key)
            return Draft(
                event="refused",
                version=version,
                previous=_version(champion_of(rows)),
                actor=actor,
                reason=reason,
                evidence=evidence,
                run_key=run_key,
                release=release,
            )

        return self._chain.append(model, decide)

    def decide(self, model: str, actor: str, reason: str, evidence: Mapping[str, Any], cause: str) -> Entry:
        """Records what the watch decided about the champion; the same cause is recorded once.

        Raises:
            PromotionRejectedError: no version serves.
        """

        def choose(rows: Sequence[Entry]) -> Entry | Draft:
            champion = champion_of(rows)
            if champion is None:
                raise PromotionRejectedError("no version serves", where=model, remedy="towline run CONFIG makes one")
            known = (row for row in rows if row.event == "decided" and row.run_key == cause)
            return next(known, None) or Draft(
                event="decided",
                version=champion.version,
                previous=champion.previous,
                actor=actor,
                reason=reason,
                evidence=evidence,
                run_key=cause,
                release=champion.release,
            )

        return self._chain.append(model, choose)

    def packaged(
        self, model: str, version: int, actor: str, reason: str, evidence: Mapping[str, Any], release: str
    ) -> Entry:
        """Records a container image of a version, ``evidence["image_id"]``; the same image is recorded once.

        Raises:
            PromotionRejectedError: the version is not in the ledger.
        """

        def decide(rows: Sequence[Entry]) -> Entry | Draft:
            known = _registered(model, rows, version)
            images = (row for row in rows if row.event == "packaged" and row.version == version)
            same = (row for row in images if row.evidence["image_id"] == evidence["image_id"])
            return next(same, None) or Draft(
                event="packaged",
                version=version,
                previous=_version(champion_of(rows)),
                actor=actor,
                reason=reason,
                evidence=evidence,
                run_key=known.run_key,
                release=release,
            )

        return self._chain.append(model, decide)

    def decisions(self, model: str) -> list[Entry]:
        """What the watch decided, oldest first; ``evidence["action"]`` is what."""
        return [row for row in self._chain.read(model) if row.event == "decided"]

    def rollback(self, model: str, actor: str, reason: str) -> Entry:
        """Brings back the champion before the present one.

        A version rolled back from is out until it is promoted again: rolling back twice goes one champion further
        back and never returns to the one that was left. Of two rollbacks at the same moment one is refused.

        Raises:
            PromotionRejectedError: there is no earlier champion, or the champion changed meanwhile.
        """
        expected = _version(self.champion(model))

        def decide(rows: Sequence[Entry]) -> Draft:
            champion = champion_of(rows)
            _unchanged(model, champion, expected, "see `towline models`, then roll back again if that is still wanted")
            back = _earlier(model, rows)
            return Draft(
                event="rolled_back",
                version=back.version,
                previous=_version(champion),
                actor=actor,
                reason=reason,
                evidence=back.evidence,
                run_key=back.run_key,
                release=back.release,
            )

        return self._chain.append(model, decide)

    def rollback_target(self, model: str) -> Entry:
        """The row of the champion that a rollback would bring back.

        Raises:
            PromotionRejectedError: there is none.
        """
        return _earlier(model, self._chain.read(model))

    def champion(self, model: str) -> Entry | None:
        """The row that made the present champion so (``promoted`` or ``rolled_back``)."""
        return champion_of(self._chain.read(model))

    def aliases(self, model: str) -> dict[str, int | None]:
        """champion; previous: where a rollback would lead; challenger: the newest version, while it has no verdict."""
        rows = self._life(model)
        line: list[Entry | None] = [None, None, *_line(rows)]
        newest = max(rows, key=lambda row: (row.version, row.seq), default=None)
        waiting = newest if newest and newest.event == "registered" else None
        return {"champion": _version(line[-1]), "challenger": _version(waiting), "previous": _version(line[-2])}

    def state(self, model: str, version: int) -> str:
        """champion, previous, passed (has served, or may), rolled back, refused, registered or unknown."""
        rows = self._life(model)
        served = [row.version for row in _line(rows)]
        if version in served[-2:]:
            return "champion" if version == served[-1] else "previous"
        events = [row.event for row in rows if row.version == version]
        if version not in served and "promoted" in events:
            return "rolled back"
        return {"refused": "refused", "registered": "registered"}.get(events[-1], "passed") if events else "unknown"

    def history(self, model: str | None = None, limit: int | None = None) -> list[Entry]:
        """Rows of one model or of all, newest first."""
        return sorted(self._chain.read(model), key=lambda row: (row.time, row.seq), reverse=True)[:limit]

    def models(self) -> list[str]:
        """Names of every model that has a row."""
        return self._chain.models()

    def rows(self, model: str) -> list[Entry]:
        """Every row of a model, oldest first."""
        return self._chain.read(model)

    def versions(self, model: str) -> list[Entry]:
        """The last row of each version, by version; decisions do not count."""
        return [row for _, row in sorted({row.version: row for row in self._life(model)}.items())]

    def entry(self, model: str, version: int) -> Entry | None:
        """The last row of a version."""
        return next((row for row in self.versions(model) if row.version == version), None)

    def digest(self, entry: Entry) -> str:
        """The sha256 of the manifest of an entry's release, as it was recorded; empty if it never was."""
        return digest_of(self._chain.read(entry.model), entry.release)

    def finished(self, model: str, run_key: str) -> Entry | None:
        """How a run ended: its last ``promoted`` or ``refused`` row."""
        ends = [row for row in self._ends(model) if row.run_key == run_key]
        return ends[-1] if ends else None

    def ended(self, model: str) -> set[str]:
        """Keys of the runs that have finished."""
        return {row.run_key for row in self._ends(model)}

    def _life(self, model: str) -> list[Entry]:
        """Rows that changed what a version is."""
        return [row for row in self._chain.read(model) if row.event not in ("decided", "packaged")]

    def _ends(self, model: str) -> list[Entry]:
        return [row for row in self._chain.read(model) if row.event in ("promoted", "refused")]

    def verify(self) -> None:
        """Checks every row against its digest and the row before it. Rows cut off the end leave no trace.

        Raises:
            ReleaseError: naming the first row that is not what was written.
        """
        self._chain.read()


def _line(rows: Sequence[Entry]) -> list[Entry]:
    """The champions a rollback can still reach, oldest first; the last one serves."""
    line: list[Entry] = []
    for row in rows:
        if row.event in ("promoted", "rolled_back"):
            left = row.previous if row.event == "rolled_back" else None
            line = [*(kept for kept in line if kept.version not in (row.version, left)), row]
    return line


def digest_of(rows: Sequence[Entry], release: str) -> str:
    """The same of one model's rows."""
    known = (row.evidence.get("release") for row in rows if row.release == release)
    return next((digest for digest in known if isinstance(digest, str)), "")


def champion_of(rows: Sequence[Entry]) -> Entry | None:
    """The row that made the present champion so, of one model's rows, oldest first."""
    return next(reversed(_line(rows)), None)


def _earlier(model: str, rows: Sequence[Entry]) -> Entry:
    line = _line(rows)
    if len(line) < 2:
        raise PromotionRejectedError(
            "no earlier champion to roll back to",
            where=model,
            remedy=f"`towline history {model}` lists what has served; promote a version that passed instead",
        )
    return line[-2]


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


def _own(model: str, rows: Sequence[Entry], version: int, run_key: str) -> None:
    """Refuses a run that speaks of a number that the ledger did not give it: the ledger may have been exchanged."""
    if not any((row.event, row.version, row.run_key) == ("registered", version, run_key) for row in rows):
        raise PromotionRejectedError(
            f"version {version} is not the number of this run",
            where=model,
            remedy="give the command of the run again: it is given a number of its own",
        )


def _judged(model: str, rows: Sequence[Entry], version: int) -> Entry:
    """The row with the verdict on a version: the last one of its own run."""
    run_key = _registered(model, rows, version).run_key
    for row in reversed(rows):
        if (row.version, row.run_key) == (version, run_key) and row.event in ("promoted", "refused"):
            return row
    raise PromotionRejectedError(
        f"version {version} has no verdict: its run has not ended",
        where=model,
        remedy="run its command again: it resumes from the last completed step",
    )


def _unpassed(model: str, version: int, evidence: Mapping[str, Any]) -> PromotionRejectedError:
    """A refusal that names the checks in the way, and the keys of the config that they follow."""
    failed = [check for check in evidence.get("checks", ()) if check["outcome"] != "pass"]
    keys = ", ".join(dict.fromkeys(check["key"] for check in failed if check.get("key")))
    return PromotionRejectedError(
        f"version {version} has not passed the gate (verdict: {evidence.get('verdict', 'none')})",
        where=model,
        remedy=f"change {f'{keys} in ' if keys else ''}the config, or the data, and run it: towline run CONFIG; "
        "to have the same judged again: towline run CONFIG --force",
        details=tuple(
            f"{check['name']}: {check['detail']}" + (f" ({check['key']})" if check.get("key") else "")
            for check in failed
        ),
    )


def _unchanged(model: str, champion: Entry | None, expected: int | None, remedy: str) -> None:
    if (now := _version(champion)) != expected:
        raise PromotionRejectedError(
            f"lost the race: the champion is version {now}, not {expected}", where=model, remedy=remedy
        )
