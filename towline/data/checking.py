"""Load and validate, and no more: what `towline validate` does."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from towline.config import PipelineConfig, Settings
from towline.data.sources import load
from towline.data.validation import Validation, validate
from towline.data.workspace import open_workspace
from towline.errors import Unavailable
from towline.steps import step


def check(settings: Settings, config: PipelineConfig, as_of: datetime | None) -> tuple[Validation, Path]:
    """Validates the config's table; returns what was found and where its report is.

    Raises:
        DataError: the table cannot be read.
        DataRefused: it breaks its contract.
    """
    with step("load") as told:
        dataset = load(config.data, settings.project, settings.store, as_of, config.privacy.pii)
        work = open_workspace(config, dataset, settings.project, settings.store, as_of)
        told.note = f"{dataset.rows:,} rows × {len(dataset.columns)} columns"
    try:
        with step("validate") as told:
            validation = validate(work, config, None, datetime.now(UTC).replace(tzinfo=None))
            told.note = f"{len(validation.rules)} rules, {validation.warned} warned"
    finally:
        with contextlib.suppress(Unavailable), work.held():  # a run of the same config may be at it, and ends alike
            pass
    return validation, work.file(validation.docs)
