"""A process record names a process in a file: by its pid and its start time, since the system reuses pids."""

from pydantic import BaseModel, ConfigDict

from towline.processes import is_running


class ProcessRecord(BaseModel):
    """A process; ``pid`` is 0 and ``start_time`` is empty if it does not run.

    It reads the records of its subclasses too: other fields are ignored.
    """

    model_config = ConfigDict(frozen=True)

    pid: int = 0
    start_time: str = ""

    @property
    def is_running(self) -> bool:
        return is_running(self.pid, self.start_time)
