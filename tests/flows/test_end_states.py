"""End states of runs in Prefect, and the results that callers get."""

import datetime as dt
from uuid import UUID

import pytest

from towline.errors import DataValidationError, TransientError
from towline.monitoring.policy import Action, Decision, MonitoringRun

NOW = dt.datetime(2026, 6, 30, tzinfo=dt.UTC)


def monitoring_run(action: Action) -> MonitoringRun:
    decision = Decision(action=action, trigger=None, reason="temp_c moved", cause="a")
    return MonitoringRun(model="bikes", version=1, at=NOW, decision=decision)


@pytest.mark.parametrize(
    ("action", "name", "kind"),
    [
        ("nothing", "Completed", "COMPLETED"),
        ("retrain", "Retrain", "COMPLETED"),
        ("warn", "Warn", "FAILED"),
        ("roll back", "Roll back", "FAILED"),
        ("block", "Block", "FAILED"),
    ],
)
def test_the_end_state_of_a_monitoring_run_with_an_alarm(prefect: str, action: Action, name: str, kind: str) -> None:
    """The command that ran it and a parent flow get its result without an error."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    from towline.orchestration.end_states import monitoring_end_state, state_value
    from towline.orchestration.local_run import run_local

    @flow(name="ending-inner", flow_run_name=f"inner-{action}")
    @monitoring_end_state
    def inner() -> MonitoringRun:
        return monitoring_run(action)

    @flow(name="ending-outer")
    @monitoring_end_state
    def outer() -> MonitoringRun:
        return MonitoringRun.model_validate(state_value(inner(return_state=True)))

    assert run_local(outer, {}) == monitoring_run(action)
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[f"inner-{action}"]))
        runs = client.read_flow_runs(flow_run_filter=named)
    assert [(run.state_name, run.state_type and run.state_type.value) for run in runs] == [(name, kind)]
    assert "temp_c moved" in runs[0].tags


def test_a_run_that_the_server_does_not_have_is_a_lost_connection(prefect: str) -> None:
    """The port of a killed server may be that of another store's server, which answers 404; the command ends with 5."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    from towline.orchestration.local_run import run_local

    @flow(name="ending-unknown")
    def unknown() -> None:
        with get_client(sync_client=True) as client:
            client.delete_flow_run(UUID(flow_run.id))

    with pytest.raises(TransientError, match=r"connection to the Prefect server was lost: .*does not know this run"):
        run_local(unknown, {})


def test_errors_are_raised_unchanged(prefect: str) -> None:
    """Rejected data is an error of the command, with its exit code."""
    from prefect import flow

    from towline.orchestration.end_states import monitoring_end_state
    from towline.orchestration.local_run import run_local

    @flow(name="ending-refused")
    @monitoring_end_state
    def refused() -> MonitoringRun:
        raise DataValidationError("the table breaks 1 rule", where="a.csv")

    with pytest.raises(DataValidationError, match="breaks 1 rule"):
        run_local(refused, {})
