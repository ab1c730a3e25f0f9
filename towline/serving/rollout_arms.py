"""The two versions of a rollout in one service: the assignment of rows, and the failures of the challenger.

The champion answers if the challenger fails: a client never gets an error because of a rollout.
"""

import asyncio
import contextlib
import logging
import math
import statistics
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from towline.data.schema.rows import Row
from towline.data.schema.values import category_name
from towline.errors import TowlineError
from towline.inference.scorer import RowPredictions, find_nonfinite, slice_predictions
from towline.prediction_log.shadow_log import ShadowLog
from towline.registry.rollouts import Rollout
from towline.rollout.assignment import key_position
from towline.rollout.service_counts import ServiceCounts, read_counts, stop_challenger, stop_reason, write_counts
from towline.serving.rollout_fields import FieldsOfBoth, needs_other_fields
from towline.serving.shadow_answers import MAX_INLINE_ROWS, ShadowQueue, ShadowRows

if TYPE_CHECKING:
    from towline.inference.predictor import Model

WARNING_INTERVAL_S = 60.0  # between two warnings that counts cannot be exchanged
EXCHANGE_INTERVAL_S = 0.5  # between two exchanges of counts with other workers
TIMEOUT_S = 1.0  # after which the champion answers instead of a challenger that is not compiled
MAX_TIMED_ROWS = 8  # rows up to which the durations of two requests are comparable
SLOW_FACTOR, SLOW_MARGIN_S = 1.5, 0.0005  # beyond the champion's median; less does not matter to a client
AGREEMENT_TOLERANCE = 0.1  # relative difference up to which two numbers agree
_DURATIONS = 512  # latest durations of the champion, from which the median is taken
_MIN_DURATIONS = 100
_RECENT_IDS = 20_000  # latest request ids of which a repetition is recognised
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


class AnsweredRows(NamedTuple):
    """Consecutive rows of a request that one version answered: from ``first`` to ``end``, which is not included."""

    first: int
    end: int
    model: "Model"


class RolloutAnswer(NamedTuple):
    """The predictions for the rows of a request, and which version answered which rows."""

    predictions: RowPredictions
    parts: tuple[AnsweredRows, ...]

    @property
    def versions(self) -> tuple[int, ...]:
        """The version that answered each row, if two versions did; else that version."""
        if len(self.parts) == 1:
            return (self.parts[0].model.version,)
        return tuple(part.model.version for part in self.parts for _ in range(part.first, part.end))


