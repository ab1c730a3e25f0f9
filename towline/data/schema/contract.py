"""The contract describes the columns of a table and the target that is predicted from them.

Rows of training and of prediction are converted by the same method, ``Contract.features``.
"""

import math
from collections.abc import Collection, Container, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from towline.config import Frozen, Kind, Task, suggest
from towline.data.schema.lookups import Join, Lookup
from towline.data.schema.values import PLAIN, ValueFormat, ValueReader, category_name
from towline.errors import DataError

if TYPE_CHECKING:  # a service that needs the columns alone does not load them
    import numpy as np
    import pandas as pd

    from towline.expressions.compilation import Expression
    from towline.expressions.operations import Type

Role = Literal["feature", "target", "time", "group", "ignored"]
Label = str | int | bool | float


class Column(Frozen):
    """One column.

    Attributes:
        nullable: whether the training table has nulls.
        min, max: of a numeric column.
        categories: of a category with at most 100 levels.
        levels: number of distinct values.
        integer: whether all numbers are whole.
        note: why the column is ignored.
        reason: why it has its kind, if the type of its values alone does not say it; of the target, why the task.
        derive: the features of a datetime: calendar parts, and ``age`` (days before the row's time) or ``days``
            (since 1970: of the time column, and of all if the table has no time column).
        time_correlation: of a clock column, a number that follows the time of the row, such as a sequence number or a
            year: its rank correlation with the time.
        pii: whether it holds personal data; then the contract has no range and no categories of it.
        format: how its values are written if they are text.
    """

    name: str
    kind: Kind
    role: Role
    nullable: bool = False
    min: float | None = None
    max: float | None = None
    categories: tuple[str, ...] | None = None
    levels: int = 0
    integer: bool = False
    note: str = ""
    reason: str = ""
    derive: tuple[str, ...] = ()
    time_correlation: float | None = None
    pii: bool = False
    format: ValueFormat = PLAIN

    @property
    def calendar(self) -> tuple[str, ...]:
        """The calendar parts in ``derive``."""
        return tuple(part for part in self.derive if part not in ("age", "days"))

    def without_trend(self) -> "Column":
        """The column; if it is the time, without its days since 1970."""
        return self.model_copy(update={"derive": self.calendar}) if self.role == "time" else self

    @property
    def reader(self) -> ValueReader:
        """A reader of this column's values."""
        return ValueReader(self.kind, self.format)


class DerivedColumn(Column):
    """A feature that is computed from other columns of its row; requests and tables do not hold it.

    Attributes:
        expression: its definition, docs/features.md; of a joined column a description.
        inputs: the columns of a request from which it is computed.
        lookup: of a joined column the name of its lookup.
        joined: the joined columns that the expression reads.
    """

    expression: str
    inputs: tuple[str, ...]
    lookup: str = ""
    joined: tuple[str, ...] = ()


def column_types(columns: Iterable[Column]) -> "dict[str, tuple[Type, int]]":
    """For each column its type in expressions, and its position."""
    types: dict[Kind, Type] = {"numeric": "number", "boolean": "boolean", "datetime": "datetime"}
    return {column.name: (types.get(column.kind, "text"), place) for place, column in enumerate(columns)}


