"""What people see: progress by step while it goes on, a summary at the end."""

import contextlib
import io
import logging
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from towline import files

if TYPE_CHECKING:
    from towline.config import Settings
    from towline.data.schema.contract import Column, Contract
    from towline.manifest import Manifest
    from towline.preflight import PreflightResult
    from towline.promotion.outcome import Outcome
    from towline.registry.ledger import Entry

MARKS = {"pass": ("✓", "green"), "fail": ("✗", "red"), "inconclusive": ("?", "yellow")}


@contextmanager
def progress(log: Path) -> Iterator[None]:
    """Shows steps on stderr, a live line on a terminal and plain lines elsewhere; everything else goes to ``log``.

    So does what the user's own code prints: stdout holds the result and nothing else.
    """
    everything = LogFile(log)
    everything.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, steps = logging.getLogger(), logging.getLogger("towline.steps")
    logging.captureWarnings(True)
    logging.raiseExceptions, logging.lastResort = False, None  # what no log takes is not the user's concern
    root.addHandler(everything)
    steps.setLevel(logging.INFO)
    shown = _Live() if sys.stderr.isatty() else _Lines()
    steps.addHandler(shown)
    try:
        with contextlib.redirect_stdout(_Printed(everything)):
            yield
    finally:
        if isinstance(shown, _Live):
            shown.bar.stop()
        steps.removeHandler(shown)
        root.removeHandler(everything)
        everything.close()


class LogFile(logging.FileHandler):
    """A log that begins with its first line: a command that has nothing to say leaves no file and no folder.

    Prefect passes over handlers whose class is private, and would then log to the screen as well.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)

    def _open(self) -> io.TextIOWrapper:
        path = Path(self.baseFilename)
        with files.disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return super()._open()

    def write(self, text: str) -> None:
        """Text as it is, between the records."""
        with self.lock or contextlib.nullcontext():
            self.stream = self.stream or self._open()
            self.stream.write(text)
            self.flush()


class _Printed(io.TextIOBase):
    """What ``print`` writes to in place of stdout."""

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
            with contextlib.suppress(OSError):  # a run does not end because its reader did
                click.echo(_line(record), err=True)


class _Live(logging.Handler):
    """The step under way with a spinner and its elapsed time, the finished ones above it.

    It goes on when the handler is closed: Prefect closes every handler there is when it configures logging.
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
    """Columns as wide as their content; numbers to the right."""
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
    """The end of a run on one screen; ``page`` is that of a run on another machine, where its files are."""
    release = settings.layout.release(outcome.release)
    name = f"{outcome.model}@{outcome.version}"
    if outcome.repeated:
        told = "serves or has served" if outcome.event == "promoted" else f"was refused: {outcome.reason}"
        done = f"nothing to do: version {outcome.version} of {outcome.model} came of this very run and {told}\n"
        see = ("see the run", page) if page else ("see it", f"towline show {name}")
        again = _again(outcome) if outcome.event == "refused" else [("run all the same", "towline run CONFIG --force")]
        return done + _next([see, *again])
    data, split = outcome.dataset, outcome.split
    span = f", {data['start'][:10]} … {data['end'][:10]}" if data["start"] and data["end"] else ""
    cut = f" from {split['cut'][:16].replace('T', ' ')}" if split["cut"] else ""
    lines = [
        "",
        _hanging(head("data"), f"{data['source']}: {data['rows']:,} rows{span}"),
        head("checked") + f"{outcome.checked['rules']} rules, {outcome.checked['warned']} warned",
        *(_hanging(f"{'':11}{click.style('!', fg='yellow')} ", note) for note in _few(outcome.checked["warnings"])),
        *(_hanging(f"{'':11}· ", note) for note in _few(outcome.checked["notes"])),
        _hanging(
            head("split"),
            f"{split['train']:,} rows to train, {split['holdout']:,} held out by {split['by']}{cut}",
        ),
        "",
        table(
            ["candidate", f"{outcome.primary}, cross-validated", "seconds", "trials"],
            [
                [
                    ("→ " if c["name"] == outcome.chosen else "  ") + c["name"],
                    c["failed"] or f"{c['mean']:.4g} ± {c['sd']:.2g}",
                    round(c["seconds"], 1),
                    c["trials"] or None,
                ]
                for c in outcome.candidates
            ],
            "  ",
        ),
        "",
        table(
            ["holdout", "value", "95 % interval"],
            [
                [metric, _number(m.value), f"{_number(m.low)} … {_number(m.high)}" if m.low is not None else None]
                for metric, m in outcome.metrics.items()
            ],
            "  ",
        ),
        "",
    ]
    if outcome.verdict:
        for check in outcome.verdict.checks:
            mark, colour = MARKS[check.outcome]
            lines.append(_hanging(f"  {click.style(mark, fg=colour)} ", f"{check.name}: {check.detail}"))
    verdict = click.style("promoted", fg="green") if outcome.event == "promoted" else click.style("refused", fg="red")
    instead = f", instead of version {outcome.previous}" if outcome.event == "promoted" and outcome.previous else ""
    lines += [
        "",
        _hanging(head("verdict") + f"{verdict}: ", outcome.reason, indent=11),
        head("version") + f"{name}{instead}",
        *([_hanging(head("note"), outcome.note)] if outcome.note else []),
    ]
    if page:
        return "\n".join([*lines, head("run") + page])
    lines += [
        head("release") + str(release),
        head("report") + str(release / "card.html"),
    ]
    steps = [("see runs and versions", "towline ui"), ("see this version", f"towline show {name}")]
    if outcome.event == "promoted":
        steps.append(("predict in Python", f'from towline import load; load("{outcome.model}").predict(rows)'))
        steps.append(("predict over HTTP", f"towline serve {outcome.model}"))
        steps.append(("score a file", f"towline score IN OUT --model {outcome.model}"))
    else:
        steps += _again(outcome)
    if outcome.event == "promoted" and outcome.previous:
        steps.append(("go back", f"towline rollback {outcome.model}"))
    return "\n".join(lines) + "\n" + _next(steps)


