"""What `towline validate` does: everything of a run that can be known before a model is trained."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from towline.config import PipelineConfig, Settings
from towline.data.schema.contract import Contract
from towline.data.sources import load
from towline.data.validation.suite import Validation, validate
from towline.data.workspace import open_workspace
from towline.errors import TransientError
from towline.registry.ledger import open_ledger
from towline.steps import step
from towline.training import cross_validation
from towline.training.config_checks import check_config


class Checked(NamedTuple):
    """A table that passed: its rules, its columns, and where the report is."""

    validation: Validation
    contract: Contract
    page: Path


def check(settings: Settings, config: PipelineConfig, as_of: datetime | None) -> Checked:
    """Checks the config, then its table, then the two together.

    Raises:
        ConfigError: the config names what cannot be used.
        DataError: the table cannot be read.
        DataValidationError: it breaks its contract, or that of the champion.
        FitError: no column is left to learn from.
    """
    with step("check config"):
        check_config(config)
    with step("load") as told:
        dataset = load(config.data, settings.project, settings.store, as_of, config.privacy.pii)
        work = open_workspace(config, dataset, settings.project, settings.store, as_of)
        told.note = f"{dataset.rows:,} rows × {len(dataset.columns)} columns"
    try:
        with step("validate") as told:
            previous = champion_contract(settings, config.name)
            validation = validate(work, config, previous, datetime.now(UTC).replace(tzinfo=None))
            cross_validation.check(config, work.contract())
            told.note = f"{len(validation.rules)} rules, {validation.warned} warned"
    finally:
        with contextlib.suppress(TransientError), work.held():  # a run of the same config may be at it, and ends alike
            pass
    return Checked(validation, work.contract(), work.file(validation.docs))


def champion_contract(settings: Settings, model: str) -> Contract | None:
    """The contract of the version that serves, if one serves and its release is there."""
    champion = open_ledger(settings).champion(model)
    release = settings.layout.release(champion.release) if champion else None
    return Contract.read(release) if release and (release / Contract.FILE).exists() else None
