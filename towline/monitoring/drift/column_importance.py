"""How much of a model's importance its columns carry, by the permutation importance on the holdout."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from towline.data.schema.contract import Contract, DerivedColumn


class ColumnImportance(NamedTuple):
    """The importance of the features, and the columns of a request from which each of them is computed.

    Attributes:
        features: permutation importance of each feature that has a positive one.
        inputs: of each feature.
    """

    features: Mapping[str, float]
    inputs: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls, release: Path, contract: Contract) -> "ColumnImportance":
        """The importance in a release; without features if the release has none."""
        try:
            evaluation = json.loads((release / "metrics.json").read_bytes())["evaluation"]
            measured = {str(name): float(mean) for name, mean, _ in evaluation["importance"]}
        except (OSError, ValueError, KeyError, TypeError):  # an older or a damaged release: the share is unknown
            measured = {}
        inputs = {
            column.name: frozenset(column.inputs if isinstance(column, DerivedColumn) else (column.name,))
            for column in contract.feature_columns
        }
        positive = {name: mean for name, mean in measured.items() if mean > 0 and name in inputs}
        return cls(positive, inputs)

    def share(self, columns: Collection[str]) -> float | None:
        """The share of the importance of all features that is computed from these columns; None if it is unknown."""
        total = sum(self.features.values())
        if not total:
            return None
        return sum(value for name, value in self.features.items() if not self.inputs[name].isdisjoint(columns)) / total
