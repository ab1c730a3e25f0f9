"""Load, validate, split."""

from datetime import UTC, datetime

from tasks import artifacts, cached_task, retrying_task
from towline import sidecar
from towline.config import PipelineConfig, Settings
from towline.data import sources, splits
from towline.data.validation import suite
from towline.data.workspace import Workspace, open_workspace
from towline.errors import DataValidationError
from towline.markdown import escape
from towline.preflight import read_champion_contract
from towline.registry.ledger import open_ledger
from towline.registry.mlflow import tracking
from towline.registry.resolution import check_recorded
from towline.steps import step


@retrying_task("load")
def load(config: PipelineConfig, settings: Settings, as_of: datetime | None, force: bool) -> Workspace:
    """Never cached: reading the source is how a change in it is seen."""
    with step("load") as told:
        ledger = open_ledger(settings)
        check_recorded(settings, ledger, config.name)
        dataset = sources.load_dataset(config.data, settings.project, settings.store, as_of, config.privacy.pii)
        ended = ledger.ended(config.name) if force else ()
        work = open_workspace(config, dataset, settings.project, settings.store, as_of, ended=ended)
        told.folder = work.path
        span = f", {dataset.start[:10]} … {dataset.end[:10]}" if dataset.start and dataset.end else ""
        told.note = f"{dataset.rows:,} rows × {len(dataset.columns)} columns{span}"
    facts = [{"fact": name, "value": value} for name, value in dataset.model_dump(exclude={"columns"}).items()]
    artifacts.table(facts, key=f"{config.name}-dataset", description=told.note)
    return work


@cached_task("validate")
def validate(work: Workspace, config: PipelineConfig, settings: Settings) -> suite.Validation:
    try:
        with step("validate", work.path) as told:
            previous, now = read_champion_contract(settings, config.name), datetime.now(UTC).replace(tzinfo=None)
            checked, told.sidecar_cpu_s = sidecar.call(suite.validate_table, work, config, previous, now)
            sidecar.begin(tracking.prepare, settings)
            told.note = checked.text()
    except DataValidationError:
        _show(config, suite.Validation.model_validate_json(work.file("validation.json").read_bytes()))
        raise
    _show(config, checked)
    return checked


def _show(config: PipelineConfig, checked: suite.Validation) -> None:
    rows = [
        {
            "result": rule.result,
            "column": rule.column or "",
            "detail": rule.detail,
            "rows": rule.count or "",
            "examples": "; ".join(rule.examples),
            "rule": rule.rule,
        }
        for rule in checked.rules
    ]
    artifacts.table(rows, key=f"{config.name}-validation", description=checked.text())
    if checked.notes:
        artifacts.markdown(
            "\n".join(f"- {escape(note)}" for note in checked.notes),
            key=f"{config.name}-notes",
            description="what validation noted",
        )


@cached_task("split")
def split(work: Workspace, config: PipelineConfig) -> splits.SplitSummary:
    with step("split", work.path) as told:
        parts = splits.split_table(work, config)
        told.note = f"{parts.train:,} to train, {parts.holdout:,} held out by {parts.by}"
    return parts
