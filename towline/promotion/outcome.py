"""The outcome of a training run: a version that was promoted, that waits for approvals or a rollout, or was rejected.

The ledger records the decision; ``Outcome`` is its summary for callers. All functions can be repeated: a run is
identified by its key, and a repeated call finds the earlier entry.
"""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from towline import files
from towline.config import ApprovalConfig, Frozen, PipelineConfig, Settings
from towline.data.splits import SplitSummary
from towline.data.workspace import Workspace
from towline.errors import DataValidationError
from towline.formatting import format_number, format_time
from towline.html import notebook
from towline.promotion.gate import Verdict
from towline.provenance import Provenance
from towline.registry.approvals import request_evidence
from towline.registry.ledger import Entry, JudgedVersion, Ledger, open_ledger
from towline.registry.selection import highest_version
from towline.release.packaging import Release
from towline.training.evaluation.predictions import Interval
from towline.training.result import TrainingResult


class Outcome(Frozen):
    """The summary of a finished run.

    Attributes:
        model, version: which version the run registered.
        event: the decision; ``passed``: it passed, and approvals or a rollout decide whether it is promoted.
        approval: the approvals that it waits for, if it needs approvals.
        repeated: an identical run had finished before; no step was run.
        reason: of the decision, in one line.
        run_key: identifies the run.
        release: folder of the release, relative to the store.
        dataset, checked, split, candidates: summaries of the steps; empty for a repeated run.
        training_notes: reductions by the budget, and whether the selected candidate is far below the reference model.
        chosen: name of the selected candidate.
        primary, metrics: the metric that decides; all holdout metrics.
        verdict: all checks of the gate; None for a repeated run.
        previous: version that served before a promotion.
        run_id, link: of the run in MLflow.
        settings: config keys of the checks that did not pass.
        note: what remains to be done, e.g. when MLflow could not be reached.
    """

    model: str
    version: int
    event: Literal["promoted", "passed", "refused"]
    approval: str = ""
    repeated: bool = False
    reason: str
    run_key: str
    release: str
    dataset: dict[str, Any] = Field(default_factory=dict)
    checked: dict[str, Any] = Field(default_factory=dict)
    split: dict[str, Any] = Field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = ()
    training_notes: tuple[str, ...] = ()
    chosen: str = ""
    primary: str = ""
    metrics: dict[str, Interval] = Field(default_factory=dict)
    verdict: Verdict | None = None
    previous: int | None = None
    run_id: str = ""
    link: str = ""
    settings: tuple[str, ...] = ()
    note: str = ""

    def _repr_html_(self) -> str:
        fields = {"version": f"{self.model}@{self.version}", "result": self.event, "reason": self.reason}
        fields |= {"data": f"{self.dataset['source']}, {self.dataset['rows']:,} rows"} if self.dataset else {}
        parts = [notebook.render_fields({**fields, "note": self.note})]
        if self.metrics:
            rows = [(name, *map(format_number, (m.value, m.low, m.high))) for name, m in self.metrics.items()]
            parts.append(notebook.render_table(("metric", "holdout", "lower 95 %", "upper 95 %"), rows))
        if self.verdict:
            parts.append(self.verdict._repr_html_())
        return "".join(parts)

    @classmethod
    def from_entry(cls, entry: Entry, run_key: str, **details: Any) -> "Outcome":
        """The outcome that a ledger entry records; ``details`` are further attributes."""
        failed = [check for check in entry.evidence.get("checks", ()) if check["outcome"] != "pass"]
        return cls(
            model=entry.model,
            version=entry.version,
            event=next((event for event in ("promoted", "passed") if entry.event == event), "refused"),
            reason=entry.reason,
            run_key=run_key,
            release=entry.release,
            approval=_describe_approval(entry),
            previous=entry.previous,
            settings=tuple(dict.fromkeys(check["key"] for check in failed if check.get("key"))),
            **details,
        )


def summarize(entry: Entry, work: Workspace, split: SplitSummary, result: TrainingResult, **details: Any) -> Outcome:
    """The outcome of a run that was carried out.

    Args:
        entry: the ledger's decision.
        work: the run's workspace.
        split: sizes of the train and holdout parts.
        result: what training produced.
        details: further attributes of ``Outcome``: run_key, verdict, run_id, link and note.
    """
    evaluation, validation = result.evaluation, result.validation
    return Outcome.from_entry(
        entry,
        dataset=work.dataset.model_dump(include={"source", "digest", "rows", "start", "end"}),
        checked={
            "rules": len(validation.rules),
            "warned": validation.warned,
            "notes": list(validation.notes),
            "warnings": [rule.finding for rule in validation.rules if not rule.passed],
        },
        split=split.model_dump(),
        candidates=tuple(
            {
                "name": scores.candidate,
                "mean": scores.mean.get(evaluation.primary),
                "sd": scores.sd.get(evaluation.primary),
                "seconds": scores.seconds,
                "trials": scores.trials,
                "rows": scores.rows,
                "rows_available": scores.rows_available,
                "failed": scores.failed,
            }
            for scores in result.candidates
        ),
        training_notes=(*result.notes, *([f"trained on {split.describe_training_rows()}"] if split.sampled_by else [])),
        chosen=result.chosen.candidate,
        primary=evaluation.primary,
        metrics=evaluation.metrics,
        **details,
    )


