"""A model is a verified release that is loaded for predictions.

It takes rows as dicts or as a pandas, polars or Arrow table, and returns predictions in the order of the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline import package_origin
from towline.data.schema.contract import Contract
from towline.data.schema.rows import Row, RowReader
from towline.data.schema.values import LARGEST
from towline.errors import DataError, ReleaseError
from towline.extras import BOOSTING_LIBRARIES
from towline.inference.compiled import codec
from towline.inference.compiled.codec import PLAN_FILE
from towline.inference.compiled.fusion import FusedForest, fuse_features
from towline.inference.compiled.scorer import CompiledScorer
from towline.inference.scorer import RowPredictions, Scorer, SklearnScorer
from towline.manifest import Manifest, verify_release
from towline.training.evaluation.predictions import Predictions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from towline.data.coded_column import CanonicalColumn

#: one row as a dict, a list of such rows, or a pandas, polars or Arrow table
Rows = Any


@dataclass(frozen=True)
class Model:
    """A verified release, loaded.

    Columns that the model does not need are ignored. All rows are read through the contract of the release, so the
    same values give the same prediction in every container.
    """

    metadata: Manifest
    directory: Path
    contract: Contract
    reader: RowReader
    scorer: Scorer

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def version(self) -> int:
        return self.metadata.version

    @property
    def compiled(self) -> bool:
        """Whether the compiled scorer is used; otherwise scikit-learn is, about a thousand times slower for one row."""
        return self.scorer.compiled

    def predict(self, rows: Rows) -> "np.ndarray":
        """Predicted values (float64) or class labels (objects of the labels' own type), one for each row.

        Raises:
            DataError: a field is missing or cannot be read; the error names the field and the rows.
        """
        import numpy as np

        if (listed := _as_dicts(rows)) is not None:
            predictions = self.predict_rows(listed).predictions
            labels = np.empty(len(predictions), dtype=object if self.contract.classes else np.float64)
            labels[:] = predictions
            return labels
        labels = self.predict_frame(self.to_features(rows)).labels
        return labels.astype(object) if self.contract.classes else labels  # NumPy scalars → Python objects

    def predict_proba(self, rows: Rows) -> "np.ndarray":
        """Probabilities (rows, classes) in the order of ``metadata.classes``.

        Raises:
            DataError: as ``predict``, or the model is a regression.
        """
        import numpy as np

        if (listed := _as_dicts(rows)) is not None:
            shares = self.predict_rows(listed).probabilities
            width = len(self.contract.classes)
            probabilities = None if shares is None else np.array(shares).reshape(len(shares), width)
        else:
            probabilities = self.predict_frame(self.to_features(rows)).probabilities
        if probabilities is None:
            raise DataError(
                f"{self.name} version {self.version} is a regression and has no probabilities",
                where=str(self.directory),
                remedy="call predict() instead",
            )
        return probabilities

    def predict_rows(self, rows: Sequence[Mapping[str, Any]]) -> RowPredictions:
        """Predictions and probabilities as lists of Python objects.

        Raises:
            InputValidationError: a field is missing or does not fit its kind; the error names each row and field.
        """
        return self.predict_canonical(self.reader.read(rows))

    def predict_canonical(self, canonical: Sequence[Row]) -> RowPredictions:
        """Predictions and probabilities of canonical rows, as ``reader.read`` returns them."""
        if not canonical:
            return RowPredictions([], [] if self.contract.classes else None)
        return self.scorer.predict_rows(canonical)

    def to_features(self, rows: Rows) -> "pd.DataFrame":
        """The canonical features of a table of rows.

        Raises:
            DataError: as ``contract.features``; also if a number is larger than a training table may hold.
        """
        features = self.contract.features(_to_frame(rows))
        for column in self.contract.input_columns:
            if column.kind == "numeric" and (features[column.name].abs() > LARGEST).any():
                raise DataError(
                    f"column {column.name!r} holds numbers beyond {LARGEST:g}",
                    where="rows",
                    remedy="correct the values",
                )
        return features

    def predict_frame(self, features: "pd.DataFrame") -> Predictions:
        """Labels and, for a classification, probabilities of canonical features."""
        return self.scorer.predict_frame(features) if len(features) else self._no_predictions()

    def predict_columns(self, columns: "Sequence[CanonicalColumn]", rows: int) -> Predictions:
        """The same for the canonical columns of a number of rows."""
        return self.scorer.predict_columns(columns) if rows else self._no_predictions()

    def _no_predictions(self) -> Predictions:
        import numpy as np

        classes = self.contract.classes
        labels = np.array([], dtype=object if classes else np.float64)
        return Predictions(labels=labels, probabilities=np.empty((0, len(classes))) if classes else None)


def open_release(directory: Path, trusted: Sequence[str] = (), digest: str = "") -> Model:
    """Verifies a release and loads it.

    Args:
        directory: the release.
        trusted: your packages whose types the release may contain, besides the fixed list of types.
        digest: digest of its manifest, as recorded in the ledger. If it is given, the types that the manifest lists
            are trusted too: the config named them when the model was trained.

    Raises:
        ReleaseError: the release differs from its manifest or from the recorded digest, or holds a type that is not
            trusted.
    """
    manifest = verify_release(directory, digest)
    contract = Contract.read(directory)
    scorer: Scorer
    if PLAN_FILE in manifest.files:
        plan = codec.read_plan(directory / PLAN_FILE)
        used, plan = plan.used_columns, fuse_features(plan, contract)
        reader = RowReader(contract, used, plan.scorer.features if isinstance(plan.scorer, FusedForest) else ())
        scorer = CompiledScorer(plan, contract, reader)
    else:
        reader = RowReader(contract)
        from towline.training import model_io

        _check_library_version(manifest, directory)
        recorded = manifest.trusted if digest else ()
        scorer = SklearnScorer(model_io.load_model(directory / "model.skops", trusted, recorded), contract, reader)
    return Model(metadata=manifest, directory=directory, contract=contract, reader=reader, scorer=scorer)


def _check_library_version(manifest: Manifest, directory: Path) -> None:
    """Refuses another version of a boosting library than at training; a missing one is an error of ``load_model``."""
    for package in BOOSTING_LIBRARIES:
        for name, version in package_origin.installed_versions((package,)).items():
            trained = next((manifest.libraries[key] for key in (name, package) if key in manifest.libraries), version)
            if trained != version:
                what = f"the model was trained with {package} {trained}, {version} is installed"
                raise ReleaseError(what, where=str(directory), remedy=f"pip install '{name}=={trained}'")


def _as_dicts(rows: Rows) -> Sequence[Mapping[str, Any]] | None:
    """The rows as a sequence of dicts; None if they are a table."""
    if isinstance(rows, Mapping):
        return [rows]
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        return rows
    return None


def _to_frame(rows: Rows) -> "pd.DataFrame":
    import pandas as pd

    if isinstance(rows, pd.DataFrame):
        return rows
    if (listed := _as_dicts(rows)) is not None:
        return pd.DataFrame(list(listed), dtype=object)
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
        import pyarrow as pa

        from towline.data.schema.columns import to_frame

        return to_frame(pa.table(rows))
    raise DataError(
        f"rows of type {type(rows).__name__} cannot be read",
        where="rows",
        remedy="give a dict, a list of dicts, or a pandas, polars or Arrow table",
    )
