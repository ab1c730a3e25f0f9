"""towline status: the state of the models."""

import contextlib
import datetime as dt
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from towline.cli import emit, json_option
from towline.errors import ConfigError
from towline.formatting import format_number, format_time

if TYPE_CHECKING:
    from towline.config import PipelineConfig, Settings
    from towline.monitoring.status.links import Links
    from towline.monitoring.status.summary import FlowStatus, ModelStatus

COLORS = {"ok": "green", "warning": "yellow", "alarm": "red", "unknown": "yellow"}
TIMEOUT = 3.0  # seconds for a request to a local server
MAX_CHECKS, MAX_EVENTS, MAX_REASON = 5, 5, 70
_FLOWS = ("training", "drift", "quality", "reaction")


@click.command(short_help="Shows the state of a model, and its alarms.")
@click.argument("name", metavar="[NAME|CONFIG]", required=False)
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Also write the status page (HTML).")
@json_option
def status(name: str | None, page: Path | None, as_json: bool) -> None:
    """Shows the state of a model: version, predictions, SLOs, quality, drift, decisions and alarms.

    Without NAME, all models are listed. With a CONFIG, its SLOs are used; else those of the champion's release. If
    MLflow lacks something of a model, such as a deleted version or an alias, it is repaired.

    \b
    Examples:
      towline status
      towline status bike-demand --page status.html
      towline status configs/bike_demand.yaml --json
    """
    from towline.config import Settings

    settings = Settings.from_environment()
    models = [
        model.model_copy(update={"mirror": repair_mirror(settings, model.model)})
        for model in read_statuses(settings, name)
    ]
    single = models[0] if len(models) == 1 else None
    if page is not None:
        from towline import files
        from towline.monitoring.status.page import render_index, render_status

        files.write(page, render_status(single) if single else render_index(models, dt.datetime.now(dt.UTC)))
    documents: list[Any] = [model.model_dump(mode="json") | {"health": model.health} for model in models]
    note = f"\npage       {page}" if page else ""
    emit(
        documents[0] if single and name else documents,
        as_json,
        lambda: (_describe_model(single) if single else _list_models(models)) + note,
    )


def read_statuses(settings: "Settings", name: str | None = None) -> list["ModelStatus"]:
    """The status of one model, by its name or config, or of all models.

    Raises:
        ConfigError: there is no such model.
        ReleaseError: the ledger was lost, or the rows of the named model were changed.
        TransientError: the ledger cannot be read.
    """
    from towline.registry.ledger import open_ledger
    from towline.registry.selection import check_recorded

    config, ledger = _read_config(name), open_ledger(settings)
    models, selected = ledger.models(), config.name if config else name
    check_recorded(settings, ledger, selected)
    if selected is not None and selected not in models:
        remedy = f"use one of: {', '.join(models)}" if models else "train a model: towline run CONFIG"
        raise ConfigError(f"no model called {selected!r}", where="command line", remedy=remedy)
    now = dt.datetime.now(dt.UTC)
    names = [selected] if selected is not None else models
    return [_read_status(settings, model, now, config, single=len(names) == 1) for model in names]


def _read_status(
    settings: "Settings", model: str, now: dt.datetime, config: "PipelineConfig | None", *, single: bool
) -> "ModelStatus":
    """The status of a model. If its ledger rows were changed and it is one of several, its status says so."""
    from towline.errors import ReleaseError
    from towline.monitoring.status.summary import ModelStatus, StatusAlarm, read_status

    try:
        return read_status(settings, model, now, config, read_flows(settings, model))
    except ReleaseError as error:
        if single:
            raise
        return ModelStatus(model=model, at=now, alarms=(StatusAlarm(title=error.what, reason=error.remedy),))


def repair_mirror(settings: "Settings", model: str) -> str:
    """The versions that were missing in MLflow and were restored; empty without such versions or without MLflow."""
    from importlib.util import find_spec

    from towline.errors import ReleaseError, TransientError

    if find_spec("mlflow") is None:
        return ""
    from towline.registry.mlflow.synchronization import synchronize

    try:
        return "; ".join(synchronize(settings, model))
    except ReleaseError:  # the model's status reports it
        return ""
    except TransientError as error:
        return f"cannot be read: {error.what}"


