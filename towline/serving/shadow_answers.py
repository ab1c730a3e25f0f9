"""Shadow answers: the version that did not answer a client answers the same rows, after the response.

They take at most ``SHADOW_SHARE`` of a worker's time, and ``BUSY_SHARE`` while requests follow each other without a
pause, so they do not slow down requests. Rows that find the queue full are skipped and counted.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from towline.inference.scorer import RowPredictions, split_predictions

if TYPE_CHECKING:
    from towline.inference.predictor import Model

SHADOW_SHARE, BUSY_SHARE = 0.05, 0.01
PAUSE_S = 0.005  # without a request, after which a worker is not busy
MAX_WAITING_ROWS = 2_000
_BATCH_ROWS = 64
MAX_INLINE_ROWS = 128  # of a batch on the event loop
_TURN_S = 0.25


class ShadowRows(NamedTuple):
    """Consecutive rows of a request that wait for their shadow answers.

    Attributes:
        model: that answers them in shadow.
        request_id: of the request.
        at: time of the request in seconds since 1970.
        first: number of the first row in the request.
        rows: the rows.
        predictions: of the version that answered the client.
    """

    model: "Model"
    request_id: str
    at: float
    first: int
    rows: Sequence[Mapping[str, Any]]
    predictions: list[Any]


Record = Callable[[ShadowRows, RowPredictions | Exception], None]


class ShadowQueue:
    """The rows that wait for shadow answers in one worker."""

    def __init__(self) -> None:
        self._waiting: deque[ShadowRows] = deque()
        self._count = 0
        self._last_request = 0.0
        self._paused_until = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def has_room(self, rows: int, at: float) -> bool:
        """Whether ``rows`` further rows of a request may wait; ``at`` is its time in seconds since 1970."""
        self._last_request = at
        return self._count + rows <= MAX_WAITING_ROWS

    def add(self, part: ShadowRows) -> None:
        """Queues rows."""
        self._waiting.append(part)
        self._count += len(part.rows)

    async def answer(self, record: Record) -> None:
        """Answers rows that wait, for ``_TURN_S``; pauses between batches to stay within the share of time.

        Args:
            record: called with each part and its answer, or the error of the model.
        """
        end = time.monotonic() + _TURN_S
        while self._waiting and (now := time.monotonic()) < end:
            if now < self._paused_until:  # a pause may be longer than a turn: the caller has other work
                await asyncio.sleep(min(self._paused_until, end) - now)
                continue
            is_busy = time.time() - self._last_request < PAUSE_S
            batch = self._next_batch()
            if batch[0].model.compiled and sum(len(part.rows) for part in batch) <= MAX_INLINE_ROWS:
                results = _answer_batch(batch)
            else:
                results = await asyncio.get_running_loop().run_in_executor(None, _answer_batch, batch)
            for part, result in zip(batch, results, strict=True):
                record(part, result)
            finished, share = time.monotonic(), BUSY_SHARE if is_busy else SHADOW_SHARE
            self._paused_until = finished + (finished - now) * (1 / share - 1)

    def _next_batch(self) -> list[ShadowRows]:
        """The oldest rows, and the next ones for the same model that fit into the batch."""
        batch = [self._waiting.popleft()]
        rows = len(batch[0].rows)
        while self._waiting and self._waiting[0].model is batch[0].model and rows < _BATCH_ROWS:
            batch.append(self._waiting.popleft())
            rows += len(batch[-1].rows)
        self._count -= rows
        return batch


def _answer_batch(batch: Sequence[ShadowRows]) -> list[RowPredictions | Exception]:
    """One result or error for each part; an error in one part does not fail the others."""
    try:
        answer = batch[0].model.predict_rows([row for part in batch for row in part.rows])
    except Exception as error:  # noqa: BLE001 - is counted
        return [error] if len(batch) == 1 else [_answer_batch([part])[0] for part in batch]
    return [*split_predictions(answer, (len(part.rows) for part in batch))]
