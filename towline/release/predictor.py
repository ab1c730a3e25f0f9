"""A release that answers: rows in whatever container in, predictions in their order out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline.errors import DataError
from towline.release.manifest import Manifest, verify

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from towline.data.contract import Contract
    from towline.training.metrics import Predictions

#: one row as a dict, a list of such rows, or a pandas, polars or Arrow table
Rows = Any


@dataclass(frozen=True)
class Model:
    """A verified release, loaded.

    Rows may hold more columns than the model needs; they are left out. Every answer goes through the release's
    contract, so that the same values give the same prediction whatever they came in.
    """

    metadata: Manifest
    directory: Path
    contract: "Contract"
    estimator: Any

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def version(self) -> int:
        return self.metadata.version

    def predict(self, rows: Rows) -> "np.ndarray":
        """Predicted values (float64) or class labels (objects of the labels' own type), one for each row.

        Raises:
            DataError: a field is missing or cannot be read; names the field and the rows.
        """
        labels = self.predictions(self.features(rows)).labels
        return labels.astype(object) if self.contract.classes else labels  # numpy's own flags and numbers → Python's

    def predict_proba(self, rows: Rows) -> "np.ndarray":
        """Probabilities (rows, classes) in the order of ``metadata.classes``.

        Raises:
            DataError: as ``predict``, or the model is a regression.
        """
        probabilities = self.predictions(self.features(rows)).probabilities
        if probabilities is None:
            raise DataError(
                f"{self.name} version {self.version} gives no probabilities",
                where=str(self.directory),
                remedy="ask for predict()",
            )
        return probabilities

    def features(self, rows: Rows) -> "pd.DataFrame":
        """What the estimator is given for these rows."""
        return self.contract.features(_table(rows, self._fields))

    def predictions(self, features: "pd.DataFrame") -> "Predictions":
        """Labels and, for a classification, probabilities; ``features`` are the contract's."""
        import numpy as np

        from towline.training.metrics import Predictions, predict

        if len(features) == 0:
            classes = self.contract.classes
            labels = np.array([], dtype=object if classes else np.float64)
            return Predictions(labels=labels, probabilities=np.empty((0, len(classes))) if classes else None)
        return predict(self.estimator, features, self.contract)

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.contract.feature_columns)


def open_release(directory: Path, trusted: Sequence[str] = ()) -> Model:
    """Verifies a release and loads it.

    Args:
        directory: the release.
        trusted: packages of your own whose estimators may be in it; nothing else than the fixed list is built.

    Raises:
        ReleaseError: it is not what its manifest says, or holds a type that is not on the list.
    """
    manifest = verify(directory)

    from towline.data.contract import Contract
    from towline.training import stored

    return Model(
        metadata=manifest,
        directory=directory,
        contract=Contract.model_validate_json((directory / "contract.json").read_bytes()),
        estimator=stored.load(directory / "model.skops", tuple(trusted)),
    )


def _table(rows: Rows, fields: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        return rows
    if isinstance(rows, Mapping):
        rows = [rows]
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        for position, row in enumerate(rows, 1):
            if missing := [field for field in fields if field not in row]:
                raise DataError(
                    f"row {position} has no field {missing[0]!r}",
                    where=missing[0],
                    remedy="give every field; null where its value is not known",
                    details=tuple(f"missing: {field}" for field in missing[:10]),
                )
        return pd.DataFrame(
            [[row[field] for field in fields] for row in rows], columns=list(fields), dtype=object
        ).infer_objects()
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
        import pyarrow as pa

        table: pd.DataFrame = pa.table(rows).to_pandas()
        return table
    raise DataError(
        f"rows of type {type(rows).__name__} cannot be read",
        where="rows",
        remedy="give a dict, a list of dicts, or a pandas, polars or Arrow table",
    )
