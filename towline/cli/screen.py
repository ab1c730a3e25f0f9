"""Output for people: the progress of a command, step by step, and its result."""

import contextlib
import io
import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline import files
from towline.formatting import format_number, format_time, shorten_lines

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.data.schema.contract import Column, Contract
    from towline.manifest import Manifest
    from towline.preflight import PreflightResult
    from towline.promotion.outcome import Outcome
    from towline.registry.ledger import Entry
    from towline.training.evaluation.predictions import Interval

INTERVAL_S = 5.0  # between lines of progress without a terminal
MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red"), "inconclusive": ("?", "yellow")}


@contextmanager
def progress(log: Path) -> Iterator[None]:
    """Shows steps on stderr, with a live line on a terminal; other log records, and what code prints, go to ``log``.

    So stdout holds only the result.
    """
    everything = LogFile(log)
    everything.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, steps = logging.getLogger(), logging.getLogger("towline.steps")
    logging.captureWarnings(True)
    logging.raiseExceptions, logging.lastResort = False, None  # errors of logging are not shown
    root.addHandler(everything)
    steps.setLevel(logging.INFO)
    handler = _LiveProgress() if sys.stderr.isatty() else _Lines()
    steps.addHandler(handler)
    try:
        with contextlib.redirect_stdout(_PrintToLog(everything)):
            yield
    finally:
        if isinstance(handler, _LiveProgress):
            handler.bar.stop()
        steps.removeHandler(handler)
        root.removeHandler(everything)
        everything.close()


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yields a function that shows a line of progress on stderr: overwritten on a terminal, else every five seconds."""
    terminal, last = sys.stderr.isatty(), time.monotonic()

    def show(text: str) -> None:
        nonlocal last
        if terminal:
            click.echo(f"\r\033[K{text}", err=True, nl=False)
        elif time.monotonic() - last >= INTERVAL_S:
            last = time.monotonic()
            click.echo(text, err=True)

    try:
        yield show
    finally:
        if terminal:
            click.echo("\r\033[K", err=True, nl=False)


class LogFile(logging.FileHandler):
    """A log file that is created with its first line, so that a command without log lines leaves no file.

    The class is public because Prefect ignores private handlers and would then log to the screen too.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)

    def _open(self) -> io.TextIOWrapper:
        path = Path(self.baseFilename)
        with files.disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return super()._open()

    def write(self, text: str) -> None:
        """Writes text between the records."""
        with self.lock or contextlib.nullcontext():
            self.stream = self.stream or self._open()
            self.stream.write(text)
            self.flush()


class _PrintToLog(io.TextIOBase):
    """Writes to the log what ``print`` writes to stdout."""

    encoding = "utf-8"

    def __init__(self, log: LogFile) -> None:
        self._log = log

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(text)
        return len(text)


def _line(record: logging.LogRecord) -> str:
    failed = record.__dict__["status"] == "failed"
    seconds = f"{record.__dict__.get('seconds', 0):6.1f} s" if not failed else " " * 8
    mark = click.style("✗", fg="red") if failed else click.style("✓", fg="green")
    return f"{mark} {record.__dict__['step']:<28}{seconds}  {record.__dict__.get('note', '')}".rstrip()


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.__dict__.get("status") in ("done", "failed"):
            with contextlib.suppress(OSError):  # the run continues if the reader of its output has ended
                click.echo(_line(record), err=True)


class _LiveProgress(logging.Handler):
    """The running step with a spinner and its time, and the completed steps above it.

    Closing the handler does not stop it: Prefect closes all handlers when it configures logging.
    """

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description:<28}"), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.bar.start()
        self.task = self.bar.add_task("starting")

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        status = record.__dict__.get("status")
        if status == "begin":
            self.bar.reset(self.task, description=record.__dict__["step"])
        elif status in ("done", "failed"):
            self.bar.console.print(Text.from_ansi(_line(record)), soft_wrap=True)
            self.bar.reset(self.task, description="…")


