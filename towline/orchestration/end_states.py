"""The end state of a flow run: its name and color in Prefect's list of runs, its verdict, its result.

Prefect colours a state by its type. A run that ended as intended, but needs attention (Refused, Warn), is therefore of
type Failed; its result is carried in ``FailedStateValue``, which ``state_value`` unpacks. A run of a
deployment also leaves its result, or its error, in an artifact for a caller on another machine.
"""

import functools
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed
from pydantic import BaseModel

from towline.batch.batch_summary import BatchResult, ShardCounts
from towline.errors import DataValidationError, TowlineError
from towline.monitoring.policy import MonitoringRun
from towline.monitoring.rollout_history import RolloutRun
from towline.orchestration.process_setup import supervised
from towline.promotion.outcome import Outcome

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)
_JSON_FENCE = ("```json\n", "\n```")  # the artifact is Markdown
_ALARMS = ("warn", "roll back", "block")  # decisions that need attention
_MAX_TAG = 100  # characters


class _EndState(NamedTuple):
    name: str
    message: str
    failed: bool = False


class FailedStateValue(Exception):
    """Carries the result of a run whose state is of type Failed; Prefect accepts only exceptions there."""

    def __init__(self, value: BaseModel) -> None:
        super().__init__(type(value).__name__)
        self.value = value


def state_value(state: State[Any]) -> Any:
    """The result of a run with any type of end state; raises the error of a run that raised one."""
    value = state.result(raise_on_failure=False)
    if isinstance(value, FailedStateValue):
        return value.value
    if isinstance(value, BaseException):
        raise value
    return value


def training_end_state(function: Callable[P, Outcome]) -> Callable[P, State[Any]]:
    """Decorates the training flow: it ends Completed, Awaiting approval, Rollout (which decides on the
    promotion), Refused (by the gate), Unchanged (run before) or Data refused.

    The state is of type Failed where the exit code of ``towline run`` is not 0.
    """

    def describe(outcome: Outcome) -> _EndState:
        names = {"refused": "Refused", "passed": "Awaiting approval" if outcome.approval else "Rollout"}
        name = "Unchanged" if outcome.repeated else names.get(outcome.event, "Completed")
        message = f"version {outcome.version} of {outcome.model}, {outcome.event}: {outcome.reason}"
        return _EndState(name, message, failed=outcome.event == "refused")

    return _with_end_state(function, describe)


def monitoring_end_state(function: Callable[P, MonitoringRun]) -> Callable[P, State[Any]]:
    """Decorates a monitoring flow: it ends with the name of its decision; warn, roll back and block are Failed."""

    def describe(run: MonitoringRun) -> _EndState:
        action = run.decision.action if run.decision else "nothing"
        message = f"{run.decision.reason} {run.done}".strip() if run.decision else ""
        name = "Completed" if action == "nothing" else action.capitalize()
        return _EndState(name, message, failed=action in _ALARMS)

    return _with_end_state(function, describe)


def rollout_end_state(function: Callable[P, RolloutRun]) -> Callable[P, State[Any]]:
    """Decorates the rollout flow: it ends with the name of its action; Abort and End are of type Failed."""

    def describe(run: RolloutRun) -> _EndState:
        if run.evaluation is None:
            return _EndState("Completed", run.done or "no rollout is under way")
        evaluation = run.evaluation
        message = f"version {evaluation.challenger}: {evaluation.reason}"
        return _EndState(evaluation.action.capitalize(), message, failed=evaluation.action in ("abort", "end"))

    return _with_end_state(function, describe)


def scoring_end_state(function: Callable[P, BatchResult]) -> Callable[P, State[Any]]:
    """Decorates the scoring flow: the message of its state has the number of scored rows and the path of the output."""

    def describe(scored: BatchResult) -> _EndState:
        rows = f"{scored.rows:,} rows scored by version {scored.version} of {scored.model}: {scored.output}"
        bad = f"; {scored.quarantined:,} bad rows: {scored.quarantine}" if scored.quarantined else ""
        return _EndState("Unchanged" if scored.unchanged else "Completed", rows + bad)

    return _with_end_state(function, describe)


def shards_end_state(function: Callable[P, ShardCounts]) -> Callable[P, State[Any]]:
    """Decorates the flow of scoring shards: the message of its state has the number of scored shards."""

    def describe(counts: ShardCounts) -> _EndState:
        return _EndState("Completed", f"{counts.shards:,} shards, {counts.rows:,} rows")

    return _with_end_state(function, describe)


def _with_end_state(function: Callable[P, R], describe: Callable[[R], _EndState]) -> Callable[P, State[Any]]:
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        task_log = logging.getLogger("prefect.task_runs")
        task_log.addFilter(_is_not_completion)  # adding the same filter twice has no effect
        try:
            with supervised():
                value = function(*args, **kwargs)
        except DataValidationError as error:
            _publish_result(error.as_dict(), f"data refused: {error.what}")
            return Failed(name="Data refused", message=str(error), data=error)
        except TowlineError as error:
            _publish_result(error.as_dict(), error.what)
            raise
        end_state = describe(value)
        _publish_result(value.model_dump(mode="json"), end_state.message)
        if end_state.failed:
            return Failed(name=end_state.name, message=end_state.message, data=FailedStateValue(value))
        return Completed(name=end_state.name, message=end_state.message, data=value)

    return run


def _is_not_completion(record: logging.LogRecord) -> bool:
    """Filters Prefect's line about a completed task: the step has logged its own."""
    return not record.getMessage().startswith("Finished in state Completed(")


def result_artifact_key(flow_name: str) -> str:
    """The key of the artifact with the result, or the error, of a run of a deployment."""
    return f"{flow_name}-end"


def encode_result(document: object) -> str:
    """The content of that artifact."""
    return json.dumps(document, ensure_ascii=False, default=str).join(_JSON_FENCE)


def decode_result(content: str) -> Any:
    """The document in the content of that artifact."""
    return json.loads(content.removeprefix(_JSON_FENCE[0]).removesuffix(_JSON_FENCE[1]))


def _publish_result(document: object, verdict: str) -> None:
    """Adds the verdict to the run's tags, which its page and the list of runs show; writes the result artifact."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return
    run, tag = context.flow_run, " ".join(verdict.split())
    try:
        if tag:
            with get_client(sync_client=True) as client:
                tags = client.read_flow_run(run.id).tags
                client.update_flow_run(run.id, tags=[tag if len(tag) <= _MAX_TAG else f"{tag[: _MAX_TAG - 1]}…", *tags])
        if run.deployment_id is not None:
            key = result_artifact_key(context.flow.name)
            create_markdown_artifact(encode_result(document), key=key, description="how the run ended")
    except (httpx.TransportError, PrefectHTTPStatusError) as error:  # the run itself has succeeded
        logging.getLogger("towline").warning("the result of the run is not on the Prefect server: %s", error)
