"""What a row of a table is: the one door by which rows enter training and prediction."""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from towline.config import Frozen, Kind, Task
from towline.data.schema.values import PLAIN, ValueFormat, ValueReader, category_name
from towline.errors import DataError

if TYPE_CHECKING:  # a service that needs the columns alone does not load them
    import numpy as np
    import pandas as pd

Role = Literal["feature", "target", "time", "group", "ignored"]
Label = str | int | bool | float


class Column(Frozen):
    """One column. ``min`` and ``max`` are of numeric columns, ``categories`` of those with at most 100 levels.

    ``format`` says how its values are written where they are text. A column with personal data (``pii``) has no range
    and no categories: no value of it stands in a contract. ``note`` says why an ignored column is left out; ``reason``
    says why a column has its kind, where the type of its values alone does not say it.
    """

    name: str
    kind: Kind
    role: Role
    nullable: bool
    min: float | None
    max: float | None
    categories: tuple[str, ...] | None
    levels: int
    integer: bool = False
    note: str = ""
    reason: str = ""
    derive: tuple[str, ...] = ()
    pii: bool = False
    format: ValueFormat = PLAIN

    @property
    def reader(self) -> ValueReader:
        """Reads values of this column, whatever they came in."""
        return ValueReader(self.kind, self.format)


class Contract(Frozen):
    """The columns of a table, and what is to be predicted; ``salt`` is that of pseudonyms."""

    FILE: ClassVar[str] = "contract.json"

    target: str
    task: Task
    columns: tuple[Column, ...]
    classes: tuple[Label, ...] = ()
    positive: Label | None = None
    salt: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Contract":
        """The contract in a release or a workspace."""
        return cls.model_validate_json((folder / cls.FILE).read_bytes())

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """Columns a model sees: the features, and the time where parts of it are derived."""
        return tuple(column for column in self.columns if column.role == "feature" or column.derive)

    def features(self, rows: "pd.DataFrame") -> "pd.DataFrame":
        """The canonical frame: equal values give an equal frame, whatever they came in.

        Args:
            rows: any frame that holds the feature columns; further columns are left out.

        Returns:
            Columns in the contract's order, index 0…n-1. Numeric and boolean are float64 (NaN for null), category is
            object of str (NaN for null), datetime is datetime64[us] (naive UTC, NaT for null). Personal data are as
            ``pseudonyms`` says.

        Raises:
            DataError: a column is missing or stands twice, or values do not fit its kind.
        """
        import pandas as pd

        from towline.data.schema.columns import convert_column, list_examples
        from towline.data.schema.pseudonyms import pseudonymize_column

        columns = self.feature_columns
        absent = [column.name for column in columns if column.name not in rows.columns]
        if absent:
            near = difflib.get_close_matches(absent[0], [str(name) for name in rows.columns], 1)
            raise DataError(
                f"columns are missing: {', '.join(map(repr, absent[:10]))}",
                where="rows",
                remedy=f"rename {near[0]!r}" if near else "give every feature column; a null is allowed",
            )
        converted, details = {}, []
        for column in columns:
            values = rows[column.name]
            if isinstance(values, pd.DataFrame):
                raise DataError(f"column {column.name!r} stands twice", where="rows", remedy="rename one")
            converted[column.name], bad = convert_column(values, column.kind, column.format)
            if column.pii:
                converted[column.name] = pseudonymize_column(
                    converted[column.name], column.name, column.kind, self.salt
                )
            if len(bad):
                shown = list_examples(values, bad, shown=not column.pii)
                details.append(f"column {column.name!r} ({column.kind}): {shown}")
        if details:
            raise DataError(
                "values do not fit the contract", where="rows", remedy="correct the values", details=tuple(details[:10])
            )
        index = pd.RangeIndex(len(rows))
        series = {  # pandas would turn an array of strings into its own string type
            name: pd.Series(values, index=index, dtype=object) if values.dtype == object else values
            for name, values in converted.items()
        }
        return pd.DataFrame(series, index=index)

    @property
    def target_column(self) -> Column:
        """The column of the target; of a contract of features alone, one that its classes allow."""
        flags = bool(self.classes) and {type(label) for label in self.classes} == {bool}
        kind: Kind = "numeric" if self.task == "regression" else "boolean" if flags else "category"
        plain = Column(
            name=self.target, kind=kind, role="target", nullable=False, min=None, max=None, categories=None, levels=0
        )
        return next((column for column in self.columns if column.name == self.target), plain)

    def class_of(self, texts: "Iterable[str | None]") -> "np.ndarray":
        """Positions (n,) in ``classes`` of the names of classes, as ``level`` spells them; -1 for any other text."""
        import numpy as np

        places = {category_name(label): place for place, label in enumerate(self.classes)}
        return np.array([places.get(text, -1) for text in texts], dtype=np.int64)

    def class_names(self, values: "pd.Series") -> "np.ndarray":
        """What target values are called as classes: objects (n,), str, or NaN for null; unknown classes too."""
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
        """The target, shape (n,): float64 for regression, else an object array of ``classes``.

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
            places = self.class_of(self.class_names(values))
            lookup = np.empty(len(self.classes), dtype=object)
            lookup[:] = self.classes
            bad = np.flatnonzero(places < 0)
            labels = lookup[places] if not len(bad) else lookup[:0]
        if len(bad):
            known = "" if self.task == "regression" else f"; the classes are {', '.join(map(repr, self.classes[:10]))}"
            raise DataError(
                f"target {self.target!r}: {len(bad)} of {len(values)} values are null or no "
                + ("number" if self.task == "regression" else "known class"),
                where=f"column {self.target!r}",
                remedy=f"correct or leave out these rows{known}",
                details=(list_examples(values, bad),),
            )
        return labels