def read_flows(settings: "Settings", model: str) -> tuple["FlowStatus", ...]:
    """The last and next run of each of a model's flows from the Prefect server; none if it does not run."""
    from towline.http_request import HttpRequestError
    from towline.monitoring.status.summary import FlowStatus
    from towline.operations import servers

    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        server = servers.find_server(settings, "prefect")
        if server is None:
            return ()
        url = f"{server.url}/api"
    with contextlib.suppress(HttpRequestError, ValueError, KeyError, TypeError):
        names = {flow["id"]: flow["name"] for flow in _filter(url, "flows", {"flows": {"name": {"any_": _FLOWS}}})}
        started = {
            "flow_runs": {"name": {"any_": [model]}, "start_time": {"is_null_": False}},
            "sort": "START_TIME_DESC",
        }
        scheduled = {
            "deployments": {"name": {"any_": [model]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        last = _first_by_flow(_filter(url, "flow_runs", started), names)
        upcoming = _first_by_flow(_filter(url, "flow_runs", scheduled), names)
        return tuple(
            FlowStatus(
                flow=flow,
                run_id=last.get(flow, {}).get("id", ""),
                started=last.get(flow, {}).get("start_time"),
                state=last.get(flow, {}).get("state_name", ""),
                next=upcoming.get(flow, {}).get("expected_start_time"),
            )
            for flow in _FLOWS
            if flow in last or flow in upcoming
        )
    return ()


def read_links(settings: "Settings", models: Sequence[str]) -> "Links":
    """Addresses of the store's web interfaces, and MLflow's experiments of these models."""
    from towline.monitoring.status.links import Links
    from towline.operations import servers

    kinds: tuple[servers.Kind, ...] = ("prefect", "mlflow", "evidently")
    running = {kind: server.url for kind in kinds if (server := servers.find_server(settings, kind))}
    urls = {kind: servers.find_named_server(settings, kind) or running.get(kind, "") for kind in kinds}
    return Links(**urls, experiments=_read_experiments(urls["mlflow"], models) if urls["mlflow"] else {})


def _read_experiments(url: str, models: Sequence[str]) -> dict[str, str]:
    from towline.http_request import HttpRequestError, request_json

    experiments = {}
    for model in models:
        address = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(model)}"
        with contextlib.suppress(HttpRequestError, KeyError, TypeError):  # no experiment, or the server still starts
            experiments[model] = str(request_json(address, TIMEOUT)["experiment"]["experiment_id"])
    return experiments


def _filter(url: str, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects of the Prefect API that match a query."""
    from towline.http_request import request_json

    objects: list[dict[str, Any]] = request_json(f"{url.rstrip('/')}/{what}/filter", TIMEOUT, {"limit": 100, **query})
    return objects


def _first_by_flow(runs: Sequence[dict[str, Any]], names: dict[str, str]) -> dict[str, dict[str, Any]]:
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        first.setdefault(names.get(run["flow_id"], ""), run)
    return first


def _read_config(name: str | None) -> "PipelineConfig | None":
    from towline.config import read_config

    return read_config(Path(name)) if name and name.endswith((".yaml", ".yml")) else None


def _list_models(models: Sequence["ModelStatus"]) -> str:
    from towline.cli.screen import table
    from towline.monitoring.status.summary import HEALTH_TEXT

    if not models:
        return "no models yet; train one: towline run CONFIG"
    rows = [
        [
            model.model,
            HEALTH_TEXT[model.health],
            model.champion.version if model.champion else None,
            format_time(model.champion.since if model.champion else None),
            sum(model.traffic.values()),
            model.drift[-1].state if model.drift else None,
            f"{model.quality[-1].metric} {model.quality[-1].value.text()}" if model.quality else None,
            "; ".join(alarm.title for alarm in model.alarms),
        ]
        for model in models
    ]
    header = ["model", "state", "version", "since", "30 days", "drift", "quality", "open alarms"]
    notes = [f"\nmlflow     {model.model}: {model.mirror}" for model in models if model.mirror]
    return table(header, rows) + "".join(["\n", *notes]) + "\none model  towline status NAME"


def _describe_model(model: "ModelStatus") -> str:
    """One model, as blocks with an empty line between them."""
    describe = (
        _describe_champion,
        _describe_slos,
        _describe_quality,
        _describe_drift,
        _describe_flows,
        _describe_events,
    )
    return "\n\n".join(block for block in (each(model) for each in describe) if block)


def _describe_champion(model: "ModelStatus") -> str:
    from towline.cli.screen import format_label
    from towline.monitoring.status.summary import HEALTH_TEXT

    health = click.style(HEALTH_TEXT[model.health], fg=COLORS[model.health])
    lines = [format_label("model") + f"{model.model}  {health}"]
    if champion := model.champion:
        age = (model.at - champion.trained).days if champion.trained else 0
        trained = f", trained {champion.trained:%Y-%m-%d}, {age} days old" if champion.trained else ""
        lines.append(format_label("version") + f"{champion.version} since {format_time(champion.since)}{trained}")
    for alarm in model.alarms:
        color = COLORS["alarm" if alarm.severe else "warning"]
        lines.append(format_label("alarm") + click.style(alarm.title, fg=color) + f": {alarm.reason}")
    lines += [format_label("mlflow") + model.mirror] if model.mirror else []
    total, today = sum(model.traffic.values()), model.traffic.get(model.at.date(), 0)
    lines.append(format_label("traffic") + f"{total:,} predictions in 30 days, {today:,} today")
    return "\n".join(lines)


def _describe_slos(model: "ModelStatus") -> str:
    from towline.cli.screen import table

    rows = [
        [slo.goal, slo.current or None, "–" if slo.budget is None else f"{slo.budget:.0%}", _color(slo.state)]
        for slo in model.slos
    ]
    return table(["SLO", "now", "budget left", "state"], rows, "  ") if rows else ""


def _describe_quality(model: "ModelStatus") -> str:
    from towline.cli.screen import format_label

    if not model.quality:
        return ""
    last = model.quality[-1]
    labels = f"{last.labelled:,} of {last.rows:,} predictions have a label"
    value = f"{last.metric} {last.value.text()}, bound {last.bound:.4g}"
    lines = [format_label("quality") + f"{_color(last.state)}: {value}, {labels}"]
    if last.estimate and last.estimate.value is not None:
        trust = "" if last.estimate.trusted else ", not trusted"
        lines.append(format_label("estimate") + f"{last.metric} {last.estimate.value:.4g} without labels{trust}")
    return "\n".join(lines)


def _describe_drift(model: "ModelStatus") -> str:
    from towline.cli.screen import format_label, table

    if not model.drift:
        return ""
    last = model.drift[-1]
    until = f" until {format_time(last.end)}" if last.end else ""
    lines = [format_label("drift") + f"{_color(last.state)}, {last.rows:,} rows{until}: {last.reason}"]
    checks = [check for check in last.checks if check.alarm or check.invalid or check.threshold is not None]
    rows = [
        [
            check.column,
            check.name,
            format_number(check.value),
            format_number(check.threshold),
            _trend(model, check.column),
        ]
        for check in checks[:MAX_CHECKS]
    ]
    lines += [table(["column", "check", "value", "threshold", "last windows"], rows, "  ")] if rows else []
    return "\n".join(lines)


def _describe_flows(model: "ModelStatus") -> str:
    from towline.cli.screen import table

    rows = [[flow.flow, format_time(flow.started), _color(flow.state), format_time(flow.next)] for flow in model.flows]
    return table(["flow", "last (UTC)", "state", "next (UTC)"], rows, "  ") if rows else ""


def _describe_events(model: "ModelStatus") -> str:
    from towline.cli.screen import table

    rows = [
        [
            format_time(event.at),
            _color(event.what) + (f" {event.times}×" if event.times > 1 else ""),
            str(event.version),
            event.reason if len(event.reason) <= MAX_REASON else event.reason[: MAX_REASON - 1] + "…",
        ]
        for event in model.events[:MAX_EVENTS]
    ]
    return table(["decided (UTC)", "what", "version", "why"], rows, "  ") if rows else ""


def _trend(model: "ModelStatus", column: str) -> str:
    """A column's last windows, oldest first: a higher bar is nearer to its threshold, ! is an alarm."""
    trend = ""
    for window in model.drift[-14:]:
        checks = [check for check in window.checks if check.column == column]
        nearest = max((check.value / check.threshold for check in checks if check.threshold), default=0.0)
        if any(check.alarm or check.invalid for check in checks):
            trend += "!"
        else:
            trend += "▁▂▃▄▅▆▇"[min(6, int(nearest * 7))] if checks else " "
    return trend


def _color(state: str) -> str:
    from towline.html import STATE_CLASSES

    color = COLORS.get(STATE_CLASSES.get(state.lower(), state))
    return click.style(state, fg=color) if color else state
