"""The prediction log of a service, written as JSON lines by a background thread that requests never wait for."""

import contextlib
import datetime as dt
import logging
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from towline.data.schema.values import category_name, is_blank
from towline.prediction_log.privacy import HASH_KEYS, HashKeys, PrivacyFilter, read_privacy_filter
from towline.prediction_log.segments import SegmentWriter

if TYPE_CHECKING:
    from towline.data.schema.contract import Label
    from towline.inference.predictor import Model
    from towline.inference.scorer import RowPredictions

_POLL_S = 0.05  # interval at which the queue is read
_MAINTENANCE_S = 1.0
_CONVERT_DELAY_S = 30.0  # delay of the first conversion, so that the start of a service is not slowed down
_MAX_LINE_ROWS = 64  # maximum rows in a line
# by how full the queue is: seconds of work before other threads, which answer requests, get the interpreter
_TIME_SLICES = ((0.1, 0.0002), (0.5, 0.0005), (1.0, 0.001))
_PAUSE_S = 0.0002
_FLUSH_BYTES = 256_000  # pending bytes at which lines are written before the rest of the queue is encoded
_MAX_PENDING_BYTES = 2_000_000  # maximum bytes of lines that wait while the disk fails
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
_logger = logging.getLogger(__name__)

_Record = tuple[str, float, "Model", Sequence[Mapping[str, Any]], "RowPredictions", int, str]


class _EncodedLines:
    """Encoded lines of one version, ready to be written."""

    def __init__(self, head: bytes) -> None:
        self.head, self.lines, self.rows = head, list[bytes](), 0


