"""What a run tells while it goes on: which step, how long, and what it cost.

Steps are told through the standard logger ``towline.steps``; a terminal, a file or Prefect may listen.
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


class Cost(Frozen):
    """Wall and CPU seconds of a step, and the peak memory of its process so far in MiB."""

    step: str
    wall_s: float
    cpu_s: float
    peak_mb: float


@dataclass
class Step:
    """A step under way: ``note`` is the line shown when it ends, ``folder`` where its cost is kept."""

    name: str
    note: str = ""
    folder: Path | None = None
    elsewhere_cpu_s: float = field(default=0.0)


@contextmanager
def step(name: str, folder: Path | None = None) -> Iterator[Step]:
    """Times a block and tells its begin and its end; its cost goes to ``folder/costs-<name>.json``."""
    current = Step(name, folder=folder)
    log.info("%s …", name, extra={"step": name, "status": "begin"})
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield current
    except BaseException as error:
        told = getattr(error, "what", type(error).__name__)
        log.info("%s failed: %s", name, told, extra={"step": name, "status": "failed", "note": told})
        raise
    seconds = time.perf_counter() - wall
    cost = Cost(
        step=name,
        wall_s=round(seconds, 3),
        cpu_s=round(time.process_time() - cpu + current.elsewhere_cpu_s, 3),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )
    if current.folder:
        (current.folder / f"costs-{name.replace(' ', '-')}.json").write_text(cost.model_dump_json())
    extra = {"step": name, "status": "done", "note": current.note, "seconds": seconds}
    log.info("%s done in %.1f s%s", name, seconds, f": {current.note}" if current.note else "", extra=extra)


def costs(folder: Path) -> dict[str, dict[str, float]]:
    """The costs of every step that has ended in a workspace, by step."""
    kept = [Cost.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("costs-*.json"))]
    return {cost.step: cost.model_dump(exclude={"step"}) for cost in kept}
