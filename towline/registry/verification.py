"""Verification checks that the ledger, its seals, the releases and MLflow are intact and agree with each other.

Each fault has the problem, its location and the remedy. ``towline verify`` runs all checks, ``towline up`` quick ones.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from towline.config import Frozen, Settings
from towline.errors import ConfigError, ReleaseError, TransientError, UserError
from towline.manifest import REMEDY, read_manifest
from towline.registry.approvals import Signatures, counted_approvals, find_request
from towline.registry.hash_chain import Entry, sealed_row
from towline.registry.ledger import Ledger, champions_of, digest_of, open_ledger
from towline.registry.mlflow.synchronization import find_differences
from towline.registry.seals import ACCEPT, Anchor, LedgerKey, Seals, check_anchor, open_seals
from towline.registry.selection import check_judged_release, check_recorded

State = Literal["ok", "note", "fault", "unknown"]


class IntegrityCheck(Frozen):
    """The result of one check.

    Attributes:
        model: its name; empty for the whole store.
        name: key, chain, seals, anchor, approvals, champion, previous, releases or mlflow.
        state: ok; note: as intended, but worth knowing; fault; unknown: the check could not be made.
        what: the result in one line.
        where: the file, row or version that is affected.
        remedy: empty if no action is needed.
    """

    model: str
    name: str
    state: State
    what: str
    where: str = ""
    remedy: str = ""


class _Subject(NamedTuple):
    """A model and what its checks read once; ``anchor`` is read before the rows, which only become more."""

    settings: Settings
    ledger: Ledger
    seals: Seals
    model: str
    key: LedgerKey | None
    anchor: Anchor | None
    rows: Sequence[Entry]


def verify_models(
    settings: Settings, models: Sequence[str] | None = None, *, quick: bool = False
) -> list[IntegrityCheck]:
    """Runs the checks; those that depend on a failed one are left out.

    Args:
        settings: locate the ledger, its key, the store and MLflow.
        models: their names; None: all models with rows, an anchor or a release.
        quick: only the checks of the ledger and its seals.

    Raises:
        TransientError: the ledger cannot be read.
    """
    ledger, seals = open_ledger(settings), open_seals(settings)
    try:
        key = seals.key()
    except ConfigError as error:
        return [_fault("", "key", error)]
    results = [_check_key(seals, key)]
    for model in list_models_to_verify(settings) if models is None else models:
        try:
            check_recorded(settings, ledger, model)
            anchor = seals.anchor(model)
            subject = _Subject(settings, ledger, seals, model, key, anchor, ledger.rows(model))
        except UserError as error:
            results.append(_fault(model, "chain", error))
            continue
        results += _check_model(subject, quick=quick)
    return results


def list_models_to_verify(settings: Settings) -> list[str]:
    """The models with rows in the ledger, an anchor or a release."""
    releases = [path.name for path in settings.layout.releases.glob("*/") if any(path.glob("v*"))]
    recorded = [name for name in releases if not name.endswith(".lost")]
    return sorted({*open_ledger(settings).models(), *open_seals(settings).anchored_models(), *recorded})


def accept(settings: Settings, model: str, actor: str, reason: str) -> Entry | None:
    """Records that the current rows of a model are trusted in spite of their faults, then seals and anchors them.

    Returns:
        The row; None if the ledger has no row of the model: its anchor is removed.

    Raises:
        ReleaseError: a row was changed: only a backup helps.
        TransientError: the ledger is down, or another process writes to it.
    """
    ledger, seals = open_ledger(settings), open_seals(settings)
    if not ledger.rows(model):
        seals.remove_anchor(model)
        return None
    try:
        faults = [check.what for check in verify_models(settings, [model], quick=True) if check.state == "fault"]
    except UserError as error:
        faults = [error.what]
    return ledger.accept(model, actor, reason, faults)


def anchor_restored_ledger(settings: Settings) -> None:
    """Anchors the last rows of a ledger that was restored from a backup in place of the last rows before.

    Raises:
        ConfigError: the key is damaged.
        TransientError: the ledger cannot be read, or the store cannot be written.
    """
    ledger, seals = open_ledger(settings), open_seals(settings)
    for model in seals.anchored_models():
        seals.remove_anchor(model)
    key = seals.key()
    for model in ledger.models() if key else ():
        numbers, rows = ledger.seals(model), ledger.rows(model)
        if key and numbers:
            seals.advance(sealed_row(rows[-1]), key, since=min(numbers), reset=True)


def _check_key(seals: Seals, key: LedgerKey | None) -> IntegrityCheck:
    where = str(seals.key_file)
    if key is None:
        what = "the ledger has no key: its rows are chained, and not signed"
        remedy = "the next row creates one if the ledger is a file; else: towline verify --accept --reason 'first key'"
        return IntegrityCheck(model="", name="key", state="note", what=what, where=where, remedy=remedy)
    if (mode := seals.key_file.stat().st_mode & 0o777) & 0o077:
        what = f"other users can access the ledger's key (mode {mode:04o})"
        return IntegrityCheck(
            model="", name="key", state="fault", what=what, where=where, remedy=f"chmod 600 {seals.key_file}"
        )
    return IntegrityCheck(model="", name="key", state="ok", what=f"the ledger's key is {key.id}", where=where)


def _check_model(subject: _Subject, *, quick: bool) -> Iterator[IntegrityCheck]:
    model, rows = subject.model, subject.rows
    chain = IntegrityCheck(
        model=model, name="chain", state="ok", what=f"{len(rows)} rows, each follows from the one before"
    )
    checks: list[tuple[str, Callable[[_Subject], Iterator[IntegrityCheck]]]] = [
        ("anchor", _check_anchor),
        ("seals", _check_seals),
        ("approvals", _check_approvals),
    ]
    if not quick:
        checks += [("champion", _check_champions), ("releases", _check_releases), ("mlflow", _check_mlflow)]
    yield chain
    ledger_is_whole = True
    for name, check in checks:
        try:
            for result in check(subject):
                ledger_is_whole &= result.state != "fault" or name not in ("anchor", "seals")
                yield result
        except UserError as error:
            ledger_is_whole &= name not in ("anchor", "seals")
            yield _fault(model, name, error)
        except TransientError as error:
            yield IntegrityCheck(
                model=model, name=name, state="unknown", what=error.what, where=error.where, remedy=error.remedy
            )
    if ledger_is_whole and subject.key and subject.anchor and rows and subject.anchor.seq < rows[-1].seq:
        with contextlib.suppress(TransientError):  # a store that this user may only read
            subject.seals.advance(sealed_row(rows[-1]), subject.key, since=1)


def _check_anchor(subject: _Subject) -> Iterator[IntegrityCheck]:
    model, anchor = subject.model, subject.anchor
    check_anchor(model, anchor, [row.hash for row in subject.rows])
    if anchor is not None:
        what = "no row was removed" + (f": row {anchor.seq} is {anchor.hash[:12]}…" if anchor.seq else "")
        yield IntegrityCheck(model=model, name="anchor", state="ok", what=what)
    elif subject.ledger.seals(model):
        raise ReleaseError(
            f"{model} has sealed rows and no anchor: rows removed from the end cannot be noticed",
            where=str(subject.settings.layout.ledger_anchors),
            remedy="restore the folder from a backup of the store's files; " + ACCEPT.format(model=model),
        )


def _check_seals(subject: _Subject) -> Iterator[IntegrityCheck]:
    """Every row since the first sealed one must have a valid seal."""
    model, rows, key = subject.model, subject.rows, subject.key
    seals = subject.ledger.seals(model)
    since = subject.anchor.since if subject.anchor else min(seals, default=None)
    if since is None or since > len(rows):
        if key is not None and rows:
            what = f"no row of {model} is signed: they are older than the key, or were not written by towline"
            remedy = f"the next row signs them; to sign them now: towline verify {model} --accept --reason '...'"
            yield IntegrityCheck(model=model, name="seals", state="note", what=what, remedy=remedy)
        return
    if key is None:
        raise ReleaseError(
            f"the rows of {model} are sealed, and the key is missing",
            where=str(subject.seals.key_file),
            remedy="restore the key from a backup, or name it in TOWLINE_LEDGER_KEY; " + ACCEPT.format(model=model),
        )
    for row in rows[since - 1 :]:
        seal = seals.get(row.seq)
        if seal is None or not key.is_valid(seal, sealed_row(row)):
            problem = "has no seal" if seal is None else "has a seal of another key or row"
            raise ReleaseError(
                f"row {row.seq} of {model} ({row.event}, version {row.version}) {problem}: "
                "it was not written by towline with this key",
                where=f"{model}, row {row.seq}",
                remedy="restore the ledger from a backup; " + ACCEPT.format(model=model),
            )
    older = f"; the {since - 1} rows before are covered by the first seal" if since > 1 else ""
    yield IntegrityCheck(
        model=model, name="seals", state="ok", what=f"{len(rows) - since + 1} rows are signed by {key.id}{older}"
    )


def _check_approvals(subject: _Subject) -> Iterator[IntegrityCheck]:
    """Each promotion of a version that needed approvals comes after enough of them."""
    is_signed, count = Signatures(subject.settings.store, revoked_count=True).is_signed, 0
    for position, row in enumerate(subject.rows):
        if row.event not in ("promoted", "rollout_started"):
            continue
        request = find_request(subject.rows, row.version, row.run_key)
        if request is None:
            continue
        given = len(counted_approvals(subject.rows[:position], request, is_signed))
        if given < request.required:
            raise ReleaseError(
                f"version {row.version} was promoted with {given} of {request.describe()}",
                where=f"{row.model}, row {row.seq}",
                remedy=f"towline rollback {row.model}, then find out who wrote the row (towline history {row.model}); "
                "if the API keys were lost, restore serving/keys.json from a backup",
            )
        count += 1
    if count:
        what = f"{count} promotions of versions that need approvals came after them"
        yield IntegrityCheck(model=subject.model, name="approvals", state="ok", what=what)


def _check_champions(subject: _Subject) -> Iterator[IntegrityCheck]:
    """The releases of the champion, and of the version that a rollback restores, are intact and were judged."""
    champions = champions_of(subject.rows)
    if not champions:
        yield IntegrityCheck(model=subject.model, name="champion", state="note", what="no version serves")
    for name, row in zip(("champion", "previous"), reversed(champions), strict=False):
        try:
            check_judged_release(subject.settings, row.model_copy(update={"evidence": _with_digest(subject, row)}))
        except UserError as error:
            yield _fault(subject.model, name, error)
        else:
            what = f"version {row.version}: every file of its release has its recorded sha256"
            yield IntegrityCheck(model=subject.model, name=name, state="ok", what=what)


def _with_digest(subject: _Subject, row: Entry) -> dict[str, object]:
    digest = digest_of(subject.rows, row.release)
    return {**row.evidence, **({"release": digest} if digest else {})}


def _check_releases(subject: _Subject) -> Iterator[IntegrityCheck]:
    """Every other release in the store has the digest, the dataset and the run key that the ledger recorded."""
    recorded = {row.version: row for row in subject.rows if row.release and row.event not in ("decided", "accepted")}
    origins = {row.version: row for row in subject.rows if row.event == "registered"}
    missing, whole = [], 0
    for version, row in sorted(recorded.items()):
        folder = subject.settings.layout.release(row.release)
        if not folder.is_dir():
            missing.append(version)
            continue
        manifest, origin = read_manifest(folder), origins.get(version)
        digest = digest_of(subject.rows, row.release) or manifest.digest
        dataset = origin.evidence.get("dataset", manifest.dataset["digest"]) if origin else manifest.dataset["digest"]
        run_key = origin.run_key if origin else manifest.run_key
        if (manifest.digest, manifest.dataset["digest"], manifest.run_key) != (digest, dataset, run_key):
            what = f"version {version}: digest, dataset or run key of its release differ from the ledger's"
            yield _fault(subject.model, "releases", ReleaseError(what, where=str(folder), remedy=REMEDY))
        else:
            whole += 1
    removed = f"; removed from the store: {', '.join(map(str, missing))}" if missing else ""
    what = f"{whole} manifests have the digests of the ledger{removed}"
    yield IntegrityCheck(model=subject.model, name="releases", state="note" if missing else "ok", what=what)


def _check_mlflow(subject: _Subject) -> Iterator[IntegrityCheck]:
    if not subject.settings.tracking_uri:
        yield IntegrityCheck(model=subject.model, name="mlflow", state="note", what="no MLflow is set")
        return
    differences = find_differences(subject.settings, subject.model)
    for difference in differences:
        yield IntegrityCheck(
            model=subject.model,
            name="mlflow",
            state="fault",
            what=f"MLflow: {difference}",
            where=f"registered model {subject.model}",
            remedy=f"towline status {subject.model} puts it back, as does `towline up`; the ledger decides what serves",
        )
    if not differences:
        what = "versions, tags and aliases are those of the ledger"
        yield IntegrityCheck(model=subject.model, name="mlflow", state="ok", what=what)


def _fault(model: str, name: str, error: UserError) -> IntegrityCheck:
    return IntegrityCheck(
        model=model, name=name, state="fault", what=error.what, where=error.where, remedy=error.remedy
    )