def _again(outcome: "Outcome") -> list[tuple[str, str]]:
    """What can be done about a refusal."""
    change = (
        [("change what refused it", f"{', '.join(outcome.settings)}, then towline run CONFIG")]
        if outcome.settings
        else []
    )
    return [*change, ("judge the same again", "towline run CONFIG --force")]


def checked(done: "PreflightResult") -> str:
    """What `towline validate` prints of a table that passed: its task, its columns, its rules."""
    validation, contract = done.validation, done.contract
    yellow = click.style("!", fg="yellow")
    lines = [_hanging(f"  {yellow} ", rule.finding) for rule in validation.rules if not rule.passed]
    in_table = tuple(f"{column.name}: left out" for column in contract.columns)
    lines += [_hanging("  · ", note) for note in validation.notes if not note.startswith(in_table)]
    return "\n".join(
        [
            head("task") + contract.task + _classes(contract),
            "",
            table(["column", "kind", "role", "nulls", "levels", "holds"], list(map(_column, contract.columns)), "  "),
            "",
            head("rules") + f"{len(validation.rules)} passed, {validation.warned} with a warning",
            *lines,
            head("report") + str(done.page),
        ]
    )


def _classes(contract: "Contract") -> str:
    shown = [f"{label} (positive)" if label == contract.positive else str(label) for label in contract.classes[:8]]
    return f": {', '.join(shown)}{', …' if len(contract.classes) > 8 else ''}" if shown else ""


def _column(column: "Column") -> list[object]:
    if column.note:
        holds = f"left out: {column.note}"
    elif column.kind == "numeric" and column.min is not None:
        holds = f"{column.min:.6g} to {column.max:.6g}"
    elif column.derive:
        holds = f"used as {', '.join(column.derive)}"
    else:
        holds = ", ".join((column.categories or ())[:6]) + (", …" if column.categories and column.levels > 6 else "")
    return [column.name, column.kind, column.role, "yes" if column.nullable else "no", column.levels, holds]


def version_page(manifest: "Manifest", past: "Sequence[Entry]", directory: Path) -> str:
    """What `towline show` tells of a version."""
    data = manifest.dataset
    parameters = ", ".join(f"{key}={value}" for key, value in manifest.params.items()) or "defaults"
    lines = [
        head("version") + f"{manifest.name}@{manifest.version}, made {manifest.created} by towline {manifest.towline}",
        head("model") + f"{manifest.estimator} ({parameters})",
        head("data") + f"{data['source']}: {data['rows']:,} rows, sha256 {data['digest'][:12]}…",
        head("commit") + _commit(manifest, past),
        head("run") + f"{manifest.run_key[:16]}, the tag towline.run_key in MLflow",
        "",
        table(
            ["holdout", "value", "95 % interval"],
            [
                [metric, _number(m.value), f"{_number(m.low)} … {_number(m.high)}" if m.low is not None else None]
                for metric, m in manifest.metrics.items()
            ],
            "  ",
        ),
        "",
        *(f"  {'  '.join(moment(row))} by {row.actor}: {row.reason}" for row in past),
        "",
        head("release") + f"{directory}: {len(manifest.files)} files, all as their digests say",
    ]
    return "\n".join(lines)


def _commit(manifest: "Manifest", past: "Sequence[Entry]") -> str:
    """The commit, and what it does not hold of the code and the config that made the version."""
    missing = next((row.evidence["git_missing"] for row in past if row.evidence.get("git_missing")), "")
    return (manifest.commit or "none: not in git") + (f", without {missing}" if missing else "")


def moment(row: "Entry") -> tuple[str, str]:
    """When and what, as people read it."""
    return row.time[:19].replace("T", " "), row.event.replace("_", " ")


def head(word: str) -> str:
    """What a line is about."""
    return click.style(f"{word:<10} ", bold=True)


def _hanging(head: str, text: str, indent: int | None = None) -> str:
    """Text wrapped between words to the terminal's width, its further lines below its first; whole where none is."""
    begun = len(click.unstyle(head))
    indent = begun if indent is None else indent
    width = shutil.get_terminal_size(fallback=(0, 0)).columns
    if not width:
        return head + text
    room = max(width, indent + 30)
    joined = text.replace(" %", "\N{NO-BREAK SPACE}%")
    wrapped = textwrap.fill(
        joined, room, initial_indent="-" * begun, subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return head + wrapped[begun:].replace("\N{NO-BREAK SPACE}", " ")


def _few(notes: Sequence[str], most: int = 6) -> list[str]:
    return [*notes[:most], *([f"and {len(notes) - most} more in the report"] if len(notes) > most else [])]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _next(steps: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["", click.style("next", bold=True), *(f"  {what:<24}{command}" for what, command in steps)])
