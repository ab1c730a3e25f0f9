"""The Python API of accountability: which version was responsible, whether the records are whole, who approved.

``towline/__init__.py`` exports these functions beside those of ``api.py``.
"""

import contextlib
from datetime import datetime
from typing import TYPE_CHECKING

from towline.config import Settings
from towline.registry.ledger import open_ledger

if TYPE_CHECKING:
    from towline.prediction_log.attribution import Attribution


def served_at(name: str, when: "datetime | str") -> "Attribution":
    """Names the version that served at a time, or that answered a request, with its data, config and approval.

    Args:
        name: of the model.
        when: a time, or its text in ISO 8601 (UTC if it has no zone), or the id of a request in the prediction log.

    Raises:
        ConfigError: there is no such model, it had no champion then, or the log does not hold the request.
        DataError: a part of the prediction log cannot be read.
        ReleaseError: the ledger was changed or lost.

    Example:
        >>> towline.served_at("bike-demand", "2026-03-01T08:00").version  # doctest: +SKIP
        3
    """
    from towline.prediction_log import attribution

    settings = Settings.from_environment()
    if isinstance(when, str):
        with contextlib.suppress(ValueError):
            when = datetime.fromisoformat(when.strip())
    if isinstance(when, datetime):
        return attribution.attribute_time(settings, open_ledger(settings), name, when)
    return attribution.attribute_request(settings, open_ledger(settings), name, when)