class RolloutArms:
    """One rollout in one worker.

    Args:
        active: the rollout.
        score: scores canonical rows with the champion.
        score_challenger: the same for the challenger, which must not delay the champion.
        worker: names this process in the folder of the rollout.

    Attributes:
        active: the rollout; its weight may change.
        is_shadow_only: whether the champion answers all requests that do not name a version.
        counts: of this worker.
        stopped: why the challenger does not answer any more; empty if it may.
        champion_header: of an answer of the champion.
    """

    def __init__(self, active: ActiveRollout, score: Score, score_challenger: Score, worker: str) -> None:
        self.counts, self._written, self._other_workers = ServiceCounts(), ServiceCounts(), ServiceCounts()
        self.follow(active)
        self.stopped = stop_reason(active.folder)
        self.shadow = ShadowQueue()
        self._score, self._score_challenger, self._worker = score, score_challenger, worker
        self._shadow_log = ShadowLog(active.folder / "shadow", worker)
        self.champion_header = ((b"x-towline-version", str(active.rollout.champion).encode()),)
        self._fields_of: tuple[Model, Model, FieldsOfBoth | None] | None = None
        self._durations: deque[float] = deque(maxlen=_DURATIONS)
        self._slow_limit = math.inf

    def follow(self, active: ActiveRollout) -> None:
        """Takes the state of the rollout, whose weight may have changed."""
        self.active = active
        self.is_shadow_only, self._has_no_key = active.rollout.weight == 0, active.rollout.config.key is None
        self._assigned = self.counts.at_weight(active.rollout.weight)
        self._recent_ids: OrderedDict[str, None] = OrderedDict()

    async def answer(
        self, champion: "Model", rows: Rows, canonical: list[Row], request_id: str, pin: int = 0
    ) -> RolloutAnswer:
        """The predictions for the rows of a request, each by the version to which it is assigned.

        Args:
            champion: its model.
            rows: of the request.
            canonical: the rows as the champion reads them.
            request_id: key of the assignment if there is no column for it.
            pin: version that answers all rows; 0: as assigned.

        Raises:
            Exception: the champion fails.
        """
        challenger = self.active.challenger
        chosen = self._assign(rows, request_id, pin)
        if not chosen:
            predictions = await self._predict_with_champion(champion, canonical)
            self._queue_shadow(challenger, request_id, 0, rows, predictions)
            return RolloutAnswer(predictions, (AnsweredRows(0, len(rows), champion),))
        answer = await self._predict_with_challenger([rows[row] for row in chosen])
        if isinstance(answer, Exception):
            predictions = await self._predict_with_champion(champion, canonical)
            if not find_nonfinite(predictions):  # else the rows are at fault
                self._count_failure(len(chosen), answer)
            return RolloutAnswer(predictions, (AnsweredRows(0, len(rows), champion),))
        if len(chosen) == len(rows):
            self._queue_shadow(champion, request_id, 0, rows, answer)
            return RolloutAnswer(answer, (AnsweredRows(0, len(rows), challenger),))
        is_chosen = [False] * len(rows)
        for row in chosen:
            is_chosen[row] = True
        others = [row for row, by_challenger in enumerate(is_chosen) if not by_challenger]
        rest = await self._predict_with_champion(champion, [canonical[row] for row in others])
        merged = _merge(len(rows), (chosen, answer), (others, rest))
        parts = tuple(
            AnsweredRows(first, end, challenger if by_challenger else champion)
            for first, end, by_challenger in _group(is_chosen)
        )
        for part in parts:
            other = champion if part.model is challenger else challenger
            predictions = slice_predictions(merged, part.first, part.end)
            self._queue_shadow(other, request_id, part.first, rows[part.first : part.end], predictions)
        return RolloutAnswer(merged, parts)

    def queue_for_challenger(self, request_id: str, at: float, rows: Rows, predictions: RowPredictions) -> None:
        """Counts a request that the champion has answered in shadow only, and queues its rows for the challenger.

        Args:
            request_id: of the request.
            at: time of the request in seconds since 1970.
            rows: of the request.
            predictions: finite ones.
        """
        counts, count = self.counts, len(rows)
        self._assigned[0] += self._has_no_key and self._is_new(request_id)
        counts.champion_rows += count
        counts.champion_attempts += 1
        if self.stopped:
            return
        if self.shadow.has_room(count, at):
            self.shadow.add(ShadowRows(self.active.challenger, request_id, at, 0, rows, predictions.predictions))
        else:
            counts.skipped += count

    def count_champion_error(self) -> None:
        """Counts a request that the champion could not answer."""
        self.counts.champion_attempts += 1
        self.counts.champion_errors += 1

    def fields_of_both(self, champion: "Model") -> FieldsOfBoth | None:
        """Reads requests that must have the fields of both versions; None if the champion's fields are enough."""
        challenger = self.active.challenger
        if self.stopped or self.active.rollout.config.fields != "both":
            return None
        if self._fields_of is None or self._fields_of[0] is not champion or self._fields_of[1] is not challenger:
            needed = needs_other_fields(champion.contract, challenger.contract)
            self._fields_of = champion, challenger, FieldsOfBoth(champion, challenger) if needed else None
        return self._fields_of[2]

    def exchange(self) -> None:
        """Writes the counts of this worker, reads those of the others, and stops a challenger that fails."""
        self._shadow_log.flush()
        counts = self.counts + ServiceCounts()  # a copy: requests change the counts during the write
        if counts != self._written:
            write_counts(self.active.folder, self._worker, counts)
            self._written = counts
        self._other_workers = read_counts(self.active.folder, without=self._worker)
        self.stopped = self.stopped or stop_reason(self.active.folder)
        self._check_challenger()
        if len(self._durations) >= _MIN_DURATIONS:
            usual = statistics.median(list(self._durations))
            self._slow_limit = max(usual * SLOW_FACTOR, usual + SLOW_MARGIN_S)

    def close(self) -> None:
        """Writes the rows in memory, as far as the disk allows."""
        with contextlib.suppress(TowlineError, OSError):
            self.exchange()
        self._shadow_log.close()

    def record_shadow(self, part: ShadowRows, result: RowPredictions | Exception) -> None:
        """Counts and logs a shadow answer, or the error of the model that should have answered."""
        rows, by_challenger = len(part.rows), part.model is self.active.challenger
        if not isinstance(result, Exception) and find_nonfinite(result):
            result = NonFiniteError("an answer is not finite")
        if isinstance(result, Exception):
            if by_challenger:
                self.counts.shadow_attempts += 1
                self.counts.shadow_failures += 1
                self._count_failure(rows, result)
            return
        if by_challenger:
            self.counts.asked_rows += rows
            self.counts.attempts += 1
            self.counts.shadow_attempts += 1
        self.counts.compared += rows
        self.counts.disagreements += sum(map(disagree, part.predictions, result.predictions))
        self._shadow_log.add(part.request_id, part.at, part.model, part.first, result)

    def _assign(self, rows: Rows, request_id: str, pin: int) -> list[int]:
        """The numbers of the rows that the challenger answers."""
        rollout = self.active.rollout
        if pin:
            return list(range(len(rows))) if pin == rollout.challenger else []
        if self.stopped:
            return []
        if (key := rollout.config.key) is None:  # one arm for the whole request
            by_challenger = key_position(request_id, rollout.id) < rollout.weight
            self._assigned[by_challenger] += self._is_new(request_id)
            return list(range(len(rows))) if by_challenger else []
        values = (category_name(row.get(key)) for row in rows)
        return [
            number
            for number, value in enumerate(values)
            if key_position(request_id if value is None else value, rollout.id) < rollout.weight
        ]

    def _is_new(self, request_id: str) -> bool:
        """Whether no recent request at this weight had the id: clients may repeat ids, which have one arm."""
        is_new = request_id not in self._recent_ids
        self._recent_ids[request_id] = None
        self._recent_ids.move_to_end(request_id)
        if len(self._recent_ids) > _RECENT_IDS:
            self._recent_ids.popitem(last=False)
        return is_new

    async def _predict_with_champion(self, champion: "Model", canonical: list[Row]) -> RowPredictions:
        started = time.perf_counter()
        try:
            predictions = await self._score(champion, canonical)
        except Exception:
            self.count_champion_error()
            raise
        self.counts.champion_attempts += 1
        self.counts.champion_rows += len(canonical)
        if 0 < len(canonical) <= MAX_TIMED_ROWS:
            duration = time.perf_counter() - started
            self._durations.append(duration)
            if self._slow_limit < math.inf:
                self.counts.champion_timed += 1
                self.counts.champion_slow += duration > self._slow_limit
        return predictions

    async def _predict_with_challenger(self, rows: Rows) -> RowPredictions | Exception:
        """The challenger's predictions, or its error: the champion answers then."""
        challenger, started = self.active.challenger, time.perf_counter()
        try:
            read = challenger.reader.read
            many = len(rows) > MAX_INLINE_ROWS
            canonical = await asyncio.get_running_loop().run_in_executor(None, read, rows) if many else read(rows)
            scoring = self._score_challenger(challenger, canonical)
            # a compiled model answers on the event loop, where a limit would only cost time
            predictions = await (scoring if challenger.compiled else asyncio.wait_for(scoring, TIMEOUT_S))
        except Exception as error:  # noqa: BLE001 - the champion answers instead
            return error
        if find_nonfinite(predictions):
            return NonFiniteError("an answer is not finite")
        duration = time.perf_counter() - started
        self.counts.challenger_rows += len(rows)
        self.counts.asked_rows += len(rows)
        self.counts.attempts += 1
        if self._slow_limit < math.inf and len(rows) <= MAX_TIMED_ROWS:
            self.counts.timed += 1
            self.counts.slow += duration > self._slow_limit
        return predictions

    def _count_failure(self, rows: int, error: Exception) -> None:
        """Counts rows that failed together."""
        if not self.counts.failures:
            _logger.error("version %d failed: %s: %s", self.active.rollout.challenger, type(error).__name__, error)
        self.counts.asked_rows += rows
        self.counts.failed_rows += rows
        self.counts.attempts += 1
        self.counts.failures += 1
        self.counts.nonfinite += isinstance(error, NonFiniteError)
        self._check_challenger()

    def _check_challenger(self) -> None:
        if self.stopped:
            return
        if fault := (self.counts + self._other_workers).fault(self.active.rollout.config):
            self.stopped = fault
            _logger.error("version %d does not answer any more: %s", self.active.rollout.challenger, fault)
            stop_challenger(self.active.folder, fault)

    def _queue_shadow(
        self, model: "Model", request_id: str, first: int, rows: Rows, predictions: RowPredictions
    ) -> None:
        """Queues rows for the version that did not answer them; not those that the other one could not answer."""
        if self.stopped or self.active.rollout.config.strategy == "ab" or find_nonfinite(predictions):
            return
        at = time.time()
        if self.shadow.has_room(len(rows), at):
            self.shadow.add(ShadowRows(model, request_id, at, first, rows, predictions.predictions))
        else:
            self.counts.skipped += len(rows)


