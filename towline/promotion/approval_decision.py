"""Approval of a version by people: the required and the given approvals, and the promotion by the last one.

No process waits for an approval. The command that gives the last one promotes the version, or begins its rollout.
"""

import datetime as dt
from typing import Literal

from towline.api_keys import ApiKey, find_valid_key, key_file
from towline.config import Frozen, RolloutConfig, Settings
from towline.errors import ConfigError, PromotionRejectedError
from towline.promotion.rollout_start import begin_rollout
from towline.registry.approvals import ApprovalRequest, find_request, list_requests, sign
from towline.registry.ledger import Entry, Ledger, champion_of, open_ledger
from towline.registry.rollouts import active_rollout
from towline.registry.selection import check_judged_release, require_model, select_version

_CHAMPION_EVENTS = ("promoted", "rolled_back", "rollout_started", "rollout_ended")
State = Literal["waiting", "approved", "promoted", "in rollout", "rollout ended", "refused"]


class GivenApproval(Frozen):
    """A valid approval: the holder of the key that signed it, the user of the command, the time and the reason."""

    holder: str
    key: str
    actor: str
    time: str
    reason: str


class ApprovalStatus(Frozen):
    """A version that needs approvals.

    Attributes:
        model, version: the version.
        state: waiting; approved, and not promoted (``note`` says why); promoted, now or earlier; in rollout; rollout
            ended, without a promotion; refused.
        required: number of approvals, of different people.
        approvals: those that count.
        approvers: ids of the API keys that may approve; empty: every key with the scope admin.
        expires: approvals from this time on do not count (UTC, ISO 8601).
        starter: who started the run.
        digest: sha256 of the manifest of the release that is approved.
        note: why an approved version was not promoted.
    """

    model: str
    version: int
    state: State
    required: int
    approvals: tuple[GivenApproval, ...]
    approvers: tuple[str, ...]
    expires: str
    starter: str
    digest: str
    note: str = ""


def list_approvals(settings: Settings, ledger: Ledger, model: str) -> list[ApprovalStatus]:
    """The versions of a model that need, or needed, approvals, newest first.

    Raises:
        ConfigError: there is no such model.
    """
    rows = ledger.rows(require_model(settings, ledger, model))
    return [_status(ledger, request) for request in reversed(list_requests(rows))]


def expire_requests(ledger: Ledger, model: str, actor: str) -> list[Entry]:
    """Refuses the versions of a model whose time for approvals is over; returns the rows of the refusals."""
    refusals = (ledger.expire(request, actor) for request in list_requests(ledger.rows(model)))
    return [row for row in refusals if row is not None]


def approve(settings: Settings, version: str, presented: str, *, actor: str, reason: str) -> ApprovalStatus:
    """Approves the release of a version with an API key; the last required approval promotes it.

    Args:
        settings: locate the store and the ledger.
        version: ``NAME@3``.
        presented: the text of an API key with the scope admin.
        actor: who acts; the holder of the key is recorded, too.
        reason: stored in the ledger.

    Raises:
        ConfigError: there is no such version, or the key is not valid.
        PromotionRejectedError: the version needs no approval, its time is over, or the holder may not approve it.
        ReleaseError: its release differs from the judged one.
    """
    ledger = open_ledger(settings)
    entry = select_version(settings, ledger, version, numbered=True)
    key = _check_key(settings, presented)
    request = find_request(ledger.rows(entry.model), entry.version, entry.run_key)
    if request is None:
        raise PromotionRejectedError(
            f"{entry.model}@{entry.version} needs no approval: it is {ledger.state(entry.model, entry.version)}",
            where=entry.model,
            remedy=f"`towline approvals {entry.model}` lists the versions that wait for one",
        )
    ledger.expire(request, actor)
    check_judged_release(settings, entry)
    evidence = {
        "key": key.id,
        "holder": key.name,
        "release": request.digest,
        "signature": sign(key, request),
    }
    ledger.approve(request, evidence, actor, reason)
    return promote_approved(settings, ledger, request, actor)


def promote_approved(settings: Settings, ledger: Ledger, request: ApprovalRequest, actor: str) -> ApprovalStatus:
    """Promotes a version, or starts its rollout, if it has all approvals; a repeated call changes nothing."""
    rows, approvals = ledger.rows(request.model), ledger.approvals(request)
    status = _status(ledger, request)
    if status.state != "approved":
        return status
    passed = next(row for row in rows if row.event == "passed" and row.run_key == request.run_key)
    people = ", ".join(f"{row.evidence['holder']} (key {row.evidence['key']})" for row in approvals)
    reason = f"{passed.reason.removesuffix('; awaiting approval')}; approved by {people}"
    rollout = passed.evidence.get("rollout_after_approval")
    note = ""
    try:
        if rollout and champion_of(rows) is not None:
            config = RolloutConfig.model_validate(rollout)
            begin_rollout(settings, ledger, request.model, request.version, config, actor, reason)
        else:
            ledger.promote_again(request.model, request.version, passed.previous, actor, reason)
    except (PromotionRejectedError, ConfigError) as error:
        note = f"it does not serve yet: {error.what}; {error.remedy}"
    return _status(ledger, request).model_copy(update={"note": note})


def resume_promotion(settings: Settings, ledger: Ledger, model: str, actor: str) -> ApprovalStatus | None:
    """Promotes the version with the newest approval, if the command that gave it was killed before; else None.

    After any later promotion, rollback or rollout of the model it is left to a person.
    """
    rows = ledger.rows(model)
    relevant = (row for row in reversed(rows) if row.event in ("approved", *_CHAMPION_EVENTS))
    last = next(relevant, None)
    request = find_request(rows, last.version, last.run_key) if last and last.event == "approved" else None
    if request is None or _status(ledger, request).state != "approved":
        return None
    return promote_approved(settings, ledger, request, actor)


def _status(ledger: Ledger, request: ApprovalRequest) -> ApprovalStatus:
    approvals = ledger.approvals(request)
    rows = ledger.rows(request.model)
    events = {row.event for row in rows if (row.run_key, row.version) == (request.run_key, request.version)}
    rollout = active_rollout(rows)
    is_in_rollout = rollout is not None and rollout.challenger == request.version
    state: State = "approved" if len(approvals) >= request.required else "waiting"
    if state == "waiting" and dt.datetime.now(dt.UTC) >= request.expires:
        state = "refused"
    known: dict[str, State] = {
        "promoted": "promoted",
        "refused": "refused",
        "rollout_started": "in rollout" if is_in_rollout else "rollout ended",
    }
    state = next((name for event, name in known.items() if event in events), state)
    return ApprovalStatus(
        model=request.model,
        version=request.version,
        state=state,
        required=request.required,
        approvals=tuple(
            GivenApproval(
                holder=row.evidence["holder"],
                key=row.evidence["key"],
                actor=row.actor,
                time=row.time,
                reason=row.reason,
            )
            for row in approvals
        ),
        approvers=request.approvers,
        expires=request.expires.isoformat(),
        starter=request.starter,
        digest=request.digest,
    )


def _check_key(settings: Settings, presented: str) -> ApiKey:
    key = find_valid_key(settings.store, presented.strip(), dt.datetime.now(dt.UTC))
    if key is None or "admin" not in key.scopes:
        problem = "is unknown, expired or revoked" if key is None else f"of {key.name} has no scope admin"
        raise ConfigError(
            f"the API key {problem}",
            where=str(key_file(settings.store)),
            remedy="give a key of `towline keys create NAME --scope admin`; `towline keys list` shows which are valid",
        )
    return key
