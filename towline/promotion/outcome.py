"""What a run comes to: where it came from, what it decided, and what a repeated run finds done already."""

import json
import platform
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

import towline
from towline import notebook
from towline.config import Frozen, PipelineConfig, Settings
from towline.data.splits import SplitSummary
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.errors import ReleaseError
from towline.promotion.gate import Check, Verdict
from towline.provenance import code_digest, find_commit
from towline.registry.ledger import Entry, JudgedVersion, Ledger, actor, open_ledger
from towline.registry.resolution import highest
from towline.release.image import ReleaseImage, build_release_image
from towline.release.packaging import Release
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation
from towline.training.evaluation.interval import Interval


class Outcome(Frozen):
    """The end of a run, enough for a summary without opening a store.

    ``settings`` are the keys of the config that a refusal followed; ``note`` says what is still to be done.
    """

    model: str
    version: int
    event: Literal["promoted", "refused"]
    repeated: bool = False
    reason: str
    run_key: str
    release: str
    dataset: dict[str, Any] = Field(default_factory=dict)
    checked: dict[str, Any] = Field(default_factory=dict)
    split: dict[str, Any] = Field(default_factory=dict)
    candidates: tuple[dict[str, Any], ...] = ()
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
            rows = [(name, *map(notebook.format_number, (m.value, m.low, m.high))) for name, m in self.metrics.items()]
            parts.append(notebook.render_table(("metric", "holdout", "lower 95 %", "upper 95 %"), rows))
        if self.verdict:
            parts.append(self.verdict._repr_html_())
        return "".join(parts)

    @classmethod
    def of(
        cls,
        work: Workspace,
        entry: Entry,
        validation: Validation,
        parts: SplitSummary,
        scores: Sequence[CrossValidationResult],
        chosen: CrossValidationResult,
        evaluation: Evaluation,
        verdict: Verdict,
        link: str,
        run_id: str,
        note: str,
    ) -> "Outcome":
        return cls(
            model=entry.model,
            version=entry.version,
            event="promoted" if entry.event == "promoted" else "refused",
            reason=entry.reason,
            run_key=work.key,
            release=entry.release,
            dataset=work.dataset.model_dump(include={"source", "digest", "rows", "start", "end"}),
            checked={
                "rules": len(validation.rules),
                "warned": validation.warned,
                "notes": list(validation.notes),
                "warnings": [rule.finding for rule in validation.rules if not rule.passed],
            },
            split=parts.model_dump(),
            candidates=tuple(
                {
                    "name": score.candidate,
                    "mean": score.mean.get(evaluation.primary),
                    "sd": score.sd.get(evaluation.primary),
                    "seconds": score.seconds,
                    "trials": score.trials,
                    "failed": score.failed,
                }
                for score in scores
            ),
            chosen=chosen.candidate,
            primary=evaluation.primary,
            metrics=evaluation.metrics,
            verdict=verdict,
            previous=entry.previous,
            run_id=run_id,
            link=link,
            settings=_failed_settings(entry),
            note=note,
        )


def register(settings: Settings, work: Workspace, model: str, facts: Mapping[str, str]) -> Entry:
    """Has the ledger give a run its version number; the same run gets the same one.

    Numbers of releases that are in the store are not given again, whatever the ledger has lost of them.
    """
    evidence = {"dataset": work.dataset.digest, **facts}
    reason, least = f"trained, trigger {facts['trigger']}", highest(settings, model) + 1
    return open_ledger(settings).register(model, facts["actor"], reason, evidence, work.key, least)


def find_finished(settings: Settings, config: PipelineConfig, work: Workspace) -> Outcome | None:
    """What an identical run has come to before, or None. A killed run's leftovers are for the flow to finish first."""
    entry = open_ledger(settings).finished(config.name, work.key)
    if entry is None or work.judged:
        return None
    work.remove()
    return Outcome(
        model=entry.model,
        version=entry.version,
        event="promoted" if entry.event == "promoted" else "refused",
        repeated=True,
        reason=entry.reason,
        run_key=work.key,
        release=entry.release,
        previous=entry.previous,
        settings=_failed_settings(entry),
    )


