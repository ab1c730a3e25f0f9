"""The checks of a model's records and approvals that ``towline up`` makes at intervals, and their alerts.

A changed or truncated ledger is a page: it no longer proves which version was approved. A difference in MLflow is a
ticket: the ledger decides, and ``towline up`` repairs MLflow.
"""

import datetime as dt
from collections.abc import Sequence

from towline.config import PipelineConfig, Settings
from towline.formatting import format_time
from towline.monitoring.alerts.notifications import Alert, AlertStore
from towline.promotion.approval_decision import expire_requests, list_approvals, resume_promotion
from towline.registry.ledger import actor, open_ledger
from towline.registry.verification import verify_models

INTERVAL = 20.0  # seconds
RELEASE_INTERVAL = 600.0  # seconds between two checks of the releases' files


def check_integrity(settings: Settings, config: PipelineConfig, *, releases: bool) -> str:
    """Verifies the ledger of a model once, and notifies of faults; returns them, or an empty text.

    Args:
        settings: locate the ledger and the store.
        config: the model's config.
        releases: also compare the files of the releases with the ledger.

    Raises:
        TransientError: the ledger cannot be read, or the store cannot be written.
    """
    offline = settings.model_copy(update={"tracking_uri": ""})  # MLflow has its own check
    now = dt.datetime.now(dt.UTC)
    checks = verify_models(offline, [config.name], quick=not releases)
    faults = [check for check in checks if check.state == "fault"]
    alerts = [
        Alert(
            model=config.name,
            kind="integrity",
            subject=check.name,
            severity="page",
            title=f"{config.name}: {check.what}",
            detail=f"where: {check.where}; remedy: {check.remedy}",
            at=now,
            data={"check": check.name},
        )
        for check in faults
    ]
    unchecked = () if releases else ("champion", "previous", "releases")
    AlertStore(settings.store, config.name, config.alerts).replace("integrity", alerts, now, unchecked)
    return "; ".join(f"{check.what}; remedy: {check.remedy}" for check in faults)


def check_approvals(settings: Settings, config: PipelineConfig) -> str:
    """Refuses versions whose time for approvals is over, and keeps an alert open for waiting ones; returns the changes.

    It promotes a version whose last approval was recorded by a command that was then killed.

    Raises:
        TransientError: the ledger or the store cannot be written.
    """
    ledger, now = open_ledger(settings), dt.datetime.now(dt.UTC)
    if config.name not in ledger.models():
        return ""
    refusals = expire_requests(ledger, config.name, actor())
    resumed = resume_promotion(settings, ledger, config.name, actor())
    waiting = [each for each in list_approvals(settings, ledger, config.name) if each.state == "waiting"]
    alerts = [
        Alert(
            model=config.name,
            kind="approval",
            subject=f"version {each.version}",
            severity="ticket",
            title=f"{config.name}: version {each.version} waits for approval",
            detail=f"{len(each.approvals)} of {each.required} until {format_time(each.expires)} UTC; "
            f"towline approve {config.name}@{each.version}",
            at=now,
        )
        for each in waiting
    ]
    AlertStore(settings.store, config.name, config.alerts).replace("approval", alerts, now)
    changes = [row.reason for row in refusals]
    if resumed and resumed.state != "approved":
        changes.append(f"version {resumed.version} is approved, and now {resumed.state}")
    return "; ".join(changes)


def notify_mlflow(settings: Settings, config: PipelineConfig, differences: Sequence[str]) -> None:
    """Opens one alert about the differences between MLflow and the ledger, or resolves it if there are none.

    Raises:
        TransientError: the store cannot be written.
    """
    now = dt.datetime.now(dt.UTC)
    alert = Alert(
        model=config.name,
        kind="mlflow",
        subject="differences",
        severity="ticket",
        title=f"{config.name}: MLflow was changed: {'; '.join(differences)}",
        detail="The ledger decides which version serves. What MLflow lacks is added to it.",
        at=now,
    )
    AlertStore(settings.store, config.name, config.alerts).replace("mlflow", [alert] if differences else [], now)
