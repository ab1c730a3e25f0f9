"""Preflight checks, `towline validate`: the config and its table are checked without training."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from towline.config import PipelineConfig, Settings
from towline.data.schema.contract import Contract
from towline.data.source.sources import load_dataset
from towline.data.validation.suite import Validation, validate_table
from towline.data.workspace import open_workspace
from towline.errors import TransientError
from towline.html.notebook import render_table
from towline.registry.ledger import open_ledger
from towline.steps import step
from towline.training.behaviour.behaviour_suite import check_files, check_with_contract
from towline.training.model_selection import cross_validation
from towline.training.model_selection.config_checks import check_config


class PreflightResult(NamedTuple):
    """The result for an accepted table: its rules, its contract, and the path of the report."""

    validation: Validation
    contract: Contract
    page: Path

    def _repr_html_(self) -> str:
        rules = [("pass" if rule.passed else "fail", rule.finding) for rule in self.validation.rules]
        columns = [(column.name, column.kind, column.role, column.levels) for column in self.contract.columns]
        return render_table(("column", "kind", "role", "levels"), columns) + render_table(("", "rule"), rules)


def run_preflight(settings: Settings, config: PipelineConfig, as_of: datetime | None) -> PreflightResult:
    """Checks the config, its table, and the candidates with the columns of the table.

    Raises:
        ConfigError: the config is invalid.
        DataError: the table cannot be read.
        DataValidationError: it breaks its contract, or that of the champion.
        FitError: there is no feature column.
    """
    with step("check config"):
        check_config(config)
        check_files(config.behaviour, settings.project)
    with step("load") as progress:
        dataset = load_dataset(config.data, settings.project, settings.store, as_of, config.privacy.pii)
        work = open_workspace(config, dataset, settings.project, settings.store, as_of)
        progress.note = f"{dataset.rows:,} rows × {len(dataset.columns)} columns"
    try:
        with step("validate") as progress:
            previous = read_champion_contract(settings, config.name)
            validation = validate_table(
                work, config, config.validation, previous, datetime.now(UTC).replace(tzinfo=None)
            )
            cross_validation.check_candidates(config, work.contract())
            check_with_contract(config, work, settings.project)
            progress.note = f"{len(validation.rules)} rules, {validation.warned} warned"
    finally:
        # removes a snapshot that is not kept, unless a run of the same config uses it
        with contextlib.suppress(TransientError), work.exclusive_lock():
            pass
    return PreflightResult(validation, work.contract(), work.file(validation.docs))


def read_champion_contract(settings: Settings, model: str) -> Contract | None:
    """The champion's contract; None if no version serves or its release is missing."""
    champion = open_ledger(settings).champion(model)
    release = settings.layout.release(champion.release) if champion else None
    return Contract.read(release) if release and (release / Contract.FILE).exists() else None