def _failed_settings(entry: Entry) -> tuple[str, ...]:
    """Of the config: what the checks follow that a version did not pass."""
    failed = [check for check in entry.evidence.get("checks", ()) if check["outcome"] != "pass"]
    return tuple(dict.fromkeys(check["key"] for check in failed if check.get("key")))


def build_image(
    settings: Settings,
    work: Workspace,
    config: PipelineConfig,
    version: int,
    package: Release,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> tuple[Verdict, ReleaseImage | None]:
    """Builds the image of a release that passed, and adds to its verdict what came of it; an image goes to the ledger.

    Raises:
        TransientError: no Docker engine answers; the same run, given again, goes on from here.
    """
    if any(check.name == "image" for check in verdict.checks):  # killed after it was concluded
        return verdict, None
    built: ReleaseImage | None = None
    try:
        built = build_release_image(settings.layout.release(package.path), config.package.repository, package.digest)
    except ReleaseError as error:
        check = Check(name="image", outcome="fail", detail="; ".join((error.what, *error.details[-3:])))
    else:
        check = Check(name="image", outcome="pass", detail=built.text())
        record_image(open_ledger(settings), config.name, version, built, facts["actor"], package.path)
    outcome = verdict.outcome if built else "fail"
    verdict = verdict.model_copy(update={"outcome": outcome, "checks": (*verdict.checks, check)})
    work.save("verdict.json", verdict)
    return verdict, built


def record_image(ledger: Ledger, model: str, version: int, built: ReleaseImage, actor: str, release: str) -> Entry:
    """Records an image of a version's release."""
    evidence = {"image": built.tag, "image_id": built.id, "image_digest": built.digest, "bytes": built.bytes}
    return ledger.packaged(model, version, actor, f"image {built.tag}", evidence, release)


def conclude(
    ledger: Ledger,
    work: Workspace,
    model: str,
    version: int,
    package: Release,
    verdict: Verdict,
    facts: Mapping[str, str],
) -> Entry:
    """Promotes or refuses a version, once: the same run concluded again finds its own row.

    Raises:
        PromotionRejectedError: the champion changed since the version was judged.
    """
    if entry := ledger.finished(model, work.key):
        return entry
    evidence = {
        "release": package.digest,
        "verdict": verdict.outcome,
        "checks": [{**check.model_dump(), "key": check.key} for check in verdict.checks],
    }
    judged = JudgedVersion(version, work.key, package.path, evidence)
    if verdict.outcome == "pass":
        against = f" against version {verdict.champion}" if verdict.champion else ""
        reason = f"passed {len(verdict.checks)} checks{against}"
        return ledger.promote(model, judged, verdict.champion, facts["actor"], reason)
    failed = [check.name for check in verdict.checks if check.outcome != "pass"]
    return ledger.refuse(model, judged, facts["actor"], f"{verdict.outcome}: {', '.join(failed)}")


def provenance(
    settings: Settings, work: Workspace, config: PipelineConfig, *, as_of: datetime | None, trigger: str
) -> dict[str, str]:
    """Who ran what, from which commit and code, when; drawn once for a run, so that a resumed one tells the same.

    ``git_dirty`` is true where the commit does not hold all of the run's code and config; ``git_missing`` names what.
    """
    kept = work.file("provenance.json")
    if kept.exists():
        return dict(json.loads(kept.read_bytes()))
    head, missing = find_commit(config, settings.project)
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "actor": actor(),
        "host": socket.gethostname(),
        "trigger": trigger,
        "as_of": as_of.isoformat() if as_of else "",
        "git_commit": head,
        "git_dirty": ("true" if missing else "false") if head else "",
        "git_missing": _shorten(missing),
        "code": code_digest(config, settings.project),
        "config": config.digest,
        "towline": towline.__version__,
        "python": platform.python_version(),
        "run_key": work.key,
    }
    work.save_json("provenance.json", facts)
    return facts


def _shorten(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