class RolloutRouter:
    """Has the ``RolloutArms`` of the current rollout, in one worker; another rollout gets new ones.

    Args:
        score: scores canonical rows with the champion.
        score_challenger: the same for the challenger, which must not delay the champion.
        worker: names this process in the folder of a rollout.
        current: returns the current rollout; None without one.
    """

    def __init__(
        self, score: Score, score_challenger: Score, worker: str, current: Callable[[], ActiveRollout | None]
    ) -> None:
        self._score, self._score_challenger, self._worker, self._current = score, score_challenger, worker, current
        self._arms: RolloutArms | None = None

    def arms(self, champion: int) -> RolloutArms | None:
        """The arms of the rollout that compares with this version; None without one."""
        active = self._current()
        if active is None or active.rollout.champion != champion:
            return None
        if self._arms is not None and self._arms.active.rollout.id == active.rollout.id:
            if self._arms.active is not active:
                self._arms.follow(active)
            return self._arms
        self.close()
        self._arms = RolloutArms(active, self._score, self._score_challenger, self._worker)
        return self._arms

    def count_rows(self) -> dict[tuple[str, str], int]:
        """Rows of the last rollout by arm and outcome: answered to clients, failed, compared in shadow, disagreed."""
        if self._arms is None:
            return {}
        counts = self._arms.counts
        return {
            ("champion", "answered"): counts.champion_rows,
            ("challenger", "answered"): counts.challenger_rows,
            ("challenger", "failed"): counts.failed_rows,
            ("challenger", "compared"): counts.compared,
            ("challenger", "disagreed"): counts.disagreements,
        }

    async def run_periodically(self) -> None:
        """Makes shadow answers and exchanges counts until it is cancelled."""
        loop, exchanged, warned = asyncio.get_running_loop(), 0.0, -WARNING_INTERVAL_S
        while True:
            active = self._current()
            arms = self._arms if active is None else self.arms(active.rollout.champion)
            await asyncio.sleep(0.02 if arms is not None and arms.shadow else EXCHANGE_INTERVAL_S / 2)
            if arms is None:
                continue
            try:
                await arms.shadow.answer(arms.record_shadow)
                if time.monotonic() - exchanged >= EXCHANGE_INTERVAL_S:
                    exchanged = time.monotonic()
                    await loop.run_in_executor(None, arms.exchange)  # a slow disk delays no request
            except Exception as error:  # noqa: BLE001 - a rollout must not end the service
                if time.monotonic() - warned >= WARNING_INTERVAL_S:
                    warned = time.monotonic()
                    _logger.warning("the counts of the rollout are not shared with other workers: %s", error)

    def close(self) -> None:
        """Writes the rows in memory."""
        if self._arms is not None:
            self._arms.close()


