"""The fields of both versions of a rollout, which requests must have with ``rollout.fields: both``."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from towline.data.schema.contract import Column, Contract
from towline.data.schema.rows import MAX_LISTED, InputAnomaly, Row, RowReader
from towline.data.schema.values import TEXT_KINDS
from towline.errors import InputValidationError

if TYPE_CHECKING:
    from towline.inference.predictor import Model


class FieldsOfBoth:
    """Reads requests that must have the fields of two versions.

    Args:
        champion, challenger: the versions.

    Attributes:
        description: the champion with a contract that has the fields of both. Protocols and documents use it; it
            scores no rows.
    """

    def __init__(self, champion: "Model", challenger: "Model") -> None:
        self.champion, self.challenger = champion, challenger
        contract = merge_contracts(champion.contract, challenger.contract)
        self.description = replace(champion, contract=contract, reader=RowReader(contract))

    def read(self, rows: Sequence[Mapping[str, Any]], anomalies: list[InputAnomaly]) -> list[Row]:
        """The rows as the champion reads them; its anomalies are appended.

        Raises:
            InputValidationError: one of the versions cannot read a field; names the faults of both.
        """
        canonical, errors = list[Row](), list[InputValidationError]()
        for model, listed in ((self.champion, anomalies), (self.challenger, None)):
            try:
                read = model.reader.read(rows, listed)
            except InputValidationError as error:
                errors.append(error)
                continue
            canonical = canonical or read
        if errors:
            faults = list(dict.fromkeys(fault for error in errors for fault in error.faults))
            raise InputValidationError(faults[:MAX_LISTED], max(len(faults), *(error.count for error in errors)))
        return canonical


def needs_other_fields(champion: Contract, challenger: Contract) -> bool:
    """Whether the challenger needs a field that the champion does not need or reads as another kind."""
    kinds = {column.name: column.kind for column in champion.input_columns}
    return any(kinds.get(column.name) != column.kind for column in challenger.input_columns)


def merge_contracts(champion: Contract, challenger: Contract) -> Contract:
    """The champion's contract with the input columns of both; of two kinds, a column has that with fewer values."""
    columns = {column.name: column for column in champion.columns}
    inputs = {column.name for column in champion.input_columns}
    for column in challenger.input_columns:
        if column.name not in inputs:
            columns.pop(column.name, None)  # after the champion's fields, whose order is unchanged
            columns[column.name] = column.model_copy(update={"role": "feature"})
        elif columns[column.name].kind in TEXT_KINDS:
            columns[column.name] = _with_values_of(columns[column.name], column)
    return champion.model_copy(update={"columns": tuple(columns.values())})


def _with_values_of(column: Column, other: Column) -> Column:
    """A column whose values are those of another one, in its own role."""
    return other.model_copy(update={"role": column.role, "derive": column.derive})
