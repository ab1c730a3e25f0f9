"""How a flow run ends, so that its end is read off the list of runs in Prefect, and by whoever waits for it."""

import functools
import json
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed
from pydantic import BaseModel

from tasks.attended import attended
from towline.errors import DataRefused, TowlineError
from towline.monitoring.policy import Round
from towline.outcome import Outcome
from towline.scoring.batch import Scored

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)
FENCE = ("```json\n", "\n```")


def ends(function: Callable[P, Outcome]) -> Callable[P, State[Any]]:
    """Names the state a flow ends in: Completed, Refused (by the gate), Unchanged (done before) or Data refused.

    Whoever runs the flow gets the outcome, or the error, as if it had returned or raised it itself. A refusal by the
    gate is of Prefect's type Completed, since the flow did what it is for; one of the data is of its type Failed.
    """

    def tell(outcome: Outcome) -> tuple[str, str]:
        name = "Unchanged" if outcome.repeated else "Refused" if outcome.event == "refused" else "Completed"
        return name, f"version {outcome.version} of {outcome.model}, {outcome.event}: {outcome.reason}"

    return _named(function, tell)


def watched(function: Callable[P, Round]) -> Callable[P, State[Any]]:
    """Names the state a round of the watch ends in by what was decided."""

    def tell(seen: Round) -> tuple[str, str]:
        action = seen.decision.action if seen.decision else "nothing"
        told = f"{seen.decision.reason} {seen.done}".strip() if seen.decision else ""
        return "Completed" if action == "nothing" else action.capitalize(), told

    return _named(function, tell)


def scored(function: Callable[P, Scored]) -> Callable[P, State[Any]]:
    """Tells how many rows were scored, by what, and where they are."""

    def tell(done: Scored) -> tuple[str, str]:
        return "Completed", f"{done.rows:,} rows scored by version {done.version} of {done.model}: {done.output}"

    return _named(function, tell)


def _named(function: Callable[P, R], tell: Callable[[R], tuple[str, str]]) -> Callable[P, State[Any]]:
    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            with attended():
                value = function(*args, **kwargs)
        except DataRefused as error:
            _leave(error.as_dict())
            return Failed(name="Data refused", message=str(error), data=error)
        except TowlineError as error:
            _leave(error.as_dict())
            raise
        _leave(value.model_dump(mode="json"))
        name, told = tell(value)
        return Completed(name=name, message=told, data=value)

    return named


def end(flow: str) -> str:
    """The key of the artifact in which a flow's run of a deployment leaves its result or its error."""
    return f"{flow}-end"


def _leave(document: object) -> None:
    """For who waits on another machine; a run from the command line is not asked for it."""
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return
    try:
        text = json.dumps(document, ensure_ascii=False, default=str)
        create_markdown_artifact(text.join(FENCE), key=end(context.flow.name), description="how the run ended")
    except (httpx.TransportError, PrefectHTTPStatusError) as error:  # what was done is done all the same
        logging.getLogger("towline").warning("how the run ended cannot be left on the server: %s", error)
