"""Approvals in the ledger: a version that passed the gate is promoted only after enough people have approved it.

An approval is a row ``approved``, bound to the version, its run and the digest of its release, and signed with the API
key of the approver. The row ``passed`` says how many are required, by which keys, and until when.
"""

import datetime as dt
import hmac
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from towline.api_keys import ApiKey, read_keys
from towline.config import ApprovalConfig, Frozen
from towline.errors import ConfigError, PromotionRejectedError
from towline.registry.hash_chain import Entry

MIN_SEPARATE_APPROVERS = 2  # from this many required approvals on, none may come from the person who started the run


class ApprovalRequest(Frozen):
    """The approvals that a version waits for.

    Attributes:
        model, version, run_key: the version.
        release, digest: folder of its release in the store, and sha256 of its manifest.
        required: number of approvals, of different people.
        approvers: ids of the API keys that may approve; empty: every key with the scope admin.
        expires: approvals from this time on do not count (UTC).
        starter: who started the run.
    """

    model: str
    version: int
    run_key: str
    release: str
    digest: str
    required: int
    approvers: tuple[str, ...]
    expires: dt.datetime
    starter: str

    def describe(self) -> str:
        """The requirement, in words."""
        people = f"{self.required} approval{'s' if self.required > 1 else ''}"
        others = f", none from {self.starter}" if self.required >= MIN_SEPARATE_APPROVERS else ""
        return f"{people}{others}, until {self.expires:%Y-%m-%d %H:%M} UTC"


def request_evidence(config: ApprovalConfig, now: dt.datetime) -> dict[str, object]:
    """The part of the config that the row ``passed`` records."""
    return {
        "required": config.required,
        "approvers": list(config.approvers),
        "expires": (now + config.expires).isoformat(),
    }


def find_request(rows: Sequence[Entry], version: int, run_key: str) -> ApprovalRequest | None:
    """The approvals that a version waits or waited for; None if it needs none."""
    of_run = [row for row in rows if (row.version, row.run_key) == (version, run_key)]
    passed = next((row for row in of_run if row.event == "passed" and row.evidence.get("approval")), None)
    if passed is None:
        return None
    return ApprovalRequest(
        model=passed.model,
        version=version,
        run_key=run_key,
        release=passed.release,
        digest=str(passed.evidence.get("release", "")),
        starter=next((row.actor for row in of_run if row.event == "registered"), passed.actor),
        **passed.evidence["approval"],
    )


def list_requests(rows: Sequence[Entry]) -> list[ApprovalRequest]:
    """All requests of a model, oldest first."""
    requests = (find_request(rows, row.version, row.run_key) for row in rows if row.event == "passed")
    return [request for request in requests if request is not None]


def counted_approvals(
    rows: Sequence[Entry], request: ApprovalRequest, is_signed: Callable[[Entry], bool]
) -> list[Entry]:
    """The approvals that count: signed, in time, of this release, one per person and key, by people who may approve."""
    counted: list[Entry] = []
    people, keys = set[str](), set[str]()
    for row in rows:
        if (
            row.event != "approved"
            or not _belongs_to(row, request)
            or approval_error(row, request)
            or not is_signed(row)
        ):
            continue
        person, key = str(row.evidence["holder"]).casefold(), str(row.evidence["key"])
        if person not in people and key not in keys:
            people.add(person)
            keys.add(key)
            counted.append(row)
    return counted


def approval_error(row: Entry, request: ApprovalRequest) -> str:
    """The reason why an approval of this release does not count; empty if it does."""
    if dt.datetime.fromisoformat(row.time) >= request.expires:
        return "it came too late"
    return approver_error(request, str(row.evidence["key"]), str(row.evidence["holder"]), row.actor)


def approver_error(request: ApprovalRequest, key: str, holder: str, actor: str) -> str:
    """The reason why a person may not approve; empty if they may."""
    if request.approvers and key not in request.approvers:
        return f"the key {key} is not in approval.approvers of the run's config: {', '.join(request.approvers)}"
    if request.required >= MIN_SEPARATE_APPROVERS and request.starter.casefold() in (
        holder.casefold(),
        actor.casefold(),
    ):
        return f"{request.starter} started the run, and {request.required} other people must approve it"
    return ""


def sign(key: ApiKey, request: ApprovalRequest) -> str:
    """The signature of an approval: HMAC-SHA256 over the version, its run and the digest of its release."""
    return _mac(key, [request.model, request.version, request.run_key, request.digest])


def _mac(key: ApiKey, subject: Sequence[object]) -> str:
    return hmac.digest(bytes.fromhex(key.sha256), json.dumps(["approve", key.id, *subject]).encode(), "sha256").hex()


class Signatures:
    """Checks signatures of approvals with the API keys of a store, which are read at the first check.

    Args:
        store: the store's folder.
        revoked_count: whether approvals count whose keys were revoked later, as in a check of the past.
    """

    def __init__(self, store: Path, *, revoked_count: bool = False) -> None:
        self._store, self._revoked_count = store, revoked_count

    def is_signed(self, row: Entry) -> bool:
        """Whether the signature is valid, and its key was not revoked."""
        try:
            keys = {key.id: key for key in read_keys(self._store).keys}
        except ConfigError:
            return False
        key, evidence = keys.get(str(row.evidence.get("key"))), row.evidence
        if key is None or "admin" not in key.scopes or key.name != evidence.get("holder"):
            return False
        if key.revoked is not None and not self._revoked_count:
            return False
        mac = _mac(key, [row.model, row.version, row.run_key, evidence.get("release")])
        return hmac.compare_digest(mac, str(evidence.get("signature")))


def check_approved(
    rows: Sequence[Entry], version: int, run_key: str, is_signed: Callable[[Entry], bool], now: dt.datetime
) -> None:
    """Rejects a version that needs more approvals than it has.

    Raises:
        PromotionRejectedError: says how many are missing, or that the time for them is over.
    """
    request = find_request(rows, version, run_key)
    if request is None or len(counted := counted_approvals(rows, request, is_signed)) >= request.required:
        return
    name = f"{request.model}@{version}"
    if now >= request.expires:
        raise expired_error(request, len(counted))
    raise PromotionRejectedError(
        f"version {version} waits for approval: it has {len(counted)} of {request.describe()}",
        where=request.model,
        remedy=f"towline approve {name}; `towline approvals {request.model}` lists the approvers",
    )


def is_waiting(rows: Sequence[Entry], row: Entry) -> bool:
    """Whether a version needs more approvals than it has; signatures are not checked."""
    request = find_request(rows, row.version, row.run_key)
    return request is not None and len(counted_approvals(rows, request, lambda _row: True)) < request.required


def expired_error(request: ApprovalRequest, count: int) -> PromotionRejectedError:
    """The error for a version whose time for approvals is over."""
    return PromotionRejectedError(
        f"the time to approve version {request.version} is over: it has {count} of {request.describe()}",
        where=request.model,
        remedy="evaluate the same config and data again: towline run CONFIG --force",
    )


def _belongs_to(row: Entry, request: ApprovalRequest) -> bool:
    about = (row.version, row.run_key, row.release, row.evidence.get("release"))
    return about == (request.version, request.run_key, request.release, request.digest)
