"""Attribution: which version was responsible at a time, or for a logged request, with its data, config and approval.

The ledger has the champion at each time, the prediction log the version that answered each request.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from towline.config import Frozen, Settings
from towline.errors import ConfigError, DataError
from towline.formatting import format_time
from towline.html.notebook import render_fields
from towline.prediction_log.parquet_store import iter_tables, list_parts, lock_store
from towline.registry.hash_chain import Entry
from towline.registry.ledger import VERSION_EVENTS, Ledger, champion_of, digest_of, rows_until
from towline.registry.rollouts import active_rollout
from towline.registry.selection import require_model
from towline.times import to_utc

Arm = Literal["champion", "challenger", "fixed"]
_LOGGED = ("request_id", "row", "time", "version")


class LoggedAnswer(Frozen):
    """The rows of one request that one version answered at one time.

    Attributes:
        request_id: of the request.
        time: of the answer (UTC).
        version: that answered.
        rows: number of rows.
    """

    request_id: str
    time: dt.datetime
    version: int
    rows: int


class Attribution(Frozen):
    """The version that was responsible, and the person who promoted it.

    Attributes:
        model, version: the version.
        time: the time in question (UTC).
        arm: champion; challenger: of the rollout under way at that time; fixed: neither, e.g. of a service of a fixed
            version, or of one that had not loaded the new champion yet.
        rollout: the rollout under way at that time; empty if there was none.
        since, until: when the version became champion, and when the next one did (UTC, ISO 8601); empty if it was not
            champion, or still is.
        release, release_digest: folder of the release in the store; sha256 of its manifest.
        dataset: sha256 of the data that it was trained on; empty if it is not recorded.
        config, code: digests; empty if they are not recorded.
        commit: of the project.
        trained_by: who started the run.
        promoted_by, reason: who made it champion, and why; of the challenger, who started the rollout.
        verdict: how the gate decided, in one line.
        approved_by: holder and key of each approval; empty if the version needed none.
        row: number of the ledger's row that made it so.
        answer: the request, if the question was one.
        other_answers: further answers with the same request id, newest first.
    """

    model: str
    version: int
    time: dt.datetime
    arm: Arm
    rollout: str = ""
    since: str = ""
    until: str = ""
    release: str
    release_digest: str
    dataset: str
    config: str
    code: str
    commit: str
    trained_by: str
    promoted_by: str
    reason: str
    verdict: str
    approved_by: tuple[str, ...] = ()
    row: int
    answer: LoggedAnswer | None = None
    other_answers: tuple[LoggedAnswer, ...] = ()

    def _repr_html_(self) -> str:
        return render_fields(self.model_dump(mode="json", exclude={"other_answers"}))


def attribute_time(settings: Settings, ledger: Ledger, model: str, time: dt.datetime) -> Attribution:
    """The champion at a time.

    Args:
        settings: locate the store.
        ledger: its ledger.
        model: its name.
        time: UTC if it has no zone.

    Raises:
        ConfigError: there is no such model, it had no champion then, or the time is in the future.
    """
    rows, moment = ledger.rows(require_model(settings, ledger, model)), to_utc(time)
    if moment > (now := dt.datetime.now(dt.UTC)):
        raise ConfigError(
            f"{format_time(moment, seconds=True)} UTC is in the future",
            where="TIME",
            remedy=f"it is {format_time(now, seconds=True)} UTC now; a time without a zone is read as UTC, e.g. write "
            "+02:00 behind it",
        )
    champion = champion_of(rows_until(rows, moment))
    if champion is None:
        first = next((row for row in rows if row.event == "promoted"), None)
        remedy = f"give a time from {first.time} on" if first else "towline run CONFIG makes the first version"
        what = f"{model} had no champion at {format_time(moment, seconds=True)} UTC"
        raise ConfigError(what, where=f"model {model}", remedy=remedy)
    return _attribute(rows, champion.version, moment)


def attribute_request(settings: Settings, ledger: Ledger, model: str, request_id: str) -> Attribution:
    """The version that answered a request, according to the prediction log.

    Raises:
        ConfigError: there is no such model, or the log does not hold the request.
        DataError: a part of the log cannot be read, or the log names a version that the ledger does not have.
        TransientError: the log cannot be locked.
    """
    rows = ledger.rows(require_model(settings, ledger, model))
    answers = find_answers(settings, model, request_id)
    if not answers:
        raise _unknown_request(settings, model, request_id)
    newest, *others = answers
    if not any(row.version == newest.version for row in rows):
        raise DataError(
            f"the prediction log names version {newest.version} of {model}, and the ledger has no such version",
            where=f"request {request_id}",
            remedy="towline verify names what was changed; restore the ledger from a backup",
        )
    attribution = _attribute(rows, newest.version, newest.time)
    return attribution.model_copy(update={"answer": newest, "other_answers": tuple(others)})


def find_answers(settings: Settings, model: str, request_id: str) -> list[LoggedAnswer]:
    """The answers to a request in the prediction log, newest first; one for each version and time.

    Raises:
        DataError: a part of the log cannot be read.
        TransientError: the log cannot be locked.
    """
    folder = settings.layout.predictions(model)
    if not folder.is_dir():
        return []
    counts: dict[tuple[dt.datetime, int], int] = {}
    with lock_store(folder):
        for _, table in iter_tables(folder, columns=_LOGGED):
            same_request = table.filter(pc.equal(table["request_id"], pa.scalar(request_id)))
            for row in same_request.to_pylist():
                key = row["time"], row["version"]
                counts[key] = counts.get(key, 0) + 1
    return [
        LoggedAnswer(request_id=request_id, time=time, version=version, rows=count)
        for (time, version), count in sorted(counts.items(), reverse=True)
    ]


def _attribute(rows: Sequence[Entry], version: int, moment: dt.datetime) -> Attribution:
    earlier = rows_until(rows, moment)
    champion, rollout = champion_of(earlier), active_rollout(earlier)
    is_champion = champion is not None and champion.version == version
    is_challenger = rollout is not None and rollout.challenger == version
    of_version = [row for row in rows if row.version == version and row.event in VERSION_EVENTS]
    starts = [row for row in earlier if row.event == "rollout_started"]
    responsible = champion if is_champion and champion else starts[-1] if is_challenger else of_version[-1]
    origin: dict[str, Any] = next((row.evidence for row in of_version if row.event == "registered"), {})
    judged = next((row for row in of_version if "verdict" in row.evidence), None)
    release = next((row.release for row in reversed(of_version) if row.release), "")
    return Attribution(
        model=responsible.model,
        version=version,
        time=moment,
        arm="champion" if is_champion else "challenger" if is_challenger else "fixed",
        rollout=rollout.describe() if rollout else "",
        since=responsible.time if is_champion else "",
        until=_end(rows, responsible) if is_champion else "",
        release=release,
        release_digest=digest_of(rows, release) if release else "",
        dataset=str(origin.get("dataset", "")),
        config=str(origin.get("config", "")),
        code=str(origin.get("code", "")),
        commit=str(origin.get("git_commit", "")),
        trained_by=next((row.actor for row in of_version if row.event == "registered"), ""),
        promoted_by=responsible.actor,
        reason=responsible.reason,
        verdict=f"{judged.evidence['verdict']}: {judged.reason}" if judged else "none recorded",
        approved_by=tuple(
            f"{row.evidence['holder']} (key {row.evidence['key']}), {format_time(row.time)} UTC"
            for row in earlier
            if row.event == "approved" and row.version == version
        ),
        row=responsible.seq,
    )


def _end(rows: Sequence[Entry], champion: Entry) -> str:
    """When the next champion took over; empty if none has."""
    changes = (row for row in rows if row.seq > champion.seq and row.event in ("promoted", "rolled_back"))
    return next((row.time for row in changes), "")


def _unknown_request(settings: Settings, model: str, request_id: str) -> ConfigError:
    """The error for a request that is not in the log; describes the content of the log."""
    parts = list_parts(settings.layout.predictions(model))
    days = f"from {parts[0].day} to {parts[-1].day}" if parts else ""
    holds = f"its Parquet files hold predictions {days}" if parts else "it holds no Parquet files"
    return ConfigError(
        f"the prediction log of {model} does not hold a request {request_id[:80]!r}: {holds}",
        where=str(settings.layout.predictions(model)),
        remedy="give the id that the answer's header X-Request-Id had; if its predictions were purged, erased "
        f"or never logged, give the time of the request: towline served-at {model} TIME",
    )