def table(header: Sequence[str], rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """A table with columns as wide as their content; numbers are right-aligned."""
    cells = [[str(cell) if cell is not None else "–" for cell in row] for row in rows]
    widths = [max(_width(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    right = [all(isinstance(cell, int | float | None) for cell in column) for column in zip(*rows, strict=True)]
    right = right or [False] * len(header)

    def line(row: Sequence[str]) -> str:
        return (
            indent
            + "  ".join(
                f"{' ' * (width - _width(cell))}{cell}" if number else f"{cell}{' ' * (width - _width(cell))}"
                for cell, width, number in zip(row, widths, right, strict=True)
            ).rstrip()
        )

    return "\n".join([click.style(line(header), bold=True), *(line(row) for row in cells)])


def _width(cell: str) -> int:
    return len(click.unstyle(cell))


def summary(outcome: "Outcome", settings: "Settings", page: str = "") -> str:
    """The result of a training run on one screen; ``page`` is the page of a run on another machine."""
    if outcome.repeated:
        return _repeated(outcome, page)
    lines = ["", *_data_lines(outcome), "", _candidate_table(outcome), "", _metric_table(outcome.metrics), ""]
    for check in outcome.verdict.checks if outcome.verdict else ():
        mark, color = MARKS[check.outcome]
        lines.append(_wrap_with_indent(f"  {click.style(mark, fg=color)} ", f"{check.name}: {check.detail}"))
    verdict = click.style(outcome.event, fg="red" if outcome.event == "refused" else "green")
    replaced = f", instead of version {outcome.previous}" if outcome.event == "promoted" and outcome.previous else ""
    lines += [
        "",
        _wrap_with_indent(format_label("verdict") + f"{verdict}: ", outcome.reason, indent=11),
        format_label("version") + f"{outcome.model}@{outcome.version}{replaced}",
        *([_wrap_with_indent(format_label("approval"), outcome.approval)] if outcome.approval else []),
        *([_wrap_with_indent(format_label("note"), outcome.note)] if outcome.note else []),
    ]
    if page:
        return "\n".join([*lines, format_label("run") + page])
    release = settings.layout.release(outcome.release)
    lines += [format_label("release") + str(release), format_label("report") + str(release / "card.html")]
    return "\n".join(lines) + "\n" + next_steps(_next_steps(outcome))


def _repeated(outcome: "Outcome", page: str) -> str:
    passed = f"awaits approval: {outcome.approval}" if outcome.approval else "has passed the gate"
    states = {"promoted": "serves or has served", "passed": passed}
    state = states.get(outcome.event, f"was refused: {outcome.reason}")
    version = f"version {outcome.version} of {outcome.model}"
    text = f"nothing to do: this run has completed before, as {version}, which {state}\n"
    see = ("see the run", page) if page else ("see the version", f"towline show {outcome.model}@{outcome.version}")
    repeat = ("run it again anyway", "towline run CONFIG --force")
    return text + next_steps([see, *(_after_refusal(outcome) if outcome.event == "refused" else [repeat])])


def _data_lines(outcome: "Outcome") -> list[str]:
    data, split, checked = outcome.dataset, outcome.split, outcome.checked
    period = f", {data['start'][:10]} … {data['end'][:10]}" if data["start"] and data["end"] else ""
    cut = f" from {format_time(split['cut'])}" if split["cut"] else ""
    return [
        _wrap_with_indent(format_label("data"), f"{data['source']}: {data['rows']:,} rows{period}"),
        format_label("checked") + f"{checked['rules']} rules, {checked['warned']} warned",
        *(
            _wrap_with_indent(f"{'':11}{click.style('!', fg='yellow')} ", note)
            for note in _first_notes(checked["warnings"])
        ),
        *(_wrap_with_indent(f"{'':11}· ", note) for note in _first_notes(checked["notes"])),
        _wrap_with_indent(
            format_label("split"),
            f"{split['train']:,} rows to train, {split['holdout']:,} held out by {split['by']}{cut}",
        ),
    ]


def _candidate_table(outcome: "Outcome") -> str:
    rows = [
        [
            ("→ " if candidate["name"] == outcome.chosen else "  ") + candidate["name"],
            candidate["failed"] or f"{candidate['mean']:.4g} ± {candidate['sd']:.2g}",
            round(candidate["seconds"], 1),
            candidate["trials"] or None,
        ]
        for candidate in outcome.candidates
    ]
    text = table(["candidate", f"{outcome.primary}, cross-validated", "seconds", "trials"], rows, "  ")
    return "\n".join([text, *(_wrap_with_indent("  · ", note) for note in outcome.training_notes)])


def _metric_table(metrics: "Mapping[str, Interval]") -> str:
    rows = [
        [
            name,
            format_number(metric.value),
            f"{format_number(metric.low)} … {format_number(metric.high)}" if metric.low is not None else None,
        ]
        for name, metric in metrics.items()
    ]
    return table(["holdout", "value", "95 % interval"], rows, "  ")


def _next_steps(outcome: "Outcome") -> list[tuple[str, str]]:
    name = outcome.model
    steps = [("see runs and versions", "towline ui"), ("see this version", f"towline show {name}@{outcome.version}")]
    if outcome.event == "refused":
        return [*steps, *_after_refusal(outcome)]
    if outcome.approval:
        approve = ("approve it", f"towline approve {name}@{outcome.version}")
        return [*steps, approve, ("list the approvals", f"towline approvals {name}")]
    if outcome.event == "passed":
        return [*steps, ("follow the rollout", f"towline rollout status {name}")]
    steps += [
        ("predict in Python", f'from towline import load; load("{name}").predict(rows)'),
        ("predict over HTTP", f"towline serve {name}"),
        ("score a file", f"towline score IN OUT --model {name}"),
    ]
    return [*steps, ("roll back", f"towline rollback {name}")] if outcome.previous else steps


def _after_refusal(outcome: "Outcome") -> list[tuple[str, str]]:
    change = ("change the settings of the failed checks", f"{', '.join(outcome.settings)}, then towline run CONFIG")
    return [*([change] if outcome.settings else []), ("evaluate it again", "towline run CONFIG --force")]


def validation_text(result: "PreflightResult") -> str:
    """The result of `towline validate`: task, columns and rules."""
    validation, contract = result.validation, result.contract
    yellow = click.style("!", fg="yellow")
    lines = [_wrap_with_indent(f"  {yellow} ", rule.finding) for rule in validation.rules if not rule.passed]
    in_table = tuple(f"{column.name}: left out" for column in contract.columns)
    lines += [_wrap_with_indent("  · ", note) for note in validation.notes if not note.startswith(in_table)]
    return "\n".join(
        [
            format_label("task") + contract.task + _classes(contract),
            "",
            table(["column", "kind", "role", "nulls", "levels", "holds"], list(map(_column, contract.columns)), "  "),
            "",
            format_label("rules") + f"{len(validation.rules)} passed, {validation.warned} with a warning",
            *lines,
            format_label("report") + str(result.page),
        ]
    )


def _classes(contract: "Contract") -> str:
    labels = [f"{label} (positive)" if label == contract.positive else str(label) for label in contract.classes[:8]]
    return f": {', '.join(labels)}{', …' if len(contract.classes) > 8 else ''}" if labels else ""


def _column(column: "Column") -> list[object]:
    if column.note:
        content = f"left out: {column.note}"
    elif column.kind == "numeric" and column.min is not None:
        content = f"{column.min:.6g} to {column.max:.6g} {column.format.number_unit}".rstrip()
        content += ", follows the time" if column.time_correlation else ""
    elif column.derive:
        content = f"used as {', '.join(column.derive)}"
    else:
        content = ", ".join((column.categories or ())[:6]) + (", …" if column.categories and column.levels > 6 else "")
    if column.reason and not column.note:
        content = f"{content} ({column.reason})".lstrip()
    return [column.name, column.kind, column.role, "yes" if column.nullable else "no", column.levels, content]


def version_page(manifest: "Manifest", history: "Sequence[Entry]", directory: Path) -> str:
    """The text of `towline show`."""
    data = manifest.dataset
    parameters = ", ".join(f"{key}={value}" for key, value in manifest.params.items()) or "defaults"
    origin = f"made {manifest.created} by towline {manifest.towline}"
    lines = [
        format_label("version") + f"{manifest.name}@{manifest.version}, {origin}",
        format_label("model") + f"{manifest.estimator} ({parameters})",
        format_label("data") + f"{data['source']}: {data['rows']:,} rows, sha256 {data['digest'][:12]}…",
        format_label("commit") + _commit(manifest, history),
        format_label("run") + f"{manifest.run_key[:16]}, the tag towline.run_key in MLflow",
        "",
        _metric_table(manifest.metrics),
        "",
        *(f"  {'  '.join(time_and_event(row))} by {row.actor}: {row.reason}" for row in history),
        "",
        format_label("release") + f"{directory}: {len(manifest.files)} files, all digests match",
    ]
    return "\n".join(lines)


def _commit(manifest: "Manifest", history: "Sequence[Entry]") -> str:
    """The commit, and the code and config of the version that it does not hold."""
    missing = next((row.evidence["git_missing"] for row in history if row.evidence.get("git_missing")), "")
    return (manifest.commit or "none: not in git") + (f", without {missing}" if missing else "")


def time_and_event(row: "Entry") -> tuple[str, str]:
    """The time and the event of a row, for people."""
    return format_time(row.time, seconds=True), row.event.replace("_", " ")


def format_label(word: str) -> str:
    """The bold first word of a line."""
    return click.style(f"{word:<10} ", bold=True)


def _wrap_with_indent(head: str, text: str, indent: int | None = None) -> str:
    """Wraps text to the terminal's width, with a hanging indent; does not wrap without a terminal."""
    head_width = len(click.unstyle(head))
    indent = head_width if indent is None else indent
    width = shutil.get_terminal_size(fallback=(0, 0)).columns
    if not width:
        return head + text
    width = max(width, indent + 30)
    joined = text.replace(" %", "\N{NO-BREAK SPACE}%")
    wrapped = textwrap.fill(
        joined, width, initial_indent="-" * head_width, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return head + wrapped[head_width:].replace("\N{NO-BREAK SPACE}", " ")


def _first_notes(notes: Sequence[str]) -> list[str]:
    return shorten_lines(notes, 6, " in the report")


def next_steps(steps: Sequence[tuple[str, str]]) -> str:
    """The commands that may follow, as (purpose, command)."""
    width = max(24, *(len(purpose) + 2 for purpose, _ in steps))
    lines = [f"  {purpose:<{width}}{command}" for purpose, command in steps]
    return "\n".join(["", click.style("next", bold=True), *lines])
