"""The two versions of a rollout in one service: which of them answers a row, and the failures of the challenger.

The champion answers whatever the challenger cannot: a client never gets an error because of a rollout.
"""

import asyncio
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from towline.data.schema.rows import Row
from towline.data.schema.values import category_name
from towline.inference.scorer import RowPredictions, check_finite
from towline.registry.rollouts import Rollout
from towline.rollout.assignment import position
from towline.rollout.service_counts import (
    ServiceCounts,
    read_counts,
    stop_challenger,
    stop_reason,
    write_counts,
)
from towline.serving.shadow_answers import ShadowQueue, ShadowRows

if TYPE_CHECKING:
    from towline.inference.predictor import Model
    from towline.prediction_log.shadow_log import ShadowLog

WARNING_INTERVAL_S = 60.0  # between two warnings that counts cannot be exchanged
INTERVAL_S = 0.5  # between two exchanges of counts with other workers
TIMEOUT_S = 1.0  # after which the champion answers instead of a challenger that is not compiled
MAX_TIMED_ROWS = 8  # rows up to which the durations of two requests are comparable
SLOW_FACTOR, SLOW_MARGIN_S = 1.5, 0.0005  # beyond the champion's median; less does not matter to a client
NEAR = 0.1  # relative difference up to which two numbers agree
_DURATIONS = 512  # latest durations of the champion, from which the median is taken
_MIN_DURATIONS = 100
_logger = logging.getLogger("towline.serving")

Rows = Sequence[Mapping[str, Any]]
Score = Callable[["Model", list[Row]], Awaitable[RowPredictions]]


class ActiveRollout(NamedTuple):
    """The rollout that a service carries out, and the model of its challenger; replaced as a whole.

    Attributes:
        rollout: as the ledger records it.
        challenger: its model.
        folder: of its counts and its shadow log.
    """

    rollout: Rollout
    challenger: "Model"
    folder: Path


class Answer(NamedTuple):
    """The predictions for the rows of a request.

    Attributes:
        predictions: in the order of the rows.
        model: that answered the rows; the champion if both did.
        versions: the version that answered each row, if both did.
    """

    predictions: RowPredictions
    model: "Model"
    versions: tuple[int, ...] = ()


