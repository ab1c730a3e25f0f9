"""What a flow run needs that a scheduler started in a process of its own, and one from the command line has already."""

import importlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext

from towline import sidecar
from towline.config import Settings
from towline.processes import born, tie

SCHEDULER = "_TOWLINE_SCHEDULER"  # its pid, for the runs that it starts


def whose(pid: int) -> tuple[str, str]:
    """Tags of a flow run that say which process does it, and on which machine."""
    return f"host:{socket.gethostname()}", f"process:{pid}:{born(pid)}"


@contextmanager
def attended() -> Iterator[None]:
    """The second process for slow imports, a process that is known and that ends with its scheduler.

    A flow within this one, and one from the command line, is left as it is.
    """
    scheduler, context = os.environ.pop(SCHEDULER, ""), FlowRunContext.get()
    if context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None:
        logging.getLogger("towline").setLevel(logging.INFO)  # who waits for the run sees its steps
    if not scheduler or context is None or context.flow_run is None:
        yield
        return
    tie(int(scheduler), signal.SIGKILL)
    run = context.flow_run
    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, tags=[*run.tags, *whose(os.getpid())])
    sidecar.start(Settings.from_environment().layout.log())
    if context.flow is not None and context.flow.name == "training":
        sidecar.begin(importlib.import_module, "great_expectations")
    try:
        yield
    finally:
        sidecar.stop()
