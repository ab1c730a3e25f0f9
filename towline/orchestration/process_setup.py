"""The setup of the process of a deployment's flow run before its first step.

A run from the command line shares the process of ``towline run``, which has done this setup. A run that a scheduler or
a worker started has its own process: it gets the helper process, the tags that name the process, and ends with its
scheduler. A run of a deployment also publishes its steps.
"""

import importlib
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from towline import helper_process
from towline.config import Settings
from towline.orchestration.crash_detection import process_tags
from towline.orchestration.step_table import publish_steps
from towline.processes import set_parent_death_signal

SCHEDULER_PID = "_TOWLINE_SCHEDULER"  # environment variable of the runs that a scheduler or worker starts

SHARDS_FLOW = "scoring-shards"  # needs no slow import, and starts often


@contextmanager
def supervised() -> Iterator[None]:
    """Sets up the process of a run of a deployment; changes nothing for other runs."""
    scheduler_pid, context = os.environ.pop(SCHEDULER_PID, ""), FlowRunContext.get()
    if context is None or context.flow_run is None or context.flow is None:
        yield
        return
    run = context.flow_run
    with ExitStack() as stack:
        if run.deployment_id is not None:
            stack.enter_context(publish_steps(context.flow.name, run.id))
        if scheduler_pid:
            set_parent_death_signal(int(scheduler_pid), signal.SIGKILL)
            with get_client(sync_client=True) as client:
                client.update_flow_run(run.id, tags=[*run.tags, *process_tags(os.getpid())])
            if context.flow.name != SHARDS_FLOW:
                helper_process.start(Settings.from_environment().layout.log())
                stack.callback(helper_process.stop)
            if context.flow.name == "training":
                helper_process.submit(importlib.import_module, "great_expectations")
        yield