class Contract(Frozen):
    """The columns of a table, and the target that is predicted from them.

    Attributes:
        columns: of the table.
        derived: the joined columns of the lookups, then the features of the config.
        lookups: the frozen tables from which columns are joined.
        salt: of the pseudonyms.
    """

    FILE: ClassVar[str] = "contract.json"

    target: str
    task: Task
    columns: tuple[Column, ...]
    derived: tuple[DerivedColumn, ...] = ()
    lookups: tuple[Lookup, ...] = ()
    classes: tuple[Label, ...] = ()
    positive: Label | None = None
    salt: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """The contract in a release or a workspace."""
        return cls.model_validate_json((folder / cls.FILE).read_bytes())

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """The columns that a model uses: features, the time if calendar parts are derived from it, derived columns."""
        of_table = (column for column in self.columns if column.role == "feature" or column.derive)
        return (*of_table, *(column for column in self.derived if column.role == "feature"))

    @property
    def derived_features(self) -> tuple[DerivedColumn, ...]:
        """The derived columns that a model uses, and the joined columns that its features read."""
        used = [column for column in self.derived if column.role == "feature"]
        joined = {name for column in used for name in column.joined}
        return tuple(column for column in self.derived if column.role == "feature" or column.name in joined)

    @property
    def input_columns(self) -> tuple[Column, ...]:
        """The columns that a row must have: those that a model uses or from which features are computed."""
        inputs = {name for column in self.derived_features for name in column.inputs}
        return tuple(
            column for column in self.columns if column.role == "feature" or column.derive or column.name in inputs
        )

    @property
    def canonical_columns(self) -> tuple[Column, ...]:
        """The columns of a canonical row or frame, in their order: the inputs, then the derived features."""
        return (*self.input_columns, *self.derived_features)

    @property
    def age_columns(self) -> tuple[Column, ...]:
        """The columns, but for the time column, whose age or days a model uses."""
        features = (column for column in self.feature_columns if column.role != "time")
        return tuple(column for column in features if {"age", "days"} & set(column.derive))

    @property
    def trend_column(self) -> str | None:
        """The time column, if a model uses its days since 1970: the level of the target may change with time."""
        times = (column for column in self.columns if column.role == "time")
        return next((column.name for column in times if "days" in column.derive), None)

    @property
    def clock_columns(self) -> dict[str, float]:
        """The numbers that follow the time of the row, with their rank correlation with it."""
        return {column.name: column.time_correlation for column in self.columns if column.time_correlation is not None}

    @property
    def age_reference(self) -> str | None:
        """The time column, up to which ages are counted; None: dates are counted from 1970."""
        has_ages = any("age" in column.derive for column in self.feature_columns)
        return next((column.name for column in self.columns if has_ages and column.role == "time"), None)

    def compile_joins(self, names: Container[str] | None = None) -> tuple[Join, ...]:
        """The joins of the lookups, which read canonical rows or columns.

        Args:
            names: of the joined columns that are computed; None: all that a model uses.
        """
        positions = {column.name: place for place, column in enumerate(self.canonical_columns)}
        joins = []
        for lookup in self.lookups:
            joined = [column.name for column in self.derived_features if column.lookup == lookup.name]
            if columns := {name: positions[name] for name in joined if names is None or name in names}:
                joins.append(Join(lookup, columns, positions))
        return tuple(joins)

    def compile_features(self) -> "dict[str, Expression]":
        """The compiled features by their names, which read canonical rows or columns with the joined columns.

        Raises:
            ExpressionError: an expression does not fit the columns.
        """
        features = [column for column in self.derived_features if not column.lookup]
        if not features:  # the language is not imported
            return {}
        from towline.expressions.compilation import Expression

        readable = {column.name for column in self.columns} | {c.name for c in self.derived if c.lookup}
        types = {name: type_ for name, type_ in column_types(self.canonical_columns).items() if name in readable}
        return {column.name: Expression(column.expression, types) for column in features}

    def check_columns(self, names: Collection[str], where: str = "rows") -> None:
        """Refuses a table without an input column.

        Args:
            names: the columns of the table.
            where: the table, for the error.

        Raises:
            DataError: a column is missing.
        """
        missing = [column.name for column in self.input_columns if column.name not in names]
        if missing:
            what = f"columns are missing: {', '.join(map(repr, missing[:10]))}"
            remedy = f"give every feature column (null is allowed); {suggest(missing[0], names)}"
            raise DataError(what, where=where, remedy=remedy)

    def features(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        """The canonical frame: equal values give an equal frame, whatever their types are.

        Args:
            rows: any frame with the input columns; other columns are ignored.

        Returns:
            ``canonical_columns``, index 0…n-1. Numeric and boolean are float64 (NaN for null), category and
            text are object of str (NaN for null), datetime is datetime64[us] (naive UTC, NaT for null). Personal data
            are replaced by pseudonyms.

        Raises:
            DataError: a column is missing or occurs twice, or values do not fit its kind.
        """
        import pandas as pd

        from towline.data.schema.columns import convert_column, list_examples
        from towline.data.schema.pseudonyms import pseudonymize_column

        columns = self.input_columns
        self.check_columns(tuple(map(str, rows.columns)))
        converted, details = {}, []
        for column in columns:
            values = rows[column.name]
            if isinstance(values, pd.DataFrame):
                raise DataError(f"column {column.name!r} occurs twice", where="rows", remedy="rename one")
            converted[column.name], bad = convert_column(values, column.kind, column.format)
            if len(bad):
                examples = list_examples(values, bad, hidden=column.pii)
                details.append(f"column {column.name!r} ({column.kind}): {examples}")
        if details:
            what, lines = "values do not fit the contract", tuple(details[:10])
            raise DataError(what, where="rows", remedy="correct the values", details=lines)
        converted |= self.derive(list(converted.values()), len(rows))
        for column in self.canonical_columns:
            if column.pii:
                real = converted[column.name]
                converted[column.name] = pseudonymize_column(real, column.name, column.kind, self.salt)
        index = pd.RangeIndex(len(rows))
        series = {  # pandas would convert an array of strings to its own string type
            name: pd.Series(values, index=index, dtype=object) if values.dtype == object else values
            for name, values in converted.items()
        }
        return pd.DataFrame(series, index=index)

    def derive(self, inputs: "list[np.ndarray]", count: int) -> "dict[str, np.ndarray]":
        """The derived features of ``count`` rows by name, from the canonical input columns."""
        joined: dict[str, np.ndarray] = {}
        for join in self.compile_joins():
            joined |= join.join_columns(inputs)
        features = self.compile_features()
        if not features:
            return joined
        from towline.expressions.parts import Columns

        columns = Columns([*inputs, *joined.values()], count)
        return joined | {name: feature.evaluate_columns(columns) for name, feature in features.items()}

    @property
    def target_column(self) -> Column:
        """The column of the target; if the contract has features only, a column with the kind of its classes."""
        is_boolean = bool(self.classes) and {type(label) for label in self.classes} == {bool}
        kind: Kind = "numeric" if self.task == "regression" else "boolean" if is_boolean else "category"
        default = Column(name=self.target, kind=kind, role="target")
        return next((column for column in self.columns if column.name == self.target), default)

    def class_of(self, texts: "Iterable[str | None]") -> "np.ndarray":
        """(n,) positions in ``classes`` of the names that ``category_name`` gives; -1 for any other text."""
        import numpy as np

        positions = {category_name(label): position for position, label in enumerate(self.classes)}
        return np.array([positions.get(text, -1) for text in texts], dtype=np.int64)

    def class_codes(self, values: "pd.Series") -> "np.ndarray":
        """(n,) whole numbers from 0 that tell the classes of target values apart; -1 for null."""
        import numpy as np
        import pandas as pd

        codes, distinct = pd.factorize(values)
        names = self.class_names(pd.Series(distinct, dtype=values.dtype))
        classes: np.ndarray = np.append(pd.factorize(pd.Series(names, dtype=object))[0], -1)
        return classes[codes]

    def class_names(self, values: "pd.Series") -> "np.ndarray":
        """(n,) the class names of target values: str, also of unknown classes, or NaN for null."""
        import numpy as np

        from towline.data.schema.columns import convert_column

        column = self.target_column
        if column.kind == "boolean":
            flags, _ = convert_column(values, "boolean", column.format)
            names = np.empty(len(flags), dtype=object)
            names[:] = [math.nan if flag != flag else category_name(bool(flag)) for flag in flags]  # noqa: PLR0124 - NaN
            return names
        return convert_column(values, "category", column.format)[0]

    def labels(self, rows: "pd.DataFrame") -> "np.ndarray":
        """The target (n,): float64 for regression, else objects from ``classes``.

        Raises:
            DataError: the target is missing, null, not a number (regression) or not one of the classes.
        """
        import numpy as np

        from towline.data.schema.columns import convert_column, list_examples

        if self.target not in rows.columns:
            raise DataError(f"the target {self.target!r} is missing", where="rows", remedy="give the target column")
        values = rows[self.target]
        if self.task == "regression":
            labels, _ = convert_column(values, "numeric", self.target_column.format)
            bad = np.flatnonzero(np.isnan(labels))
        else:
            positions = self.class_of(self.class_names(values))
            classes = np.empty(len(self.classes), dtype=object)
            classes[:] = self.classes
            bad = np.flatnonzero(positions < 0)
            labels = classes[positions] if not len(bad) else classes[:0]
        if len(bad):
            kind, known = "number", ""
            if self.task != "regression":
                kind, known = "known class", f"; the classes are {', '.join(map(repr, self.classes[:10]))}"
            raise DataError(
                f"target {self.target!r}: {len(bad)} of {len(values)} values are null or no {kind}",
                where=f"column {self.target!r}",
                remedy=f"correct or leave out these rows{known}",
                details=(list_examples(values, bad),),
            )
        return labels
