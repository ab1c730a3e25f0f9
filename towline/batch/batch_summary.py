"""The summary of a job: counts, digests, the drift of the batch, and the check of its columns by the contract."""

from collections.abc import Mapping
from typing import Any

from towline.config import Frozen
from towline.data.schema.contract import Contract
from towline.formatting import shorten_list
from towline.html.notebook import render_fields
from towline.monitoring.drift.histograms import ColumnStats
from towline.monitoring.results import DriftResult

MAX_LISTED = 5


class ColumnCheck(Frozen):
    """The values of one input column in the rows that were scored.

    Attributes:
        column: its name.
        nulls: number of nulls; ``nullable`` says whether the training rows had some.
        out_of_range: numbers outside the range of the training rows.
        unseen: categories that the training rows did not have.
    """

    column: str
    nullable: bool
    nulls: int = 0
    out_of_range: int = 0
    unseen: int = 0

    @property
    def as_trained(self) -> bool:
        """Whether no value differs in kind from those of the training rows."""
        return not (self.out_of_range or self.unseen or (self.nulls and not self.nullable))


class BatchResult(Frozen):
    """The result of scoring files.

    Attributes:
        rows: rows of the output.
        rows_in: rows of the input; ``rows`` and ``quarantined`` add up to it.
        quarantined: bad rows, in the file ``quarantine``.
        output: the file or folder.
        columns: the added columns.
        model, version: of the release that scored the rows.
        job: digest of the input, the release and the options.
        input_digest: SHA-256 of the input.
        output_digest: SHA-256 of the output.
        drift: of the batch against the training rows; None if the release has no profile.
        column_checks: of the columns with values that differ from those of the training rows.
        left_out: columns of JSON lines that the output does not have, since the first rows do not have them.
        unchanged: the output was complete, so no row was scored.
    """

    rows: int
    rows_in: int
    quarantined: int = 0
    output: str
    quarantine: str | None = None
    columns: tuple[str, ...]
    model: str
    version: int
    job: str
    input_digest: str
    output_digest: str
    drift: DriftResult | None = None
    column_checks: tuple[ColumnCheck, ...] = ()
    left_out: tuple[str, ...] = ()
    unchanged: bool = False

    @property
    def evidence(self) -> dict[str, Any]:
        """The record for the ledger: digests, counts, and the state of the drift."""
        names = {"rows", "rows_in", "quarantined", "output", "input_digest", "output_digest"}
        return {**self.model_dump(include=names), "drift": self.drift.state if self.drift else None}

    def text(self) -> str:
        """The summary in a few lines."""
        begin = f"{self.rows:,} rows scored by {self.model} version {self.version}: {self.output}"
        lines = [f"unchanged, not scored again: {begin}" if self.unchanged else begin]
        if self.quarantined:
            lines.append(f"{self.quarantined:,} of {self.rows_in:,} rows are bad: {self.quarantine}")
        if self.left_out:
            names = shorten_list(self.left_out, MAX_LISTED)
            lines.append(f"columns left out, because the first rows do not have them: {names}")
        if self.column_checks:
            names = shorten_list([check.column for check in self.column_checks], MAX_LISTED)
            lines.append(f"values that the training rows did not have: in {names}")
        if self.drift:
            lines.append(f"drift: {self.drift.state}, {self.drift.reason}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        shown = self.model_dump(exclude={"drift", "column_checks"})
        drift = f"{self.drift.state}, {self.drift.reason}" if self.drift else ""
        return render_fields({**shown, "columns": ", ".join(self.columns), "drift": drift})


class ShardCounts(Frozen):
    """The counts of a list of scored shards.

    Attributes:
        shards: number of shards.
        rows: rows of the input.
        quarantined: bad rows among them.
    """

    shards: int
    rows: int
    quarantined: int


def check_columns(contract: Contract, columns: Mapping[str, ColumnStats]) -> tuple[ColumnCheck, ...]:
    """The columns with values that the training rows did not have, by the statistics of all columns."""
    checks = []
    for column in contract.input_columns:
        if stats := columns.get(column.name):
            check = ColumnCheck(
                column=column.name,
                nullable=column.nullable,
                nulls=stats.nulls,
                out_of_range=stats.histogram.out_of_range if stats.histogram else 0,
                unseen=stats.categories.unseen if stats.categories else 0,
            )
            if not check.as_trained:
                checks.append(check)
    return tuple(checks)
