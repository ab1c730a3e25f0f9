"""How a flow run ends, so that its end is read off the list of runs in Prefect, and by whoever waits for it."""

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

from towline.errors import DataValidationError, TowlineError
from towline.inference.batch import BatchResult
from towline.monitoring.policy import MonitoringRun
from towline.orchestration.process_setup import attended
from towline.promotion.outcome import Outcome

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)
FENCE = ("```json\n", "\n```")
_ALARMS = ("warn", "roll back", "block")  # decisions that somebody should look at
_TAG = 100  # characters of the tag that says how a run ended


class _End(NamedTuple):
    """How a run ended: the name of its state, its message, and whether it counts as well."""

    name: str
    message: str
    well: bool = True


class EndedBadly(Exception):
    """The value of a run that did what it is for and whose state is of type Failed: Refused, Warn and others.

    Prefect takes no other value along with such a state; ``value_of`` and ``run_here`` unpack it.
    """

    def __init__(self, value: BaseModel) -> None:
        super().__init__(type(value).__name__)
        self.value = value


def value_of(state: State[Any]) -> Any:
    """What a flow returned, whatever the type of the state it ended in; raises what it raised."""
    value = state.result(raise_on_failure=False)
    if isinstance(value, EndedBadly):
        return value.value
    if isinstance(value, BaseException):
        raise value
    return value


def ends(function: Callable[P, Outcome]) -> Callable[P, State[Any]]:
    """Names the state a flow ends in: Completed, Refused (by the gate), Unchanged (done before) or Data refused.

    The type of the state gives its colour in Prefect: where the exit code is not 0 it is Failed. Whoever runs the flow
    gets the outcome, or the error, as if it had returned or raised it itself.
    """

    def tell(outcome: Outcome) -> _End:
        name = "Unchanged" if outcome.repeated else "Refused" if outcome.event == "refused" else "Completed"
        message = f"version {outcome.version} of {outcome.model}, {outcome.event}: {outcome.reason}"
        return _End(name, message, well=outcome.event == "promoted")

    return _named(function, tell)


def watched(function: Callable[P, MonitoringRun]) -> Callable[P, State[Any]]:
    """Names the state a round of the watch ends in by what was decided.

    A warning, a rollback and a block are of type Failed, so that their colour is that of an alarm.
    """

    def tell(seen: MonitoringRun) -> _End:
        action = seen.decision.action if seen.decision else "nothing"
        message = f"{seen.decision.reason} {seen.done}".strip() if seen.decision else ""
        name = "Completed" if action == "nothing" else action.capitalize()
        return _End(name, message, well=action not in _ALARMS)

    return _named(function, tell)


def scored(function: Callable[P, BatchResult]) -> Callable[P, State[Any]]:
    """Tells how many rows were scored, by what, and where they are."""

    def tell(done: BatchResult) -> _End:
        return _End("Completed", f"{done.rows:,} rows scored by version {done.version} of {done.model}: {done.output}")

    return _named(function, tell)


def _named(function: Callable[P, R], tell: Callable[[R], _End]) -> Callable[P, State[Any]]:
    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        task_log = logging.getLogger("prefect.task_runs")
        task_log.addFilter(_says_more)  # the same filter is added once
        try:
            with attended():
                value = function(*args, **kwargs)
        except DataValidationError as error:
            _leave(error.as_dict(), f"data refused: {error.what}")
            return Failed(name="Data refused", message=str(error), data=error)
        except TowlineError as error:
            _leave(error.as_dict(), error.what)
            raise
        ended = tell(value)
        _leave(value.model_dump(mode="json"), ended.message)
        if ended.well:
            return Completed(name=ended.name, message=ended.message, data=value)
        return Failed(name=ended.name, message=ended.message, data=EndedBadly(value))

    return named


def _says_more(record: logging.LogRecord) -> bool:
    """Leaves out Prefect's line about a task that went well: the step has said so itself."""
    return not record.getMessage().startswith("Finished in state Completed(")


def end(flow: str) -> str:
    """The key of the artifact in which a flow's run of a deployment leaves its result or its error."""
    return f"{flow}-end"


def _leave(document: object, verdict: str) -> None:
    """The verdict as a tag, which stands at the top of the run's page and in the list of runs.

    A run of a deployment also leaves its result: whoever waits for it may be on another machine.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None:
        return
    run, tag = context.flow_run, " ".join(verdict.split())
    try:
        if tag:
            with get_client(sync_client=True) as client:
                tags = client.read_flow_run(run.id).tags
                client.update_flow_run(run.id, tags=[tag if len(tag) <= _TAG else f"{tag[: _TAG - 1]}…", *tags])
        if run.deployment_id is not None:
            text = json.dumps(document, ensure_ascii=False, default=str)
            create_markdown_artifact(text.join(FENCE), key=end(context.flow.name), description="how the run ended")
    except (httpx.TransportError, PrefectHTTPStatusError) as error:  # what was done is done all the same
        logging.getLogger("towline").warning("how the run ended cannot be left on the server: %s", error)
