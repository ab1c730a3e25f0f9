"""towline loadtest: how a service bears load."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline import extras
from towline.cli import emit, json_option
from towline.errors import ConfigError

if TYPE_CHECKING:
    from towline.operations.loadtest.run import Result

_EVERY = 5.0  # seconds between lines where there is no terminal
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


class _Seconds(click.ParamType[float]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if not match or not (seconds := float(match[1]) * _UNITS[match[2]]):
            self.fail(f"{value!r} is no duration; write e.g. 30s or 5m", param, ctx)
        return seconds


@click.command()
@click.argument("url")
@click.option("--users", type=click.IntRange(1, 10_000), help="So many, each waiting for its answer.  [default: 20]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests/s that wait for nobody, instead.")
@click.option("--duration", "seconds", type=_Seconds(), default="30s", show_default=True, help="E.g. 90s, 5m.")
@click.option("--key", envvar="TOWLINE_API_KEY", metavar="KEY", help="API key; better in TOWLINE_API_KEY.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write a report there.")
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
    """Asks a service for predictions, and tells how long they took.

    With --users each waits for its answer before it asks again, so a slow service is asked less. With --rate requests
    arrive like customers: on time, whatever has become of those before, and their latency counts from that moment. For
    what the service uses of its machine, the key needs the scope admin.

    \b
    Examples:
      towline loadtest http://127.0.0.1:8080
      towline loadtest http://127.0.0.1:8080 --rate 200 --duration 2m --report load/
      TOWLINE_API_KEY=... towline loadtest https://models.example --users 50
    """
    extras.require("towline loadtest", "loadtest")
    if users and rate:
        raise ConfigError("--users and --rate are two kinds of load", where="command line", remedy="give one of them")
    from towline.operations.loadtest import report as pages
    from towline.operations.loadtest.run import Load, run
    from towline.operations.loadtest.target import find

    load = Load(seconds, None if rate else users or 20, rate)
    target = find(url, key or None)
    click.echo(f"{target.model} on {target.url}: {load.text()}", err=True)
    with _line() as show:
        result = run(target, load, key or None, show)
    page = pages.write(result, report) if report and len(result.samples) else None
    emit(result.document() | {"report": page and str(page)}, as_json, lambda: _summary(result, page))
    if result.interrupted:
        raise click.exceptions.Exit(130)


@contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    """A line on stderr that is written over, or one now and then where there is no terminal."""
    terminal, last = sys.stderr.isatty(), time.monotonic()

    def show(text: str) -> None:
        nonlocal last
        if terminal:
            click.echo(f"\r\033[K{text}", err=True, nl=False)
        elif time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            click.echo(text, err=True)

    try:
        yield show
    finally:
        if terminal:
            click.echo("\r\033[K", err=True, nl=False)


def _summary(result: "Result", page: Path | None) -> str:
    from towline.cli.screen import table

    told, latency = result.server, result.samples.percentiles()
    lines = [
        f"{len(result.samples):,} requests in {result.seconds:.1f} s, {result.answered_rate:,.1f} answered a second",
        "",
        table(["latency, ms", *latency], [["of all requests", *(f"{value:,.1f}" for value in latency.values())]]),
        "",
    ]
    if kinds := result.samples.kinds():
        lines += [table(["failed", "error"], [[count, kind] for kind, count in kinds.items()]), ""]
    if "unknown" in told:
        lines.append(f"service    not known what it used: {told['unknown']}")
    else:
        memory = f"{told['memory_before_mb']:.0f} MB before, at most {told['memory_most_mb']:.0f} MB"
        lines.append(f"service    {told['cores']:.2f} cores; {memory}")
    lines.append(f"generator  {result.cores:.2f} cores")
    lines += [click.style(f"note       {warning}", fg="yellow") for warning in result.warnings]
    return "\n".join([*lines, *([f"report     {page}"] if page else [])])
