"""How a flow run ends, so that its end is read off the list of runs in Prefect."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from tasks.attended import attended
from towline.errors import DataRefused
from towline.monitoring.policy import Round
from towline.outcome import Outcome

P = ParamSpec("P")


def ends(function: Callable[P, Outcome]) -> Callable[P, State[Any]]:
    """Names the state a flow ends in: Completed, Refused (by the gate), Unchanged (done before) or Data refused.

    Whoever runs the flow gets the outcome, or the error, as if it had returned or raised it itself. A refusal by the
    gate is of Prefect's type Completed, since the flow did what it is for; one of the data is of its type Failed.
    """

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        try:
            with attended():
                outcome = function(*args, **kwargs)
        except DataRefused as error:
            return Failed(name="Data refused", message=str(error), data=error)
        name = "Unchanged" if outcome.repeated else "Refused" if outcome.event == "refused" else "Completed"
        told = f"version {outcome.version} of {outcome.model}, {outcome.event}: {outcome.reason}"
        return Completed(name=name, message=told, data=outcome)

    return named


def watched(function: Callable[P, Round]) -> Callable[P, State[Any]]:
    """Names the state a round of the watch ends in by what was decided."""

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> State[Any]:
        with attended():
            seen = function(*args, **kwargs)
        action = seen.decision.action if seen.decision else "nothing"
        told = f"{seen.decision.reason} {seen.done}".strip() if seen.decision else ""
        return Completed(name="Completed" if action == "nothing" else action.capitalize(), message=told, data=seen)

    return named