class PredictionLog:
    """Logs predictions: callers hand them over without waiting, and a thread writes them.

    Requests of few rows are encoded by the caller, since waiting for the interpreter would take the thread much longer
    than the encoding. The thread encodes requests of many rows, and those for which a file must be read: the first of
    a version, and the first of a month if a column is hashed.

    Args:
        folder: ``predictions/<name>`` of the store; made when the first record is written.
        worker: names this process among those that write for the same model.
        capacity: rows that may wait; further rows are dropped and counted.
        segment_bytes: size at which a segment is closed.
        segment_seconds: age at which a segment is closed.
        convert: whether a separate process converts closed segments to Parquet.

    Attributes:
        written: number of rows that are in a segment. ``written + drops + depth`` is the number of rows sent.
    """

    def __init__(
        self,
        folder: Path,
        worker: str,
        capacity: int = 4_000,
        *,
        segment_bytes: int = 64_000_000,
        segment_seconds: float = 3600.0,
        convert: bool = True,
    ) -> None:
        self.folder, self.worker, self.capacity = folder, worker, capacity
        self.written = 0
        self._sent = self._refused = 0  # changed by callers
        self._taken = self._lost = 0  # changed by the thread
        self._callers = threading.Lock()
        self._queue: deque[_Record] = deque()
        self._made: dict[int, _EncodedLines] = {}
        self._closing = threading.Event()
        self._deadline = 0.0
        self._encoder = _Encoder(HashKeys(folder / HASH_KEYS))
        self._segments = SegmentWriter(folder, worker, segment_bytes, segment_seconds)
        self._converts = convert
        self._converter: subprocess.Popen[bytes] | None = None
        self._convert_at = time.monotonic() + _CONVERT_DELAY_S
        self._began, self._turn_length = 0.0, _TIME_SLICES[0][1]
        self._maintained = self._warned = self._keyless = -60.0
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Rows that wait to be written."""
        return self._sent - self._taken + self._segments.waiting

    @property
    def drops(self) -> int:
        """Rows that were dropped: the queue was full, or they could not be encoded."""
        return self._refused + self._lost

    def write(
        self,
        request_id: str,
        at: float,
        model: "Model",
        rows: Sequence[Mapping[str, Any]],
        answer: "RowPredictions",
        first: int = 0,
        trace_id: str = "",
    ) -> None:
        """Logs a request, or a part of it whose first row has the number ``first`` in the request.

        ``trace_id`` is that of OpenTelemetry; empty without one. Never waits for the disk and never raises. The caller
        must not change the arguments later.
        """
        count, record, line = len(rows), (request_id, at, model, rows, answer, first, trace_id), None
        if count <= _MAX_LINE_ROWS and self._encoder.ready(model, at):
            with contextlib.suppress(Exception):  # the thread gets the same error and reports it
                line = self._encoder.line(record, 0, rows)
        with self._callers:
            waiting = self._sent - self._taken
            # a request with more rows than the capacity is accepted if nothing else waits
            if (waiting and waiting + count > self.capacity) or self._closing.is_set():
                self._refused += count
                return
            self._sent += count
            if line is None:
                self._queue.append(record)
            else:
                version, head, text = line
                made = self._made.get(version) or self._made.setdefault(version, _EncodedLines(head))
                made.lines.append(text)
                made.rows += count

    def close(self, timeout: float = 10.0) -> None:
        """Writes the waiting rows and ends the thread; rows not written after ``timeout`` seconds are dropped."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 1.0)

    def _run(self) -> None:
        while not self._closing.wait(_POLL_S):
            self._turn()
        self._turn()
        while self.depth and time.monotonic() < self._deadline:
            time.sleep(_POLL_S)
            self._turn()
        self._lost += self.depth
        self._taken, self._segments.waiting = self._sent, 0
        self._queue.clear()
        self._segments.roll()
        self._convert()

    def _turn(self) -> None:
        try:
            now = time.monotonic()
            maintain = now - self._maintained >= _MAINTENANCE_S
            # checked before the queue is drained: the closed segment then holds all rows sent before the request
            due = maintain and self._segments.is_due()
            self._drain()
            if self._segments.failure:
                self._warn(self._segments.failure)
            if due:
                self._segments.roll()
                self._convert_at = now
            if maintain:
                self._maintained = now
                if now >= self._convert_at:
                    self._convert()
        except Exception as error:  # noqa: BLE001 - the thread must survive any error
            self._warn(error)

    def _drain(self) -> None:
        self._began = time.perf_counter()
        with self._callers:
            ready, self._made = self._made, {}
        for _ in range(len(self._queue)):
            record = self._queue.popleft()
            if self._segments.bytes > _MAX_PENDING_BYTES or time.monotonic() < self._keyless:
                # dropped now: a long queue slows down Python's garbage collector
                self._taken += len(record[3])
                self._lost += len(record[3])
                continue
            self._take(record)
            if self._segments.bytes > _FLUSH_BYTES:
                self.written += self._segments.flush()
        for version, made in ready.items():
            self._taken += made.rows
            if self._segments.bytes > _MAX_PENDING_BYTES:
                self._lost += made.rows
            else:
                self._segments.add(version, made.head, b"".join(made.lines), made.rows)
        self.written += self._segments.flush()

    def _take(self, record: _Record) -> None:
        rows = record[3]
        for first in range(0, len(rows), _MAX_LINE_ROWS):
            part = rows[first : first + _MAX_LINE_ROWS]
            self._taken += len(part)
            try:
                self._segments.add(*self._encoder.line(record, first, part), len(part))
            except Exception as error:  # noqa: BLE001 - without a privacy filter nothing may be logged; the rows are counted
                self._lost += len(part)
                if isinstance(error, OSError):  # no hash key: do not retry for each row
                    self._keyless = time.monotonic() + _MAINTENANCE_S
                self._warn(error)
            if time.perf_counter() - self._began > self._turn_length:
                self._rest()

    def _rest(self) -> None:
        share = (self._sent - self._taken) / self.capacity
        self._turn_length = next((seconds for most, seconds in _TIME_SLICES if share < most), _TIME_SLICES[-1][1])
        time.sleep(_PAUSE_S if share < _TIME_SLICES[0][0] else 0)  # 0: only lets waiting threads run
        self._began = time.perf_counter()

    def _convert(self) -> None:
        if not self._converts or not self._segments.has_finished():
            self._convert_at = float("inf")
            return
        if self._converter is not None and self._converter.poll() is None and not self._closing.is_set():
            return  # try again a second later
        command = [sys.executable, "-m", "towline.prediction_log.maintenance", str(self.folder)]
        quiet = subprocess.DEVNULL
        try:
            self._converter = subprocess.Popen(command, stdin=quiet, stdout=quiet, start_new_session=True)
        except OSError as error:  # no process can be started: convert the segments later
            self._warn(error)
            self._convert_at = time.monotonic() + _CONVERT_DELAY_S
            return
        self._convert_at = float("inf")

    def _warn(self, error: Exception) -> None:
        """Logs a warning at most once a minute, without any logged value."""
        now = time.monotonic()
        if now - self._warned >= 60.0:
            self._warned = now
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            _logger.warning(
                "predictions are not logged: %s; waiting %d, dropped %d, in %s",
                reason, self.depth, self.drops, self.folder,
            )  # fmt: skip


