"""The status page as HTML: of one model, and the list of all models."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from towline.html import meta_policy, render_page
from towline.monitoring.results import DriftResult
from towline.monitoring.status import charts
from towline.monitoring.status.links import Links
from towline.monitoring.status.summary import HEALTH_TEXT, ModelStatus

ALL_MODELS = "_all"  # path of the list; no model can have this name
MAX_CHECKS = 8  # of the last window


def render_status(status: ModelStatus, links: Links | None = None, *, forms: bool = False, message: str = "") -> str:
    """The page of one model.

    Args:
        status: its status.
        links: addresses of the other interfaces if the page is served; None for a file, which has no links.
        forms: whether versions can be approved on the page; otherwise it names the command.
        message: why an approval was refused; empty if none was.
    """
    last = status.drift[-1] if status.drift else None
    checks = (
        [check for check in last.checks if check.threshold is not None or check.alarm or check.invalid] if last else []
    )
    return _render(
        "status.html.jinja",
        links,
        status=status,
        card_links=_links_of(status, links),
        report=_report_link(status, last, links),
        checks=checks[:MAX_CHECKS],
        more_checks=max(0, len(checks) - MAX_CHECKS),
        at=status.at,
        forms=forms,
        message=message,
        approve_path=lambda model, version: f"/{quote(model)}/v{version}/approve",
        policy=meta_policy(forms=forms),
    )


def render_index(models: Sequence[ModelStatus], at: dt.datetime, links: Links | None = None) -> str:
    """The list of all models, one row each."""
    return _render("index.html.jinja", links, models=models, at=at)


def _render(template: str, links: Links | None, **values: Any) -> str:
    return render_page(
        Path(__file__).with_name(template),
        links=links,
        nav={"All models": f"/{ALL_MODELS}", **links.interfaces()} if links else {},
        charts=charts,
        health_text=HEALTH_TEXT,
        model_path=lambda model: f"/{quote(model)}" if links else "",
        card_path=lambda model, version: f"/{quote(model)}/v{version}/card" if links else "",
        **values,
    )


def _links_of(status: ModelStatus, links: Links | None) -> dict[str, str]:
    """Title → address of the model's other pages."""
    if links is None:
        return {}
    version = status.champion.version if status.champion else None
    pages = {"model card": f"/{quote(status.model)}/v{version}/card"} if version else {}
    pages["versions"] = links.model(status.model)
    if version:
        pages[f"version {version} in MLflow"] = links.version(status.model, version)
    pages["trainings with their metrics"] = links.trainings(status.model)
    pages["windows in Evidently"] = links.drift_windows(status.model)
    return {title: address for title, address in pages.items() if address}


def _report_link(status: ModelStatus, window: DriftResult | None, links: Links | None) -> str:
    """The address of a window's Evidently report; only windows with an alarm have one."""
    if links is None or window is None or not (window.is_alarm and window.end and window.end.date() in status.reports):
        return ""
    return f"/{quote(status.model)}/drift/{window.end:%Y-%m-%d}"
