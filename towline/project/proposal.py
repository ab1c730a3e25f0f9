"""A proposal is a config for a table, with a reason for each decision."""

from dataclasses import dataclass, field
from typing import Any

from towline.config import Kind, SqlSource


@dataclass
class Proposal:
    """The content of a config for a table. Mappings are from a column (or text) to the reason.

    Attributes:
        name, source, target: as the config has them.
        task: of the contract.
        rows: of the whole table; ``is_complete``: whether all rows were examined.
        rules: ``validation.columns``; expectations: ``validation.expectations``.
        assumptions: (key, value, reason) for people.
    """

    name: str
    source: str | SqlSource
    target: str
    rows: int = 0
    columns: int = 0
    is_complete: bool = True
    task: str = ""
    metric: str = ""
    metric_reason: str = "decides between the candidates"
    time: str | None = None
    time_reason: str = ""
    rows_per_day: float | None = None
    by_time: bool = False
    split_reason: str = ""
    folds: int = 5
    group: str | None = None
    separator: str = ","
    decimal: str = "."
    thousands: str = ""
    positive: str | None = None
    date_formats: dict[str, str] = field(default_factory=dict)
    other_date_formats: dict[str, str] = field(default_factory=dict)  # that read all values too
    na_values: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, tuple[Kind, str]] = field(default_factory=dict)  # of columns, with the reason
    ignore_case: dict[str, str] = field(default_factory=dict)
    coerced: dict[str, str] = field(default_factory=dict)
    approximate: dict[str, str] = field(default_factory=dict)  # columns, with an example
    summary_rows: int = 0
    unlabelled: str = ""
    unlabelled_rows: int = 0
    max_unlabelled: float | None = None
    drop: dict[str, str] = field(default_factory=dict)
    allow_leaks: dict[str, str] = field(default_factory=dict)
    pii: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    min_rows: int = 20
    rules: dict[str, dict[str, Any]] = field(default_factory=dict)
    expectations: list[dict[str, Any]] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)

    def data_section(self) -> dict[str, Any]:
        """The part ``data`` of the config."""
        section: dict[str, Any] = {
            "source": self.source.model_dump() if isinstance(self.source, SqlSource) else self.source,
            "target": self.target, "time": self.time, "group": self.group, "drop": list(self.drop),
            "separator": self.separator, "decimal": self.decimal, "thousands": self.thousands,
            "date_format": dict(self.date_formats) or None, "positive": self.positive,
            "max_unlabelled": self.max_unlabelled, "columns": {name: kind for name, (kind, _) in self.kinds.items()},
            "ignore_case": list(self.ignore_case), "na_values": list(self.na_values),
        }  # fmt: skip
        return {key: value for key, value in section.items() if value not in (None, [], {}, "")}

    @property
    def leaks(self) -> dict[str, str]:
        """Leaks, with the evidence."""
        return {name: reason for name, reason in self.drop.items() if reason.startswith("leak")} | self.allow_leaks

    @property
    def approximate_reasons(self) -> dict[str, str]:
        """How columns of bounds, ranges and marked numbers are read."""
        return {
            name: f"texts such as {text!r}: a bound is its number, a range its middle"
            for name, text in self.approximate.items()
        }

    @property
    def assumptions(self) -> list[tuple[str, str, str]]:
        """(key, value, reason) of each decision, for people."""
        positive = f", positive: {self.positive}" if self.positive else ""
        lines = [("task", self.task + positive, f"from the values of {self.target}")]
        lines.append(("data.time", self.time or "none", self.time_reason))
        if self.group:
            lines.append(("data.group", self.group, "several rows have the same value"))
        lines.append(
            ("split", "by time" if self.by_time else "by group" if self.group else "random", self.split_reason)
        )
        lines += [("data.drop", name, reason) for name, reason in self.drop.items()]
        if self.unlabelled:
            lines.append(("data.max_unlabelled", f"{self.max_unlabelled or 'default'}", self.unlabelled))
        lines += [("data.columns", f"{name}: {kind}", reason) for name, (kind, reason) in self.kinds.items()]
        lines += [("data.na_values", marker, reason) for marker, reason in self.na_values.items()]
        lines += [("data.ignore_case", name, reason) for name, reason in self.ignore_case.items()]
        if self.summary_rows:
            reason = "at the end of the table: totals or means of the others"
            lines.append(("left out", f"{self.summary_rows} row{'s' * (self.summary_rows != 1)}", reason))
        lines += [("read as null", name, reason) for name, reason in self.coerced.items()]
        lines += [("read as number", name, reason) for name, reason in self.approximate_reasons.items()]
        for name, date_format in self.date_formats.items():
            other = self.other_date_formats.get(name)
            reason = f"check it: all values may also be {other}" if other else "it reads all values"
            lines.append(("data.date_format", f"{name}: {date_format}", reason))
        if self.decimal != "." or self.thousands:
            lines.append(("data.decimal", f"{self.decimal!r}, thousands {self.thousands!r}", "most numbers have it"))
        lines += [("validation.allow_leaks", name, reason) for name, reason in self.allow_leaks.items()]
        lines += [("privacy.pii", name, reason) for name, reason in self.pii.items()]
        lines += [("not used", name, reason) for name, reason in self.ignored.items()]
        return lines
