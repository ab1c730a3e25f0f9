"""What Prefect's server does about runs whose worker was lost with all that could say so."""

import datetime as dt

from prefect.automations import AutomationCore, ChangeFlowRunState, EventTrigger, Posture
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType

from towline.operations.up_state import TAG

HEARTBEAT = 30  # seconds between two signs of life of a run; Prefect takes no fewer
SILENT = dt.timedelta(minutes=5)  # ten of them: a server that is away for a while is no reason to give runs up
PENDING = dt.timedelta(minutes=8)  # for a machine that is made for the run, and its image


def watch(client: SyncPrefectClient, silent: dt.timedelta = SILENT, pending: dt.timedelta = PENDING) -> None:
    """Has the server end runs as Crashed that fell silent, or that were taken and never began.

    What is there by its name is left as it is, with the times that somebody may have given it. Only runs with the tag
    of our deployments are touched.
    """
    _once(
        client,
        "towline: a run without a sign of life",
        EventTrigger(
            # a run that ends, in whatever state, is no longer expected to be heard of
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            within=silent,
            **_OURS,
        ),
        f"no sign of life for {silent.total_seconds():.0f} s: its worker is gone",
    )
    _once(
        client,
        "towline: a run that never began",
        EventTrigger(
            after={"prefect.flow-run.Pending", "prefect.flow-run.Submitting"},
            expect={"prefect.flow-run.*"},
            within=pending,
            **_OURS,
        ),
        f"taken by a worker, and not begun within {pending.total_seconds():.0f} s",
    )


_OURS = {
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "match_related": {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"},
    "for_each": {"prefect.resource.id"},
    "posture": Posture.Proactive,
    "threshold": 1,
}


def _once(client: SyncPrefectClient, name: str, trigger: EventTrigger, message: str) -> None:
    if not client.read_automations_by_name(name):
        action = ChangeFlowRunState(state=StateType.CRASHED, message=message)
        client.create_automation(AutomationCore(name=name, trigger=trigger, actions=[action]))
    for double in client.read_automations_by_name(name)[1:]:  # of two workers that started at once
        client.delete_automation(double.id)
