"""Tasks on data: load, validate, split."""

from datetime import UTC, datetime

from tasks import artifacts, cached_task, retrying_task
from towline import files, helper_process
from towline.config import Frozen, PipelineConfig, Settings, TrainingConfig, ValidationConfig
from towline.data import splits
from towline.data.schema.contract import Contract
from towline.data.source import sources
from towline.data.validation import suite
from towline.data.workspace import Workspace, open_workspace
from towline.errors import DataValidationError
from towline.formatting import escape_markdown
from towline.preflight import read_champion_contract
from towline.provenance import Provenance, collect_provenance
from towline.registry.ledger import actor, open_ledger
from towline.registry.mlflow import tracking
from towline.registry.selection import check_recorded
from towline.steps import step


class RunContext(Frozen):
    """The context that a run determines at its start: its provenance, and the contract of the current champion."""

    provenance: Provenance
    champion_contract: Contract | None


class LoadedRun(RunContext):
    """A run that has loaded its data into a workspace."""

    work: Workspace


@retrying_task("load")
def load(config: PipelineConfig, settings: Settings, as_of: datetime | None, force: bool, trigger: str) -> LoadedRun:
    """Reads the source; not cached, because only reading it shows whether it has changed."""
    with step("load") as progress:
        ledger = open_ledger(settings)
        check_recorded(settings, ledger, config.name)
        dataset = sources.load_dataset(config.data, settings.project, settings.store, as_of, config.privacy.pii)
        ended = ledger.ended(config.name) if force else ()
        work = open_workspace(config, dataset, settings.project, settings.store, as_of, ended=ended)
        progress.folder = work.path
        span = f", {dataset.start[:10]} … {dataset.end[:10]}" if dataset.start and dataset.end else ""
        progress.note = f"{dataset.rows:,} rows × {len(dataset.columns)} columns{span}"
    rows = [{"fact": name, "value": value} for name, value in dataset.model_dump(exclude={"columns"}).items()]
    artifacts.table(rows, key=f"{config.name}-dataset", description=progress.note)
    run_key = work.run_key(config)
    file = work.origin_file(run_key)
    if file.exists():  # a resumed run keeps it, even if its own version was promoted before the interruption
        context = RunContext.model_validate_json(file.read_bytes())
    else:
        context = RunContext(
            provenance=collect_provenance(
                config, settings.project, run_key, actor=actor(), trigger=trigger, as_of=as_of
            ),
            champion_contract=read_champion_contract(settings, config.name),
        )
        files.write(file, context.model_dump_json(indent=1))
    return LoadedRun(work=work, provenance=context.provenance, champion_contract=context.champion_contract)


@cached_task("validate", ignored_input="settings")
def validate(
    work: Workspace, config: TrainingConfig, rules: ValidationConfig, champion: Contract | None, settings: Settings
) -> suite.Validation:
    try:
        with step("validate", work.path) as progress:
            now = datetime.now(UTC).replace(tzinfo=None)
            validation, progress.helper_cpu_s = helper_process.call_in_helper(
                suite.validate_table, work, config, rules, champion, now
            )
            helper_process.submit(tracking.prepare, settings)
            progress.note = validation.text()
    except DataValidationError:
        _show_rules(config.name, suite.Validation.model_validate_json(work.file("validation.json").read_bytes()))
        raise
    _show_rules(config.name, validation)
    return validation


def _show_rules(model: str, validation: suite.Validation) -> None:
    rows = [
        {
            "result": rule.result,
            "column": rule.column or "",
            "detail": rule.detail,
            "rows": rule.count or "",
            "examples": "; ".join(rule.examples),
            "rule": rule.rule,
        }
        for rule in validation.rules
    ]
    artifacts.table(rows, key=f"{model}-validation", description=validation.text())
    if validation.notes:
        artifacts.markdown(
            "\n".join(f"- {escape_markdown(note)}" for note in validation.notes),
            key=f"{model}-notes",
            description="notes of the validation",
        )


@cached_task("split")
def split(work: Workspace, config: TrainingConfig) -> splits.SplitSummary:
    with step("split", work.path) as progress:
        sizes = splits.split_table(work, config)
        progress.note = f"{sizes.describe_training_rows()} for training, {sizes.holdout:,} held out by {sizes.by}"
    return sizes
