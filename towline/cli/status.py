"""towline status: how the models do, at a glance."""

import contextlib
import datetime as dt
import json
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from towline.cli import emit, json_option
from towline.errors import ConfigError

if TYPE_CHECKING:
    from towline.config import PipelineConfig, Settings
    from towline.monitoring.status.links import Links
    from towline.monitoring.status.summary import Run, Status

COLOURS = {
    "good": "green", "ok": "green", "met": "green", "promoted": "green", "completed": "green", "unchanged": "green",
    "bad": "red", "degraded": "red", "drift": "red", "invalid_schema": "red",
    "burning": "red", "block": "red", "failed": "red", "crashed": "red",
    "data refused": "red", "roll back": "red",
    "warn": "yellow", "unknown": "yellow", "spent": "yellow", "refused": "yellow",
}  # fmt: skip
_HEALTH = {"good": "all well", "warn": "look at it", "bad": "alarm", "unknown": "not watched yet"}
_FLOWS = ("training", "drift", "quality", "reaction")


@click.command()
@click.argument("name", metavar="[NAME|CONFIG]", required=False)
@click.option("--page", type=click.Path(path_type=Path), metavar="FILE", help="Also write the page with the plots.")
@json_option
def status(name: str | None, page: Path | None, as_json: bool) -> None:
    """Shows how a model does: what serves, what is asked, quality, drift, promises, decisions and alarms.

    All models, if there are several and none is named. With a CONFIG its promises are taken from there, else from the
    release that serves. What MLflow lacks of a model (a version that was deleted there, an alias) is put back.

    \b
    Examples:
      towline status
      towline status bike-demand --page status.html
      towline status configs/bike_demand.yaml --json
    """
    from towline.config import Settings

    settings = Settings.from_environment()
    found = [one.model_copy(update={"mirror": mirrored(settings, one.model)}) for one in gather(settings, name)]
    if page is not None:
        from towline import files
        from towline.monitoring.status.page import index, render

        one = len(found) == 1
        files.write(page, render(found[0]) if one else index(found, dt.datetime.now(dt.UTC)))
    document: Any = [one.model_dump(mode="json") | {"health": one.health} for one in found]
    note = f"\npage       {page}" if page else ""
    single = len(found) == 1
    emit(
        document[0] if single and name else document,
        as_json,
        lambda: (_screen(found[0]) if single else _all(found)) + note,
    )


def gather(settings: "Settings", name: str | None = None) -> list["Status"]:
    """The status of one model, by its name or its config, or of all.

    Raises:
        ConfigError: there is no such model.
        ReleaseError: the ledger was lost; or the rows of the model, where it is one, are not what was written.
        TransientError: the ledger cannot be read.
    """
    from towline.registry.ledger import open_ledger
    from towline.registry.resolution import check_recorded

    config, ledger = _config(name), open_ledger(settings)
    known, wanted = ledger.models(), config.name if config else name
    check_recorded(settings, ledger, wanted)
    if wanted is not None and wanted not in known:
        remedy = f"name one of: {', '.join(known)}" if known else "towline run CONFIG makes one"
        raise ConfigError(f"no model called {wanted!r}", where="command line", remedy=remedy)
    now = dt.datetime.now(dt.UTC)
    names = [wanted] if wanted is not None else known
    return [_gathered(settings, model, now, config, alone=len(names) == 1) for model in names]


def _gathered(
    settings: "Settings", model: str, now: dt.datetime, config: "PipelineConfig | None", *, alone: bool
) -> "Status":
    """The status of a model; of one among several whose rows are not what was written, that alone."""
    from towline.errors import ReleaseError
    from towline.monitoring.status.summary import Alarm, Status, gather

    try:
        return gather(settings, model, now, config, runs(settings, model))
    except ReleaseError as error:
        if alone:
            raise
        return Status(model=model, at=now, alarms=(Alarm(what=error.what, reason=error.remedy),))


def mirrored(settings: "Settings", model: str) -> str:
    """What MLflow lacked of a model, and that it was put back; empty if nothing, or without MLflow installed."""
    from importlib.util import find_spec

    from towline.errors import ReleaseError, TransientError

    if find_spec("mlflow") is None:
        return ""
    from towline.registry.mlflow.synchronization import mend

    try:
        return "; ".join(mend(settings, model))
    except ReleaseError:  # told by the model's status
        return ""
    except TransientError as error:
        return f"cannot be looked at: {error.what}"


