"""The Python API of accountability: the version that was responsible, the integrity of the records, and the approvals.

``towline/__init__.py`` exports these functions together with those of ``api.py``.
"""

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING

from towline.config import Settings
from towline.registry.ledger import open_ledger

if TYPE_CHECKING:
    from towline.prediction_log.attribution import Attribution
    from towline.promotion.approval_decision import ApprovalStatus
    from towline.registry.ledger import Entry
    from towline.registry.verification import IntegrityCheck


def served_at(name: str, when: "datetime | str") -> "Attribution":
    """Names the version that served at a time, or that answered a request, with its data, config and approval.

    Args:
        name: of the model.
        when: a time, or its text in ISO 8601 (UTC if it has no zone), or the id of a request in the prediction log.

    Raises:
        ConfigError: there is no such model, it had no champion then, or the log does not hold the request.
        DataError: a part of the prediction log cannot be read.
        ReleaseError: the ledger was changed or lost.

    Example:
        >>> towline.served_at("bike-demand", "2026-03-01T08:00").version  # doctest: +SKIP
        3
    """
    from towline.prediction_log import attribution

    settings = Settings.from_environment()
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(when.strip())
    if isinstance(when, datetime):
        return attribution.attribute_time(settings, open_ledger(settings), name, when)
    return attribution.attribute_request(settings, open_ledger(settings), name, when)


def verify(name: str | None = None) -> "list[IntegrityCheck]":
    """Checks the ledger's chain, seals and anchor, the releases, and MLflow against the ledger.

    Args:
        name: of a model; None: all models.

    Returns:
        The checks; their ``state`` is ok, note, fault or unknown.

    Raises:
        ConfigError: there is no such model.
        TransientError: the ledger cannot be read.
    """
    from towline.registry import verification

    settings = Settings.from_environment()
    return verification.verify_models(settings, _names(settings, name) if name else None)


def accept(name: str | None = None, *, reason: str) -> "list[Entry]":
    """Trusts the current rows of the ledger: signs and anchors them again, and records that; makes a missing key.

    Args:
        name: of a model; None: all models.
        reason: stored in the ledger.

    Returns:
        The rows that record it, one for each model that has rows.

    Raises:
        ConfigError: there is no such model.
        ReleaseError: a row does not follow from the row before it.
    """
    from towline.registry import verification
    from towline.registry.ledger import actor
    from towline.registry.seals import open_seals

    settings = Settings.from_environment()
    names = _names(settings, name) if name else verification.list_models_to_verify(settings)
    if not names:  # the first row of a ledger on a server needs a key that all stores have
        open_seals(settings).create_key()
    rows = [verification.accept(settings, model, actor(), reason) for model in names]
    return [row for row in rows if row is not None]


def approve(version: str, *, key: str, reason: str = "approved") -> "ApprovalStatus":
    """Approves a version that waits for approval; the last required approval promotes it, or begins its rollout.

    Args:
        version: ``NAME@3``.
        key: the text of an API key with the scope admin; the approval is signed with it.
        reason: stored in the ledger.

    Returns:
        The approvals so far, and whether the version was promoted.

    Raises:
        ConfigError: there is no such version, or the key is not valid.
        PromotionRejectedError: it needs no approval, its time is over, or the holder of the key may not approve it.
        ReleaseError: its release differs from the judged one.
    """
    return approve_with_note(version, key=key, reason=reason)[0]


def approve_with_note(version: str, *, key: str, reason: str) -> "tuple[ApprovalStatus, str]":
    """As ``approve``; the second value is a message if MLflow does not show a promotion yet."""
    from towline.promotion import approval_decision
    from towline.registry.ledger import actor
    from towline.registry.mlflow.synchronization import update_mlflow

    settings = Settings.from_environment()
    status = approval_decision.approve(settings, version, key, actor=actor(), reason=reason)
    return status, update_mlflow(settings, status.model) if status.state == "promoted" else ""


def approvals(name: str) -> "list[ApprovalStatus]":
    """Lists the versions of a model that need, or needed, approvals, newest first.

    Args:
        name: of the model.

    Raises:
        ConfigError: there is no such model.
    """
    from towline.promotion import approval_decision

    settings = Settings.from_environment()
    return approval_decision.list_approvals(settings, open_ledger(settings), name)


def _names(settings: Settings, name: str) -> list[str]:
    from towline.registry import verification
    from towline.registry.selection import require_model

    known = verification.list_models_to_verify(settings)
    return [name] if name in known else [require_model(settings, open_ledger(settings), name)]
