"""What an operator does with a rollout: begin, look, pause, resume, abort, promote."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from towline.config import Frozen, RolloutConfig, Settings, build_config
from towline.data.schema.contract import Contract
from towline.errors import PromotionRejectedError, TransientError
from towline.monitoring.rollout_history import RolloutEvaluation, read_evaluations
from towline.promotion.rollout_start import begin_rollout, find_new_fields, recorded_config
from towline.registry.ledger import Ledger, actor, open_ledger
from towline.registry.rollouts import Rollout, RolloutEnd, active_rollout, change_rollout, waiting_version
from towline.registry.rollouts import end_rollout as end_in_ledger
from towline.registry.selection import check_judged_release, only_model, require_model, select_version
from towline.rollout.service_counts import ServiceCounts, read_counts, stop_reason


class RolloutStatus(Frozen):
    """The rollout of a model.

    Attributes:
        model: its name.
        text: one line for people.
        rollout: that is under way; None without one.
        evaluation: the last one; None before the first.
        counts: of the service since the start.
        stopped: the reason why the service no longer uses the challenger; else empty.
        waiting: version that waits for the end of the rollout.
        note: what remains to be done.
    """

    model: str
    text: str
    rollout: Rollout | None = None
    evaluation: RolloutEvaluation | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    stopped: str = ""
    waiting: int | None = None
    note: str = ""


def read_rollout_status(settings: Settings, name: str | None = None, note: str = "") -> RolloutStatus:
    """The rollout of a model; None: of the only model.

    Raises:
        ConfigError: there is no such model.
    """
    ledger = open_ledger(settings)
    model = require_model(settings, ledger, name) if name else only_model(settings, ledger)
    rows = ledger.rows(model)
    rollout = active_rollout(rows)
    if rollout is None:
        ended = next((row for row in reversed(rows) if row.event == "rollout_ended"), None)
        last = f"; the last one ended with version {ended.version} {ended.evidence['end']}" if ended else ""
        return RolloutStatus(
            model=model, text=f"no rollout is under way{last}", waiting=waiting_version(rows), note=note
        )
    folder = settings.layout.rollout(model, rollout.id)
    evaluations, counts, stopped = read_evaluations(folder), read_counts(folder), stop_reason(folder)
    answered = f"{counts.challenger_rows:,} rows answered to clients, {counts.compared:,} compared"
    problem = f"; the service has stopped it: {stopped}" if stopped else ""
    return RolloutStatus(
        model=model,
        text=f"{rollout.describe()}; {answered}{problem}",
        rollout=rollout,
        evaluation=evaluations[-1] if evaluations else None,
        counts=counts.totals() if counts != ServiceCounts() else {},
        stopped=stopped,
        waiting=waiting_version(rows),
        note=note,
    )


def start(settings: Settings, version: str, changes: Mapping[str, Any], *, replace: bool, reason: str) -> RolloutStatus:
    """Starts the rollout of a version that has passed the gate.

    Args:
        settings: for the store.
        version: ``NAME@3``.
        changes: keys of ``rollout`` that differ from the config in the champion's release.
        replace: whether it replaces the challenger of the current rollout.
        reason: recorded in the ledger.

    Raises:
        ConfigError: there is no such version, or a key is not valid.
        PromotionRejectedError: it cannot be rolled out.
        ReleaseError: its release differs from the judged one.
    """
    ledger = open_ledger(settings)
    judged = select_version(settings, ledger, version, numbered=True)
    check_judged_release(settings, judged)
    recorded = recorded_config(settings, ledger, judged.model)
    config = RolloutConfig()
    if recorded is not None:
        document = recorded.model_dump(mode="json")
        document["rollout"] = {**(document["rollout"] or {}), **changes, **({"newer": "replace"} if replace else {})}
        config = build_config(document, "command line").rollout or config
    rollout = begin_rollout(settings, ledger, judged.model, judged.version, config, actor(), reason)
    notes = _required_fields(settings, ledger, rollout), _evaluation_note(settings)
    return read_rollout_status(settings, judged.model, "; ".join(filter(None, notes)))


def pause(settings: Settings, name: str, *, paused: bool, reason: str) -> RolloutStatus:
    """Pauses or resumes a rollout.

    Raises:
        ConfigError: there is no such model.
        PromotionRejectedError: no rollout is under way.
    """
    ledger, rollout = _require_rollout(settings, name)
    if rollout.paused != paused:
        change_rollout(ledger, rollout, actor(), reason, paused=paused)
    return read_rollout_status(settings, rollout.model)


def end(settings: Settings, name: str, how: RolloutEnd, *, reason: str) -> RolloutStatus:
    """Aborts a rollout, or promotes its challenger.

    Raises:
        ConfigError: there is no such model.
        PromotionRejectedError: no rollout is active, or the champion has changed in the meantime.
        ReleaseError: the challenger's release differs from the judged one.
    """
    ledger, rollout = _require_rollout(settings, name)
    if how == "promoted":
        check_judged_release(settings, select_version(settings, ledger, f"{name}@{rollout.challenger}", numbered=True))
    end_in_ledger(ledger, rollout, how, actor(), reason, {})
    return read_rollout_status(settings, rollout.model, _mirror(settings, rollout.model) if how == "promoted" else "")


def _require_rollout(settings: Settings, name: str) -> tuple[Ledger, Rollout]:
    ledger = open_ledger(settings)
    model = require_model(settings, ledger, name)
    rollout = active_rollout(ledger.rows(model))
    if rollout is None:
        remedy = f"towline rollout {model}@VERSION begins one; towline models {model} lists the versions"
        raise PromotionRejectedError("no rollout is under way", where=model, remedy=remedy)
    return ledger, rollout


def _required_fields(settings: Settings, ledger: Ledger, rollout: Rollout) -> str:
    """Which further fields requests must have during the rollout; empty if none."""
    if rollout.config.fields != "both":
        return ""
    entries = ledger.entry(rollout.model, rollout.champion), ledger.entry(rollout.model, rollout.challenger)
    champion, challenger = (Contract.read(settings.layout.release(entry.release)) for entry in entries if entry)
    names = find_new_fields(champion, challenger)
    return f"requests must also have: {', '.join(names)}" if names else ""


def _evaluation_note(settings: Settings) -> str:
    from towline.operations import up_state

    if up_state.find_running(settings) is not None:
        return ""
    return "`towline up` is not running: evaluate with `towline rollout evaluate CONFIG`"


def _mirror(settings: Settings, model: str) -> str:
    from towline.registry.mlflow.synchronization import synchronize, unsynchronized_note

    try:
        synchronize(settings, model)
    except TransientError as error:
        return unsynchronized_note(error)
    return ""