class NonFiniteError(ArithmeticError):
    """A model answered NaN or infinity."""


def disagree(first: Any, second: Any) -> bool:
    """Whether two predictions disagree: other labels, or numbers that differ by more than 10 % of the larger one."""
    if first.__class__ is float and second.__class__ is float:
        return bool(abs(first - second) > AGREEMENT_TOLERANCE * max(abs(first), abs(second)))
    return bool(first != second)


def _group(flags: Sequence[bool]) -> list[tuple[int, int, bool]]:
    """Start, end (not included) and value of each group of consecutive equal flags."""
    groups, start = [], 0
    for flag, members in groupby(flags):
        end = start + len(list(members))
        groups.append((start, end, flag))
        start = end
    return groups


def _merge(count: int, *parts: tuple[Sequence[int], RowPredictions]) -> RowPredictions:
    """The predictions of ``count`` rows from those of parts, each with the numbers of its rows."""
    predictions: list[Any] = [None] * count
    probabilities: list[list[float]] = [[]] * count
    for numbers, answer in parts:
        for place, number in enumerate(numbers):
            predictions[number] = answer.predictions[place]
            if answer.probabilities is not None:
                probabilities[number] = answer.probabilities[place]
    has_probabilities = any(answer.probabilities is not None for _, answer in parts)
    return RowPredictions(predictions, probabilities if has_probabilities else None)
