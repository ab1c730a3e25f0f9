"""Micro-batching: scores the rows of several requests in one call of the model, so that they share its fixed cost.

A compiled model scores on the event loop: ``MicroBatcher`` joins the requests of consecutive loop iterations. A
scikit-learn pipeline scores on a thread: ``ThreadBatcher`` joins the requests that arrive while the thread is busy.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from towline.inference.scorer import RowPredictions, split_predictions
from towline.serving.problems import Problem

if TYPE_CHECKING:
    from towline.inference.predictor import Model

MAX_QUEUED_ROWS = 20_000  # rows that may wait for the thread
MAX_BATCH_REQUESTS = 64  # requests of one batch on the event loop
MAX_BATCH_ROWS = 1_000  # rows of one call, if it joins several requests


class _Job(NamedTuple):
    model: "Model"
    rows: list[list[Any]]
    done: "asyncio.Future[RowPredictions]"


class ThreadBatcher:
    """Scores on one thread, in the order of arrival; each call scores rows of one model.

    Args:
        max_queued: rows that may wait before further requests are refused.
        max_batch: rows up to which waiting requests are joined.
    """

    def __init__(self, max_queued: int = MAX_QUEUED_ROWS, max_batch: int = MAX_BATCH_ROWS) -> None:
        self._max_queued, self._max_batch = max_queued, max_batch
        self._jobs: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="towline-score")
        self._runner: asyncio.Task[None] | None = None
        self.depth = 0  # rows waiting

    async def score(self, model: "Model", rows: list[list[Any]]) -> RowPredictions:
        """The predictions of canonical rows.

        Raises:
            Problem: too many rows wait.
        """
        if self.depth and self.depth + len(rows) > self._max_queued:
            raise Problem("busy", f"{self.depth:,} rows wait to be scored", headers=((b"retry-after", b"1"),))
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
            jobs = self._next_batch()
            try:
                answers = await loop.run_in_executor(self._thread, _score_jobs, jobs)
            except Exception as error:  # noqa: BLE001 - each waiting request gets it; the thread has ended
                answers = [error] * len(jobs)
            _set_results(jobs, answers)

    def _next_batch(self) -> list[_Job]:
        """The oldest job, and the next ones of the same model that fit into the batch."""
        jobs = [self._jobs.popleft()]
        rows = len(jobs[0].rows)
        while self._jobs and self._jobs[0].model is jobs[0].model and rows + len(self._jobs[0].rows) <= self._max_batch:
            jobs.append(self._jobs.popleft())
            rows += len(jobs[-1].rows)
        self.depth -= rows
        return jobs


class MicroBatcher:
    """Scores on the event loop; joins the requests of consecutive loop iterations into one call."""

    def __init__(self) -> None:
        self._jobs: list[_Job] = []
        self._previous_count = 0

    def score(self, model: "Model", rows: list[list[Any]]) -> "asyncio.Future[RowPredictions]":
        """The predictions of canonical rows; scored after the first iteration without a new request, or when full."""
        loop = asyncio.get_running_loop()
        if not self._jobs:
            loop.call_soon(self._run, loop)
        job = _Job(model, rows, loop.create_future())
        self._jobs.append(job)
        return job.done

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._previous_count < len(self._jobs) < MAX_BATCH_REQUESTS:
            self._previous_count = len(self._jobs)
            loop.call_soon(self._run, loop)
            return
        jobs, self._jobs, self._previous_count = self._jobs, [], 0
        for _, group in groupby(jobs, lambda job: id(job.model)):  # two models while one replaces the other
            batch = list(group)
            _set_results(batch, _score_jobs(batch))


def _set_results(jobs: list[_Job], answers: Sequence[RowPredictions | Exception]) -> None:
    for job, answer in zip(jobs, answers, strict=True):
        if job.done.cancelled():
            continue
        if isinstance(answer, Exception):
            job.done.set_exception(answer)
        else:
            job.done.set_result(answer)


def _score_jobs(jobs: list[_Job]) -> list[RowPredictions | Exception]:
    """One result or error per job; an error in one request does not fail the others."""
    try:
        answer = jobs[0].model.predict_canonical([row for job in jobs for row in job.rows])
    except Exception as error:  # noqa: BLE001 - becomes the result of the job that caused it
        return [error] if len(jobs) == 1 else [_score_jobs([job])[0] for job in jobs]
    return [*split_predictions(answer, (len(job.rows) for job in jobs))]
