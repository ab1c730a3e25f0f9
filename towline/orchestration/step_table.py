"""A step table lists the steps of a flow run with their status, duration and note, as a table artifact in Prefect.

The process of a run writes it (``publish_steps``); a caller that waits for the run on another machine reads it and logs
each step as if it ran there (``StepTableReader``). Prefect's own task runs have names and states, but no notes.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.exceptions import PrefectHTTPStatusError

from towline import steps

_FIELDS = ("step", "status", "seconds", "note")


@contextmanager
def publish_steps(flow_name: str, flow_run_id: UUID) -> Iterator[None]:
    """Keeps the step table of a run up to date while the block runs."""
    writer = _StepTableWriter(flow_name, flow_run_id)
    level = steps.log.level
    steps.log.setLevel(logging.INFO)
    steps.log.addHandler(writer)
    try:
        yield
    finally:
        steps.log.removeHandler(writer)
        steps.log.setLevel(level)


class _StepTableWriter(logging.Handler):
    def __init__(self, flow_name: str, flow_run_id: UUID) -> None:
        super().__init__()
        self._key, self._flow_run_id = _key(flow_name), flow_run_id
        self._rows: list[dict[str, Any]] = []
        self._artifact_id: UUID | None = None

    def emit(self, record: logging.LogRecord) -> None:
        row = {name: record.__dict__.get(name) for name in _FIELDS}
        if row["status"] != "begin" and self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1] = row
        else:
            self._rows.append(row)
        data = json.dumps(self._rows, ensure_ascii=False)
        try:
            with get_client(sync_client=True) as client:
                if self._artifact_id is None:
                    artifact = ArtifactCreate(
                        key=self._key, type="table", data=data, description="steps", flow_run_id=self._flow_run_id
                    )
                    self._artifact_id = client.create_artifact(artifact).id
                else:
                    client.update_artifact(self._artifact_id, ArtifactUpdate(data=data))
        except (httpx.TransportError, PrefectHTTPStatusError):  # the run must not fail because of its watcher
            logging.getLogger("towline").debug("the step table is not updated", exc_info=True)


class StepTableReader:
    """Logs the steps of a run on another machine through ``towline.steps``, each begin and each end once."""

    def __init__(self, client: SyncPrefectClient, flow_name: str, flow_run_id: UUID) -> None:
        self._client = client
        of_run = {"flow_run_id": {"any_": [flow_run_id]}, "key": {"any_": [_key(flow_name)]}}
        self._filter = ArtifactFilter.model_validate(of_run)
        self._logged: list[dict[str, Any]] = []

    def log_new_steps(self) -> None:
        artifacts = self._client.read_artifacts(artifact_filter=self._filter)
        rows: list[dict[str, Any]] = json.loads(str(artifacts[0].data)) if artifacts else []
        for number, row in enumerate(rows):
            is_new = number >= len(self._logged)
            if is_new:
                self._logged.append({**row, "status": "begin"})
                steps.log.info("%s …", row["step"], extra={"step": row["step"], "status": "begin"})
            if row["status"] != self._logged[number]["status"]:
                self._logged[number] = row
                extra = {name: value for name, value in row.items() if value is not None}
                steps.log.info("%s %s", row["step"], row["status"], extra=extra)


def _key(flow_name: str) -> str:
    return f"{flow_name}-steps"
