"""towline loadtest: latency and errors of a service under load."""

import json
import re
from pathlib import Path
from typing import Any

import click

from towline import extras
from towline.cli import emit, json_option
from towline.cli.arguments import NumberRange
from towline.cli.screen import progress_line
from towline.errors import ConfigError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def _parse_duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match or not (seconds := float(match[1]) * _UNITS[match[2]]):
        raise click.BadParameter(f"{text!r} is not a duration; write e.g. 30s or 5m")
    return seconds


@click.command(short_help="Measures the latency of a service under load.")
@click.argument("url")
@click.option("--users", type=click.IntRange(1, 10_000), help="Users, each waiting for its answer.  [default: 20]")
@click.option("--rate", type=NumberRange(0, min_open=True), help="Requests/s at a fixed rate, instead of users.")
@click.option(
    "--duration", "seconds", type=_parse_duration, metavar="DURATION", default="30s", show_default=True,
    help="E.g. 90s, 5m.",
)  # fmt: skip
@click.option("--key", envvar="TOWLINE_API_KEY", metavar="KEY", help="API key; better in TOWLINE_API_KEY.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Folder of the report.")
@json_option
def loadtest(
    url: str,
    users: int | None,
    rate: float | None,
    seconds: float,
    key: str | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Sends prediction requests to a service and reports their latency.

    With --users each user waits for its answer before it sends the next request, so a slow service gets fewer requests.
    With --rate requests are sent on time whether or not earlier ones were answered, and latency counts from the time a
    request was due. The service logs the predictions, and monitoring counts them, unless it was started with --no-log.
    To measure CPU and memory of the service the key needs the scope admin. --report writes Locust's HTML report and CSV
    files, and the result as JSON.

    \b
    Examples:
      towline loadtest http://127.0.0.1:8080
      towline loadtest http://127.0.0.1:8080 --rate 200 --duration 2m --report load/
      TOWLINE_API_KEY=... towline loadtest https://models.example --users 50
    """
    extras.require("towline loadtest", "loadtest")
    if users and rate:
        raise ConfigError("--users and --rate exclude each other", where="command line", remedy="give one of them")
    from towline import files
    from towline.operations.loadtest.generator import run_load_test  # first: Locust replaces functions of ssl
    from towline.operations.loadtest.load_result import Load
    from towline.operations.loadtest.service_under_test import query_service

    load = Load(seconds, None if rate else users or 20, rate)
    service = query_service(url, key or None)
    if report:
        with files.disk(report):
            report.mkdir(parents=True, exist_ok=True)
    click.echo(f"{service.model} on {service.url}: {load.text()}", err=True)
    with progress_line() as show:
        result = run_load_test(service, load, key or None, show, report)
    page = report / "loadtest.html" if report else None
    document = result.document() | {"report": page and str(page)}
    if report:
        files.write(report / "loadtest.json", json.dumps(document, indent=1) + "\n")
    emit(document, as_json, lambda: _summary(document))
    if result.interrupted:
        raise click.exceptions.Exit(130)


def _summary(result: dict[str, Any]) -> str:
    from towline.cli.screen import table

    latency, server = result["latency_ms"], result["server"]
    lines = [
        f"{result['requests']:,} requests in {result['seconds']:.1f} s, {result['answered_per_second']:,.1f} ok/s",
        "",
        table(["latency, ms", *latency], [["all requests", *(f"{value:,.1f}" for value in latency.values())]]),
        "",
    ]
    if result["errors"]:
        lines += [table(["failed", "error"], [[count, error] for error, count in result["errors"].items()]), ""]
    if "unknown" in server:
        lines.append(f"service    CPU and memory unknown: {server['unknown']}")
    else:
        memory = f"{server['memory_before_mb']:.0f} MB before, at most {server['memory_max_mb']:.0f} MB"
        lines.append(f"service    {server['cores']:.2f} cores; {memory}")
    lines.append(f"generator  {result['generator_cores']:.2f} cores")
    lines += [click.style(f"note       {warning}", fg="yellow") for warning in result["warnings"]]
    return "\n".join([*lines, *([f"report     {result['report']}"] if result["report"] else [])])
