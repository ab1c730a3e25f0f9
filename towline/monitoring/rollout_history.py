"""The evaluations of a rollout, as JSON lines in its folder."""

import datetime as dt
from pathlib import Path
from typing import Any, Literal

from towline import files
from towline.config import Frozen

RolloutAction = Literal["wait", "advance", "promote", "abort", "end"]
HISTORY = "evaluations.jsonl"


class RolloutEvaluation(Frozen):
    """One evaluation of a rollout.

    Attributes:
        model: its name.
        champion, challenger: versions.
        at: time of the evaluation.
        strategy, weight, step, paused: of the rollout, before the action.
        verdict: promote, abort or waiting.
        checks: the measurement of each check: name, verdict, estimate, lower, upper, observations, text.
        champion_requests, challenger_requests: ids of requests that were assigned to each version since the start.
        champion_rows, challenger_rows: rows answered to clients since the start.
        asked_rows: rows that the challenger was asked, also in shadow.
        labels: labelled rows that both versions answered.
        labels_needed: further labels until a verdict is expected; None if unknown.
        days_needed: days until then; None if unknown.
        action: wait, advance (to the next weight), promote, abort, or end (inconclusive).
        reason: of the action, in one sentence.
    """

    model: str
    champion: int
    challenger: int
    at: dt.datetime
    strategy: str
    weight: float
    step: int
    paused: bool
    verdict: str
    checks: tuple[dict[str, Any], ...] = ()
    champion_requests: int = 0
    challenger_requests: int = 0
    champion_rows: int = 0
    challenger_rows: int = 0
    asked_rows: int = 0
    labels: int = 0
    labels_needed: int | None = None
    days_needed: float | None = None
    action: RolloutAction
    reason: str


class RolloutRun(Frozen):
    """The result of one run of the rollout flow: the evaluation and the action."""

    model: str
    evaluation: RolloutEvaluation | None = None
    done: str = ""


def record_evaluation(folder: Path, evaluation: RolloutEvaluation) -> None:
    """Appends an evaluation to the history of its rollout.

    Raises:
        TransientError: the store cannot be written.
    """
    path = folder / HISTORY
    with files.exclusive_lock(path.with_suffix(".lock")):
        files.append(path, evaluation.model_dump_json().encode() + b"\n")


def read_evaluations(folder: Path) -> list[RolloutEvaluation]:
    """The evaluations of a rollout, oldest first."""
    return files.read_records(folder / HISTORY, RolloutEvaluation)