def find_finished(settings: Settings, model: str, work: Workspace, run_key: str) -> Outcome | None:
    """The outcome of an identical run that has finished; None if there is none.

    A run that was interrupted after its verdict counts as unfinished: the flow completes it.
    """
    entry = open_ledger(settings).finished(model, run_key)
    if entry is None or work.has_verdict(run_key):
        return None
    return Outcome.from_entry(entry, run_key, repeated=True)


@contextmanager
def record_run_end(settings: Settings, model: str) -> Iterator[None]:
    """Records the time at which a training run has ended, also if it was a repetition or refused the data.

    The ledger has no entry of these runs, and monitoring would report a scheduled run as missed.
    """
    path = settings.layout.last_training(model)
    try:
        yield
    except DataValidationError:
        _write_time(path)
        raise
    _write_time(path)


def read_last_run_end(settings: Settings, model: str) -> dt.datetime | None:
    """The time of ``record_run_end``; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = settings.layout.last_training(model)
    return dt.datetime.fromisoformat(path.read_text()) if path.exists() else None


def _write_time(path: Path) -> None:
    files.write(path, dt.datetime.now(dt.UTC).isoformat())


def register_version(settings: Settings, model: str, dataset: str, provenance: Provenance) -> Entry:
    """Has the ledger assign a version number to a run; the same run gets the same number.

    Numbers of releases in the store are never assigned again, even if the ledger was lost.

    Args:
        settings: locate the ledger and the store.
        model: the model's name.
        dataset: digest of the dataset.
        provenance: of the run.
    """
    evidence = {"dataset": dataset, **provenance.model_dump()}
    reason, least = f"trained, trigger {provenance.trigger}", highest_version(settings, model) + 1
    return open_ledger(settings).register(model, provenance.actor, reason, evidence, provenance.run_key, least)


def decide_promotion(
    ledger: Ledger,
    config: PipelineConfig,
    version: int,
    release: Release,
    verdict: Verdict,
    provenance: Provenance,
) -> Entry:
    """Promotes a version if the verdict is "pass", else records the rejection; repeated, it finds its own entry.

    With ``config.approval``, a version that passed waits for approvals. With ``config.rollout``, it does not replace a
    champion immediately: a rollout decides.

    Raises:
        PromotionRejectedError: the champion changed after the verdict.
    """
    model = config.name
    if entry := ledger.finished(model, provenance.run_key):
        return entry
    evidence = {
        "release": release.digest,
        "verdict": verdict.outcome,
        "checks": [{**check.model_dump(), "key": check.key} for check in verdict.checks],
    }
    judged = JudgedVersion(version, provenance.run_key, release.path, evidence)
    if verdict.outcome == "pass":
        against = f" against version {verdict.champion}" if verdict.champion else ""
        reason = f"passed {len(verdict.checks)} checks{against}"
        if config.approval is not None:
            return _request_approval(ledger, config, config.approval, judged, provenance.actor, reason)
        if config.rollout is not None and verdict.champion is not None:
            return ledger.mark_passed(model, judged, provenance.actor, reason)
        return ledger.promote(model, judged, verdict.champion, provenance.actor, reason)
    failed = [check.name for check in verdict.checks if check.outcome != "pass"]
    return ledger.refuse(model, judged, provenance.actor, f"{verdict.outcome}: {', '.join(failed)}")


def _request_approval(
    ledger: Ledger, config: PipelineConfig, approval: ApprovalConfig, judged: JudgedVersion, actor: str, reason: str
) -> Entry:
    requested = request_evidence(approval, dt.datetime.now(dt.UTC))
    rollout = config.rollout.model_dump(mode="json") if config.rollout else None
    evidence = {**judged.evidence, "approval": requested, "rollout_after_approval": rollout}
    return ledger.mark_passed(config.name, judged._replace(evidence=evidence), actor, f"{reason}; awaiting approval")


def _describe_approval(entry: Entry) -> str:
    if entry.event != "passed" or (requested := entry.evidence.get("approval")) is None:
        return ""
    people = f"{requested['required']} approval{'s' if requested['required'] > 1 else ''}"
    return f"{people} until {format_time(requested['expires'])} UTC"
