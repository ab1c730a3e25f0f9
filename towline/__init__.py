"""towline pulls a tabular model from data to production and keeps it there."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towline.inference.predictor import Model

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(release: str | Path, *, trusted: Sequence[str] = ()) -> "Model":
    """Opens a model: ``load("bike-demand").predict(rows)``.

    Args:
        release: ``bike-demand`` (the champion), ``bike-demand@3`` (that version), or a directory of a release.
        trusted: packages of your own whose estimators may be in a release that is given by its directory; of one
            in the ledger the types are recorded.

    Raises:
        ReleaseError: there is no such release, or it is not what its manifest says.
    """
    from towline.inference.predictor import open_release
    from towline.registry.resolution import find

    found = find(release)
    return open_release(found.directory, trusted, found.digest)
