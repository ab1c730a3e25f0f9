"""towline served-at: the version that was responsible at a time, or for a request."""

import contextlib
from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option
from towline.formatting import format_time

if TYPE_CHECKING:
    import datetime as dt

    from towline.prediction_log.attribution import Attribution


@click.command("served-at", short_help="Names the version that served at a time.")
@click.argument("name")
@click.argument("when", metavar="TIME|REQUEST_ID")
@click.option("--request", is_flag=True, help="Read the second argument as a request id, even if it looks like a time.")
@json_option
def served_at(name: str, when: str, request: bool, as_json: bool) -> None:
    """Names the version that served at a time, or that answered a request.

    It shows the version's data, config and verdict, and the user who promoted it. A time without a zone is UTC. A
    request id is looked up in the prediction log.

    \b
    Examples:
      towline served-at bike-demand 2026-03-01T08:00
      towline served-at bike-demand 2026-03-01T09:00+01:00
      towline served-at bike-demand 9f0c2b7a
    """
    from towline.cli.arguments import TimeType
    from towline.cli.models import stores
    from towline.prediction_log.attribution import attribute_request, attribute_time

    settings, ledger = stores()
    time = None
    if not request:
        with contextlib.suppress(click.BadParameter):
            time = TimeType().convert(when, None, None)
    if time is not None:
        result = attribute_time(settings, ledger, name, time)
    else:
        result = attribute_request(settings, ledger, name, when)
    emit(result.model_dump(mode="json"), as_json, lambda: _text(result))


def _text(result: "Attribution") -> str:
    from towline.cli.screen import format_label

    lines = [format_label("version") + f"{result.model}@{result.version}, {_describe_arm(result)}"]
    if result.answer:
        rows = f"{result.answer.rows:,} row{'s' if result.answer.rows > 1 else ''}"
        lines.append(format_label("request") + f"{result.answer.request_id}, {rows}")
    lines.append(format_label("time") + _format_time(result.time))
    if result.since:
        until = f"until {_format_time(result.until)}" if result.until else "and still"
        lines.append(format_label("served") + f"from {_format_time(result.since)} {until}")
    if result.rollout:
        lines.append(format_label("rollout") + result.rollout)
    lines += [
        format_label("promoted") + f"by {result.promoted_by}: {result.reason} (row {result.row} of the ledger)",
        format_label("gate") + result.verdict,
        *(format_label("approved") + f"by {each}" for each in result.approved_by),
        format_label("trained") + f"by {result.trained_by}, commit {result.commit or 'none'}",
        format_label("data") + f"sha256 {result.dataset or 'not recorded'}",
        format_label("config") + f"sha256 {result.config or 'not recorded'}, {result.release}/config.yaml",
        format_label("release") + f"{result.release}, sha256 {result.release_digest or 'not recorded'}",
    ]
    lines += [
        format_label("also") + f"version {answer.version} at {_format_time(answer.time)}: the id was used again"
        for answer in result.other_answers
    ]
    return "\n".join(lines)


def _describe_arm(result: "Attribution") -> str:
    return {
        "champion": "the champion",
        "challenger": "the challenger of a rollout",
        "fixed": "which was not the champion then: a service of a fixed version, or before it loaded the new champion",
    }[result.arm]


def _format_time(time: "dt.datetime | str") -> str:
    return f"{format_time(time, seconds=True)} UTC"
