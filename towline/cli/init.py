"""towline init: a project and a config from a table."""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline.cli import emit, json_option

if TYPE_CHECKING:
    from towline.project.initialization import InitResult, TableReader

MAX_LINES = 30  # of assumptions on the screen


@click.command()
@click.argument("data", required=False)
@click.option("--target", metavar="COLUMN", help="The column to predict.")
@click.option("--time", metavar="COLUMN", help="The column with the time of each row; none: no such column.")
@click.option("--query", metavar="SQL", help="The query, if DATA is the URL of a database.")
@click.option("--name", metavar="NAME", help="Name of the pipeline and the model; default: that of the file.")
@click.option("-y", "--yes", is_flag=True, help="Ask no questions; use the defaults.")
@click.option("--force", is_flag=True, help="Replace a config of the same name.")
@click.option("--update", is_flag=True, help="Update the flows and tasks of a project after an upgrade of towline.")
@json_option
def init(
    data: str | None,
    target: str | None,
    time: str | None,
    query: str | None,
    name: str | None,
    yes: bool,
    force: bool,
    update: bool,
    as_json: bool,
) -> None:
    """Creates a project with a config for a table.

    DATA is a CSV, Parquet or JSON file, a folder of them, a URL such as s3://bucket/data.csv, or the URL of a database.
    In a folder without a project, all files of a project are written, else only the config. The config is ready to run;
    its comments say why each choice was made.

    \b
    Examples:
      towline init data.csv --target churned
      towline init postgresql://reader:${DB_PASSWORD}@db/shop --query 'SELECT * FROM orders ORDER BY id' --target total
      towline init --update
    """
    from towline.config import Settings
    from towline.errors import ConfigError

    settings = Settings.from_environment()
    if update:
        _update(settings.project, as_json)
        return
    if data is None:
        raise ConfigError("no table was named", where="command line", remedy="give a file: towline init data.csv")
    from towline.project.initialization import TableReader, pipeline_name, write_config

    if name is not None and pipeline_name(name) != name:
        raise ConfigError(
            f"not a name of a pipeline: {name!r}", where="--name", remedy=f"write e.g. --name {pipeline_name(name)}"
        )
    reader = TableReader(data, query, settings)
    try:
        target = _choose_target(reader, target, ask=not yes)
        proposal = reader.propose(target, name, "" if time == "none" else time)
        if not yes and time is None and sys.stdin.isatty() and proposal.time:
            question = f"Is {proposal.time!r} the time at which each row happened?"
            if not click.confirm(question, default=True, err=True):
                proposal = reader.propose(target, name, "")
        result = write_config(proposal, settings, force=force)
    finally:
        reader.close()
    document = {
        "config": str(result.config),
        "project": str(result.project),
        "written": list(result.written),
        "existing": list(result.existing),
        "assumptions": [dict(zip(("key", "value", "reason"), line, strict=True)) for line in proposal.assumptions],
    }
    emit(document, as_json, lambda: _render_result(result))


def _choose_target(reader: "TableReader", target: str | None, *, ask: bool) -> str:
    from towline.errors import ConfigError

    columns = reader.columns
    if target is not None:
        return reader.find_column(target, "--target")
    default = reader.guess_target()
    if not ask:
        return default
    listed = ", ".join(columns[:40]) + (", …" if len(columns) > 40 else "")
    if not sys.stdin.isatty():
        raise ConfigError(
            "the column to predict is not named",
            where="command line",
            remedy=f"give --target COLUMN, or --yes for --target {default}",
            details=(f"the columns are: {listed}",),
        )
    click.echo(f"The columns are: {listed}", err=True)
    return str(click.prompt("Which column is predicted?", default=default, type=click.Choice(columns), err=True,
                            show_choices=False))  # fmt: skip


def _update(project: Path, as_json: bool) -> None:
    from towline.project.template import update_project

    replaced, edited = update_project(project)
    lines = [f"updated  {path}" for path in replaced]
    lines += [f"edited   {path}: compare it with {path}.new" for path in edited]
    document = {"updated": replaced, "edited": edited}
    emit(document, as_json, lambda: "\n".join(lines or ["flows and tasks are those of the installed towline"]))


def _render_result(result: "InitResult") -> str:
    from towline.cli import screen

    proposal = result.proposal
    sampled = "" if proposal.is_complete else ", from a sample"
    lines = [screen.format_label("table") + f"{proposal.rows:,} rows × {proposal.columns} columns{sampled}"]
    rows = [
        [key, *(textwrap.shorten(text, width, placeholder=" …") for text, width in ((value, 40), (reason, 100)))]
        for key, value, reason in proposal.assumptions
    ]
    lines += ["", screen.table(["key", "value", "reason"], rows[:MAX_LINES], "  ")]
    if len(rows) > MAX_LINES:
        lines.append(f"  and {len(rows) - MAX_LINES} more: see the comments in the config")
    rules = len(proposal.rules) + len(proposal.expectations)
    text = f"{rules} columns and expectations are checked; a violation is a warning"
    lines += ["", screen.format_label("rules") + text]
    if result.written:
        lines.append(screen.format_label("project") + f"{len(result.written)} files in {result.project}")
    if result.existing:
        lines.append(screen.format_label("unchanged") + ", ".join(result.existing))
    config = _relative(result.config)
    lines.append(screen.format_label("config") + config)
    steps = [("check it", f"towline validate {config}"), ("train a model", f"towline run {config}")]
    return "\n".join(lines) + "\n" + screen.next_steps(steps)


def _relative(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
