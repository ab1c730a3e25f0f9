"""Requests joined into one call: those of one turn of the event loop, or, behind sklearn, while it is busy."""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from towline.inference.scorer import RowPredictions
from towline.serving.problems import Problem

if TYPE_CHECKING:
    from towline.inference.predictor import Model

MAX_QUEUED_ROWS = 20_000  # rows that may wait
MAX_BATCH_REQUESTS = 64  # requests that are joined on the event loop
MAX_BATCH_ROWS = 1_000  # rows of one call, if it joins requests


class _Job(NamedTuple):
    model: "Model"
    rows: list[list[Any]]
    done: "asyncio.Future[RowPredictions]"


class ThreadBatcher:
    """For models that sklearn answers: one thread scores, in the order of arrival, the rows of one model in each call.

    Args:
        queued: how many rows may wait before more are refused.
        joined: up to how many rows requests are joined.
    """

    def __init__(self, queued: int = MAX_QUEUED_ROWS, joined: int = MAX_BATCH_ROWS) -> None:
        self._queued, self._joined = queued, joined
        self._jobs: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="towline-score")
        self._runner: asyncio.Task[None] | None = None
        self.depth = 0  # rows waiting

    async def score(self, model: "Model", rows: list[list[Any]]) -> RowPredictions:
        """What ``model.score(rows)`` gives.

        Raises:
            Problem: too many rows wait.
        """
        if self.depth and self.depth + len(rows) > self._queued:
            raise Problem("busy", f"{self.depth:,} rows wait for an answer", headers=((b"retry-after", b"1"),))
        loop = asyncio.get_running_loop()
        job = _Job(model, rows, loop.create_future())
        self._jobs.append(job)
        self.depth += len(rows)
        if self._runner is None or self._runner.done():
            self._runner = loop.create_task(self._run())
        return await job.done

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._jobs:
            jobs = self._take()
            try:
                answers = await loop.run_in_executor(self._thread, _score_jobs, jobs)
            except Exception as error:  # noqa: BLE001 - told to each that waits; the thread is gone
                answers = [error] * len(jobs)
            _set_results(jobs, answers)

    def _take(self) -> list[_Job]:
        """The oldest job, and those behind it that are of the same model and still fit in."""
        jobs = [self._jobs.popleft()]
        rows = len(jobs[0].rows)
        while self._jobs and self._jobs[0].model is jobs[0].model and rows + len(self._jobs[0].rows) <= self._joined:
            jobs.append(self._jobs.popleft())
            rows += len(jobs[-1].rows)
        self.depth -= rows
        return jobs


class MicroBatcher:
    """Joins requests of turns of the event loop that follow each other: they share what any call costs."""

    def __init__(self) -> None:
        self._jobs: list[_Job] = []
        self._seen = 0

    def score(self, model: "Model", rows: list[list[Any]]) -> "asyncio.Future[RowPredictions]":
        """What ``model.score(rows)`` gives, after the first turn that brings no more, or when there are enough."""
        loop = asyncio.get_running_loop()
        if not self._jobs:
            loop.call_soon(self._run, loop)
        job = _Job(model, rows, loop.create_future())
        self._jobs.append(job)
        return job.done

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._seen < len(self._jobs) < MAX_BATCH_REQUESTS:
            self._seen = len(self._jobs)
            loop.call_soon(self._run, loop)
            return
        jobs, self._jobs, self._seen = self._jobs, [], 0
        for _, group in groupby(jobs, lambda job: id(job.model)):  # two, while one takes the other's place
            together = list(group)
            _set_results(together, _score_jobs(together))


def _set_results(jobs: list[_Job], answers: Sequence[RowPredictions | Exception]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.done.cancelled():
            continue
        if isinstance(answer, Exception):
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)


def _score_jobs(jobs: list[_Job]) -> list[RowPredictions | Exception]:
    """One answer or error for each job; rows that cannot be answered spoil nobody else's."""
    try:
        answer = jobs[0].model.predict_canonical([row for job in jobs for row in job.rows])
    except Exception as error:  # noqa: BLE001 - goes to whom it concerns
        return [error] if len(jobs) == 1 else [_score_jobs([job])[0] for job in jobs]
    parts: list[RowPredictions | Exception] = []
    start = 0
    for job in jobs:
        end = start + len(job.rows)
        shares = None if answer.probabilities is None else answer.probabilities[start:end]
        parts.append(RowPredictions(answer.predictions[start:end], shares))
        start = end
    return parts