def runs(settings: "Settings", model: str) -> tuple["Run", ...]:
    """The last and the next run of each of a model's flows, as the Prefect server tells; none where it is away."""
    from towline.monitoring.status.summary import Run
    from towline.operations import servers

    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        server = servers.find(settings, "prefect")
        if server is None:
            return ()
        url = f"{server.url}/api"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        flows = {flow["id"]: flow["name"] for flow in _ask(url, "flows", {"flows": {"name": {"any_": list(_FLOWS)}}})}
        named = {"flow_runs": {"name": {"any_": [model]}, "start_time": {"is_null_": False}}, "sort": "START_TIME_DESC"}
        due = {
            "deployments": {"name": {"any_": [model]}},
            "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        last: dict[str, Any] = {}
        following: dict[str, Any] = {}
        for found, into in ((_ask(url, "flow_runs", named), last), (_ask(url, "flow_runs", due), following)):
            for run in found:
                into.setdefault(flows.get(run["flow_id"], ""), run)
        return tuple(
            Run(
                flow=flow,
                number=last.get(flow, {}).get("id", ""),
                started=last.get(flow, {}).get("start_time"),
                state=last.get(flow, {}).get("state_name", ""),
                next=following.get(flow, {}).get("expected_start_time"),
            )
            for flow in _FLOWS
            if flow in last or flow in following
        )
    return ()


def links(settings: "Settings", models: Sequence[str]) -> "Links":
    """Where the store's web interfaces answer, and what MLflow calls the experiments of these models."""
    from towline.monitoring.status.links import Links
    from towline.operations import servers

    kinds: tuple[servers.Kind, ...] = ("prefect", "mlflow", "evidently")
    pages = {kind: server.url for kind in kinds if (server := servers.find(settings, kind))}
    return Links(**pages, experiments=_experiments(pages["mlflow"], models) if "mlflow" in pages else {})


def _experiments(url: str, models: Sequence[str]) -> dict[str, str]:
    found = {}
    for model in models:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or the server still starts
            asked = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(model)}"
            found[model] = str(_open(urllib.request.Request(asked))["experiment"]["experiment_id"])  # noqa: S310
    return found


def _ask(url: str, what: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    request = urllib.request.Request(  # noqa: S310 - the address of the user's own server
        f"{url.rstrip('/')}/{what}/filter",
        json.dumps({"limit": 100, **query}).encode(),
        {"Content-Type": "application/json"},
    )
    found: list[dict[str, Any]] = _open(request)
    return found


def _open(request: urllib.request.Request) -> Any:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=3) as answer:
        return json.load(answer)


def _config(name: str | None) -> "PipelineConfig | None":
    from towline.config import read_config

    return read_config(Path(name)) if name and name.endswith((".yaml", ".yml")) else None


def _all(found: Sequence["Status"]) -> str:
    from towline.cli.screen import table

    if not found:
        return "no models yet: towline run CONFIG makes one"
    rows = [
        [
            one.model,
            _HEALTH[one.health],
            one.champion.version if one.champion else None,
            f"{one.champion.since:%Y-%m-%d %H:%M}" if one.champion else None,
            one.traffic.rows,
            one.drift[-1].state if one.drift else None,
            f"{one.quality[-1].metric} {one.quality[-1].value.text()}" if one.quality else None,
            "; ".join(alarm.what for alarm in one.alarms),
        ]
        for one in found
    ]
    names = ["model", "state", "version", "since", "30 days", "drift", "quality", "open alarms"]
    notes = [f"\nmlflow     {one.model}: {one.mirror}" for one in found if one.mirror]
    return table(names, rows) + "".join(["\n", *notes]) + "\none model  towline status NAME"


def _screen(one: "Status") -> str:
    """One model; blocks with a line between them."""
    blocks = [_serving(one), _promises(one), _quality(one), _drift(one), _runs(one), _steps(one)]
    return "\n\n".join(block for block in blocks if block)


