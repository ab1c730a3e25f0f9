"""A step is a named, timed part of a run. Its begin and end are logged with its duration, note and cost.

Records go to the logger ``towline.steps``, with the fields ``step``, ``status`` (begin, done or failed), ``seconds``
and ``note`` as attributes; the terminal, the log file and Prefect read them there.
"""

import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from towline.config import Frozen

log = logging.getLogger("towline.steps")


class StepCost(Frozen):
    """Wall and CPU seconds of a step, and the peak memory of its process so far in MiB."""

    step: str
    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass
class RunningStep:
    """A step under way.

    Attributes:
        name: of the step.
        note: the line that is logged when the step ends.
        folder: of the workspace, where the step's cost is written.
        helper_cpu_s: CPU seconds that the step used in the helper process.
    """

    name: str
    note: str = ""
    folder: Path | None = None
    helper_cpu_s: float = field(default=0.0)


@contextmanager
def step(name: str, folder: Path | None = None) -> Iterator[RunningStep]:
    """Logs and times a block; writes its cost to ``folder/costs-<name>.json``."""
    running = RunningStep(name, folder=folder)
    log.info("%s …", name, extra={"step": name, "status": "begin"})
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield running
    except BaseException as error:
        reason = getattr(error, "what", type(error).__name__)
        log.info("%s failed: %s", name, reason, extra={"step": name, "status": "failed", "note": reason})
        raise
    seconds = time.perf_counter() - wall
    cost = StepCost(
        step=name,
        wall_s=round(seconds, 3),
        cpu_s=round(time.process_time() - cpu + running.helper_cpu_s, 3),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
    if running.folder:
        (running.folder / f"costs-{name.replace(' ', '-')}.json").write_text(cost.model_dump_json())
    extra = {"step": name, "status": "done", "note": running.note, "seconds": seconds}
    log.info("%s done in %.1f s%s", name, seconds, f": {running.note}" if running.note else "", extra=extra)


def costs(folder: Path) -> dict[str, dict[str, float]]:
    """The costs of the completed steps of a workspace, by step."""
    records = [StepCost.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("costs-*.json"))]
    return {cost.step: cost.model_dump(exclude={"step"}) for cost in records}