class RolloutArms:
    """The rollout in one worker.

    Args:
        score: scores canonical rows with the champion.
        score_challenger: the same for the challenger, which must not delay the champion.
        worker: names this process in the folder of a rollout.
    """

    def __init__(self, score: Score, score_challenger: Score, worker: str) -> None:
        self._score, self._score_challenger, self._worker = score, score_challenger, worker
        self._id = ""
        self._folder: Path | None = None
        self._active: ActiveRollout | None = None
        self.counts = ServiceCounts()
        self._others = ServiceCounts()
        self._stopped = ""
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._slow_limit = math.inf
        self._shadow = ShadowQueue()
        self._shadow_log: ShadowLog | None = None
        self._saved = ServiceCounts()

    @property
    def stopped(self) -> str:
        """Why the challenger does not answer any more; empty if it may."""
        return self._stopped

    def count_rows(self) -> dict[tuple[str, str], int]:
        """Rows by arm and outcome: answered to clients, failed, compared in shadow, with another answer."""
        if not self._id:
            return {}
        counts = self.counts
        return {
            ("champion", "answered"): counts.champion_rows,
            ("challenger", "answered"): counts.challenger_rows,
            ("challenger", "failed"): counts.failures,
            ("challenger", "compared"): counts.compared,
            ("challenger", "disagreed"): counts.disagreements,
        }

    async def answer(
        self, active: ActiveRollout, champion: "Model", rows: Rows, canonical: list[Row], request_id: str, pin: int = 0
    ) -> Answer:
        """The predictions for the rows of a request, each by the version to which it is assigned.

        Args:
            active: the rollout.
            champion: its model.
            rows: of the request.
            canonical: the rows as the champion reads them.
            request_id: key of the assignment if there is no column for it.
            pin: version that answers all rows; 0: as assigned.

        Raises:
            Exception: the champion fails.
        """
        self._follow(active)
        chosen = self._assign(active, rows, request_id, pin)
        if not chosen:
            predictions = await self._ask_champion(champion, canonical)
            self._queue_shadow(active.challenger, request_id, 0, rows, predictions.predictions)
            return Answer(predictions, champion)
        answer = await self._ask_challenger(active, [rows[row] for row in chosen])
        if answer is None:
            return Answer(await self._ask_champion(champion, canonical), champion)
        if len(chosen) == len(rows):
            self._queue_shadow(champion, request_id, 0, rows, answer.predictions)
            return Answer(answer, active.challenger)
        chosen_set = set(chosen)
        others = [row for row in range(len(rows)) if row not in chosen_set]
        rest = await self._ask_champion(champion, [canonical[row] for row in others])
        merged = _merge(len(rows), (chosen, answer), (others, rest))
        challenger = active.rollout.challenger
        versions = tuple(challenger if row in chosen_set else champion.version for row in range(len(rows)))
        for first, end, version in runs(versions):
            shadow = champion if version == challenger else active.challenger
            self._queue_shadow(shadow, request_id, first, rows[first:end], merged.predictions[first:end])
        return Answer(merged, champion, versions)

    async def run_periodically(self, current: Callable[[], ActiveRollout | None]) -> None:
        """Makes shadow answers and exchanges counts until it is cancelled."""
        loop, exchanged, warned = asyncio.get_running_loop(), 0.0, -WARNING_INTERVAL_S
        while True:
            await asyncio.sleep(0.02 if self._shadow else INTERVAL_S / 2)
            try:
                if (active := current()) is not None:
                    self._follow(active)
                await self._shadow.answer(self._record_shadow)
                is_used = active is not None or self.counts != self._saved
                if is_used and time.monotonic() - exchanged >= INTERVAL_S:
                    exchanged = time.monotonic()
                    await loop.run_in_executor(None, self.exchange)  # a disk that is slow delays no request
            except Exception as error:  # noqa: BLE001 - a rollout must not end the service
                if time.monotonic() - warned >= WARNING_INTERVAL_S:
                    warned = time.monotonic()
                    _logger.warning("the counts of the rollout are not shared with other workers: %s", error)

    def exchange(self) -> None:
        """Writes the counts of this worker, reads those of the others, and stops a challenger that fails."""
        active = self._active
        if active is None or self._folder is None:
            return
        if self._shadow_log is not None:
            self._shadow_log.flush()
        if self.counts != self._saved:
            write_counts(self._folder, self._worker, self.counts)
            self._saved = ServiceCounts() + self.counts
        self._others = read_counts(self._folder, without=self._worker)
        self._stopped = self._stopped or stop_reason(self._folder)
        self._check_challenger(active)
        if len(self._durations) >= _MIN_DURATIONS:
            usual = statistics.median(list(self._durations))
            self._slow_limit = max(usual * SLOW_FACTOR, usual + SLOW_MARGIN_S)

    def close(self) -> None:
        """Writes what is in memory."""
        self.exchange()
        if self._shadow_log is not None:
            self._shadow_log.close()

    def _follow(self, active: ActiveRollout) -> None:
        """Begins to count for another rollout."""
        self._active = active
        if active.rollout.id == self._id:
            return
        from towline.prediction_log.shadow_log import ShadowLog

        if self._shadow_log is not None:
            self._shadow_log.close()
        self._id, self._folder = active.rollout.id, active.folder
        self.counts, self._others, self._saved = ServiceCounts(), ServiceCounts(), ServiceCounts()
        self._stopped = stop_reason(active.folder)
        self._shadow.clear()
        self._durations.clear()
        self._slow_limit = math.inf
        self._shadow_log = ShadowLog(active.folder / "shadow", self._worker)

    def _assign(self, active: ActiveRollout, rows: Rows, request_id: str, pin: int) -> list[int]:
        """The numbers of the rows that the challenger answers."""
        rollout = active.rollout
        weight, key = rollout.weight, rollout.config.key
        if pin:
            weight = 1.0 if pin == rollout.challenger else 0.0
        elif self._stopped:
            weight = 0.0
        elif key is None:  # one arm for the whole request
            by_challenger = position(request_id, rollout.id) < weight
            self.counts.challenger_requests += by_challenger
            self.counts.champion_requests += not by_challenger
            return list(range(len(rows))) if by_challenger else []
        if weight <= 0.0 or key is None:
            return list(range(len(rows))) if weight >= 1.0 else []
        if weight >= 1.0:
            return list(range(len(rows)))
        keys = (category_name(row.get(key)) for row in rows)
        return [
            number
            for number, value in enumerate(keys)
            if position(request_id if value is None else value, rollout.id) < weight
        ]

    async def _ask_champion(self, champion: "Model", canonical: list[Row]) -> RowPredictions:
        started = time.perf_counter()
        try:
            predictions = await self._score(champion, canonical)
        except Exception:
            self.counts.champion_errors += 1
            raise
        self.counts.champion_rows += len(canonical)
        if 0 < len(canonical) <= MAX_TIMED_ROWS:
            duration = time.perf_counter() - started
            self._durations.append(duration)
            if self._slow_limit < math.inf:
                self.counts.champion_timed += 1
                self.counts.champion_slow += duration > self._slow_limit
        return predictions

    async def _ask_challenger(self, active: ActiveRollout, rows: Rows) -> RowPredictions | None:
        """The challenger's predictions; None if it fails: the champion answers then."""
        started = time.perf_counter()
        try:
            scoring = self._score_challenger(active.challenger, active.challenger.reader.read(rows))
            # a compiled model answers on the event loop, where a limit would only cost time
            predictions = await (scoring if active.challenger.compiled else asyncio.wait_for(scoring, TIMEOUT_S))
            check_finite(predictions)
        except Exception as error:  # noqa: BLE001 - the champion answers instead
            self._count_failure(active, len(rows), error)
            return None
        duration = time.perf_counter() - started
        self.counts.challenger_rows += len(rows)
        self.counts.attempts += len(rows)
        if self._slow_limit < math.inf and len(rows) <= MAX_TIMED_ROWS:
            self.counts.timed += 1
            self.counts.slow += duration > self._slow_limit
        return predictions

    def _count_failure(self, active: ActiveRollout, rows: int, error: Exception) -> None:
        if not self.counts.failures:
            _logger.error("version %d failed: %s: %s", active.rollout.challenger, type(error).__name__, error)
        self.counts.attempts += rows
        self.counts.failures += rows
        self._check_challenger(active)

    def _check_challenger(self, active: ActiveRollout) -> None:
        if self._stopped:
            return
        total = self.counts + self._others
        if fault := total.fault(active.rollout.config):
            self._stopped = fault
            _logger.error("version %d does not answer any more: %s", active.rollout.challenger, fault)
            stop_challenger(active.folder, fault)

    def _queue_shadow(self, model: "Model", request_id: str, first: int, rows: Rows, predictions: list[Any]) -> None:
        if self._stopped or (self._active is not None and self._active.rollout.config.strategy == "ab"):
            return
        if not self._shadow.add(ShadowRows(model, request_id, time.time(), first, rows, predictions)):
            self.counts.skipped += len(rows)

    def _record_shadow(self, part: ShadowRows, result: RowPredictions | Exception) -> None:
        active = self._active
        if active is None or self._shadow_log is None:
            return
        by_challenger = part.model is active.challenger
        if isinstance(result, Exception):
            if by_challenger:
                self.counts.shadow_attempts += len(part.rows)
                self.counts.shadow_failures += len(part.rows)
                self._count_failure(active, len(part.rows), result)
            return
        self.counts.attempts += len(part.rows) if by_challenger else 0
        self.counts.shadow_attempts += len(part.rows) if by_challenger else 0
        self.counts.compared += len(part.rows)
        self.counts.disagreements += sum(map(differ, part.predictions, result.predictions))
        self._shadow_log.add(part.request_id, part.at, part.model, part.first, result)


def runs(versions: Sequence[int]) -> list[tuple[int, int, int]]:
    """Start, end (excluded) and version of each run of equal versions."""
    result, start = [], 0
    for version, group in groupby(versions):
        end = start + len(list(group))
        result.append((start, end, version))
        start = end
    return result


def differ(first: Any, second: Any) -> bool:
    """Whether two predictions disagree: other labels, or numbers that differ by more than 10 % of the larger one."""
    if first.__class__ is float and second.__class__ is float:
        return bool(abs(first - second) > NEAR * max(abs(first), abs(second)))
    return bool(first != second)


def _merge(count: int, *parts: tuple[Sequence[int], RowPredictions]) -> RowPredictions:
    predictions: list[Any] = [None] * count
    probabilities: list[list[float]] = [[]] * count
    for numbers, answer in parts:
        for place, number in enumerate(numbers):
            predictions[number] = answer.predictions[place]
            if answer.probabilities is not None:
                probabilities[number] = answer.probabilities[place]
    has_probabilities = any(answer.probabilities is not None for _, answer in parts)
    return RowPredictions(predictions, probabilities if has_probabilities else None)