def _serving(one: "Status") -> str:
    from towline.cli.screen import head

    lines = [head("model") + f"{one.model}  {_coloured(one.health, _HEALTH[one.health])}"]
    if one.champion:
        serving = one.champion
        age = (one.at - serving.trained).days if serving.trained else 0
        trained = f", trained {serving.trained:%Y-%m-%d}, {age} days old" if serving.trained else ""
        lines.append(head("version") + f"{serving.version} since {serving.since:%Y-%m-%d %H:%M}{trained}")
    lines += [
        head("alarm") + _coloured("bad" if alarm.bad else "warn", alarm.what) + f": {alarm.reason}"
        for alarm in one.alarms
    ]
    lines += [head("mlflow") + one.mirror] if one.mirror else []
    today = sum(day.rows for day in one.traffic.days if day.day == one.at.date())
    lines.append(head("traffic") + f"{one.traffic.rows:,} predictions in 30 days, {today:,} today")
    return "\n".join(lines)


def _promises(one: "Status") -> str:
    from towline.cli.screen import table

    rows = [
        [goal.target, goal.now or None, "–" if goal.budget is None else f"{goal.budget:.0%}", _coloured(goal.state)]
        for goal in one.goals
    ]
    return table(["promise", "now", "budget left", "state"], rows, "  ") if rows else ""


def _quality(one: "Status") -> str:
    from towline.cli.screen import head

    if not one.quality:
        return ""
    last = one.quality[-1]
    told = f"{last.metric} {last.value.text()}, bound {last.bound:.4g}, {last.labelled:,} of {last.rows:,} have a label"
    lines = [head("quality") + f"{_coloured(last.state)}: {told}"]
    if last.estimate and last.estimate.value is not None:
        doubt = "" if last.estimate.trusted else ", not to be trusted"
        lines.append(head("estimate") + f"{last.metric} {last.estimate.value:.4g} without labels{doubt}")
    return "\n".join(lines)


def _drift(one: "Status") -> str:
    from towline.cli.screen import head, table

    if not one.drift:
        return ""
    night = one.drift[-1]
    until = f" to {night.end:%Y-%m-%d %H:%M}" if night.end else ""
    lines = [head("drift") + f"{_coloured(night.state)}, {night.rows:,} rows{until}: {night.reason}"]
    near = [f for f in night.checks if f.alarm or f.invalid or f.threshold is not None][:5]
    rows = [[f.column, f.name, _number(f.value), _number(f.threshold), _recent(one, f.column)] for f in near]
    lines += [table(["column", "what", "value", "alarm from", "last nights"], rows, "  ")] if rows else []
    return "\n".join(lines)


def _runs(one: "Status") -> str:
    from towline.cli.screen import table

    rows = [
        [run.flow, _moment(run.started), _coloured(run.state.lower(), run.state), _moment(run.next)] for run in one.runs
    ]
    return table(["flow", "last (UTC)", "state", "next (UTC)"], rows, "  ") if rows else ""


def _steps(one: "Status") -> str:
    from towline.cli.screen import table

    rows = [
        [f"{step.at:%Y-%m-%d %H:%M}", _coloured(step.what) + _often(step.times), str(step.version), _short(step.reason)]
        for step in one.steps[:5]
    ]
    return table(["decided (UTC)", "what", "version", "why"], rows, "  ") if rows else ""


def _often(times: int) -> str:
    return f" {times}×" if times > 1 else ""


def _recent(one: "Status", column: str) -> str:
    """The last nights of a column, oldest first: how near it came to its threshold, ! an alarm."""
    told = ""
    for night in one.drift[-14:]:
        mine = [f for f in night.checks if f.column == column]
        near = max((f.value / f.threshold for f in mine if f.threshold), default=0.0)
        told += "!" if any(f.alarm or f.invalid for f in mine) else "▁▂▃▄▅▆▇"[min(6, int(near * 7))] if mine else " "
    return told


def _coloured(state: str, told: str = "") -> str:
    colour = COLOURS.get(state)
    return click.style(told or state, fg=colour) if colour else told or state


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _moment(moment: dt.datetime | None) -> str | None:
    return f"{moment:%Y-%m-%d %H:%M}" if moment else None


def _short(text: str, most: int = 70) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