class _Encoder:
    """Encodes predictions as lines. A line names its version; the head of the version lists the columns."""

    def __init__(self, keys: HashKeys) -> None:
        self._keys = keys
        self._known: dict[Path, tuple[PrivacyFilter, bytes]] = {}

    def ready(self, model: "Model", at: float) -> bool:
        """Whether a line of this model can be encoded without reading a file."""
        known = self._known.get(model.directory)
        return known is not None and known[0].needs_no_file(at)

    def line(self, record: _Record, first: int, rows: Sequence[Mapping[str, Any]]) -> tuple[int, bytes, bytes]:
        """The version, its head, and a line with ``rows``, which are part of the record from row ``first`` on."""
        request_id, at, model, _, answer, offset, trace_id = record
        policy, head = self._known.get(model.directory) or self._read(model)
        end = first + len(rows)
        content = {
            "of": model.version,
            "id": request_id,
            "at": round(at * 1e6),
            "first": offset + first,
            "rows": policy.filter_rows(rows, at),
            "predictions": answer.predictions[first:end],
            "probabilities": None if answer.probabilities is None else answer.probabilities[first:end],
        }
        if trace_id:
            content["trace"] = trace_id
        try:
            return model.version, head, orjson.dumps(content, _json_default, _OPTIONS)
        except orjson.JSONEncodeError:
            return model.version, head, orjson.dumps(_replace_unencodable(content), _json_default, _OPTIONS)

    def _read(self, model: "Model") -> tuple[PrivacyFilter, bytes]:
        policy = read_privacy_filter(model.directory, model.contract, self._keys)
        fields = [list(field) for field in policy.fields]
        prediction = prediction_type(model.contract.classes)
        head = {"version": model.version, "model": model.name, "prediction": prediction, "fields": fields}
        self._known[model.directory] = policy, orjson.dumps(head, option=_OPTIONS)
        return self._known[model.directory]


def prediction_type(classes: "Sequence[Label]") -> str:
    kinds = {type(label) for label in classes}
    if kinds <= {int, float} and kinds != {int}:
        return "float64"
    return {int: "int64", bool: "bool"}.get(kinds.pop(), "string") if len(kinds) == 1 else "string"


def _json_default(value: Any) -> Any:
    """A value that JSON cannot represent, as text."""
    if isinstance(value, dt.datetime):  # includes pandas timestamps
        return None if is_blank(value) else str(value)
    return category_name(value) if not isinstance(value, Decimal) else str(value)


def _replace_unencodable(value: Any) -> Any:
    """The record with integers beyond 64 bits as text, and without unpaired surrogates."""
    if isinstance(value, dict):
        return {key: _replace_unencodable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_unencodable(part) for part in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return value
