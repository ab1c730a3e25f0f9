"""Batching of requests, for compiled and other models."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import CLASSES, ROW, FakeModel, make_contract, run_service
from towline.inference.scorer import RowPredictions
from towline.serving.batching import MicroBatcher, ThreadBatcher
from towline.serving.problems import Problem


class SlowModel(FakeModel):
    """Waits before its first call until the event ``go`` is set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.go = threading.Event()

    def predict_canonical(self, canonical: Any) -> RowPredictions:
        self.go.wait(10)
        if any(row[0] == 13 for row in canonical):
            raise ValueError("an unlucky number")
        return super().predict_canonical(canonical)


@pytest.fixture
def slow(tmp_path: Path) -> SlowModel:
    return SlowModel(make_contract(CLASSES), tmp_path, compiled=False)


def rows(*sizes: float) -> list[list[Any]]:
    return [[size, "house", 1.0, None] for size in sizes]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def send_while_busy(
    requests: Iterable[Coroutine[Any, Any, RowPredictions]],
) -> list["asyncio.Task[RowPredictions]"]:
    """Sends the first request, and the others once the model predicts the first."""
    tasks = []
    for request in requests:
        tasks.append(asyncio.ensure_future(request))
        await asyncio.sleep(0.02 if len(tasks) == 1 else 0)
    return tasks


def test_requests_that_arrive_while_the_thread_is_busy_are_one_batch(slow: SlowModel) -> None:
    """One call scores the first request, one call all later requests; each gets its own predictions."""

    async def ask() -> list[RowPredictions]:
        batcher = ThreadBatcher()
        tasks = await send_while_busy(batcher.score(slow, rows(n, n + 30)) for n in range(10))
        assert batcher.depth == 18
        slow.go.set()
        return await asyncio.gather(*tasks)

    answers = run(ask())
    assert slow.calls == [2, 18]
    alone = [slow.predict_canonical(rows(n, n + 30)) for n in range(10)]
    assert answers == alone


def test_a_batch_holds_at_most_the_allowed_rows(slow: SlowModel) -> None:
    """A larger request is scored alone, and the order is unchanged."""

    async def ask() -> None:
        batcher = ThreadBatcher(max_batch=10)
        tasks = await send_while_busy(batcher.score(slow, rows(*range(n))) for n in (1, 4, 5, 6, 12, 1))
        slow.go.set()
        await asyncio.gather(*tasks)

    run(ask())
    assert slow.calls == [1, 9, 6, 12, 1]


def test_a_batch_has_requests_of_one_model(slow: SlowModel, tmp_path: Path) -> None:
    """The model may be replaced while requests wait."""
    folder = tmp_path / "newer"
    folder.mkdir()
    newer = SlowModel(make_contract(CLASSES), folder, compiled=False, version=4, offset=1000)

    async def ask() -> list[RowPredictions]:
        batcher = ThreadBatcher()
        models = [slow, slow, newer, newer, slow]
        tasks = await send_while_busy(batcher.score(model, rows(1)) for model in models)
        slow.go.set()
        newer.go.set()
        return await asyncio.gather(*tasks)

    answers = run(ask())
    assert [answer.predictions for answer in answers] == [["no"], ["no"], ["yes"], ["yes"], ["no"]]
    assert (slow.calls, newer.calls) == ([1, 1, 1], [2])


def test_a_failing_request_fails_no_other(slow: SlowModel) -> None:
    """After an error, each request of the batch is scored alone."""

    async def ask() -> list[Any]:
        batcher = ThreadBatcher()
        tasks = await send_while_busy(batcher.score(slow, rows(n)) for n in (1, 2, 13, 4))
        slow.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(ask())
    assert [type(answer) for answer in answers] == [RowPredictions, RowPredictions, ValueError, RowPredictions]


def test_a_full_queue_refuses_requests(slow: SlowModel) -> None:
    """The response is 503 with Retry-After. A request larger than the queue is accepted if no other request waits."""

    async def ask() -> None:
        batcher = ThreadBatcher(max_queued=5)
        first, waiting = await send_while_busy(batcher.score(slow, rows(*range(n))) for n in (12, 3))
        with pytest.raises(Problem) as error:
            await batcher.score(slow, rows(1, 2, 3))
        assert (error.value.code, error.value.type.status) == ("busy", 503)
        assert (b"retry-after", b"1") in error.value.headers
        fits = asyncio.ensure_future(batcher.score(slow, rows(1, 2)))
        await asyncio.sleep(0)
        slow.go.set()
        assert [len((await task).predictions) for task in (first, waiting, fits)] == [12, 3, 2]
        assert batcher.depth == 0
        assert len((await batcher.score(slow, rows(1))).predictions) == 1

    run(ask())


def test_concurrent_requests_get_their_own_predictions(slow: SlowModel) -> None:
    """The model is called far less often than there are requests."""
    slow.go.set()
    with run_service(slow) as service:

        async def post_row(size: int) -> list[str]:
            answer = await service.client.post_async("/predict", {"rows": [{**ROW, "size": size}]})
            predictions: list[str] = answer.json()["predictions"]
            return predictions

        async def ask() -> list[list[str]]:
            return await asyncio.gather(*(post_row(size) for size in range(12, 52) if size != 13))

        answers = service.client.run(ask())
    assert answers == [["yes" if size > 25 else "no"] for size in range(12, 52) if size != 13]
    assert len(slow.calls) < 39


def test_a_cancelled_request_does_not_stop_later_ones(slow: SlowModel) -> None:

    async def ask() -> RowPredictions:
        batcher = ThreadBatcher()
        given_up, behind = await send_while_busy(batcher.score(slow, rows(n)) for n in (1, 2))
        given_up.cancel()
        slow.go.set()
        return await behind

    assert run(ask()).predictions == ["no"]


def test_requests_of_consecutive_loop_iterations_share_a_call(tmp_path: Path) -> None:
    """Requests of two models are separated, and a failing row fails no other request."""
    old, new = (SlowModel(make_contract(CLASSES), tmp_path, offset=offset) for offset in (0, 1000))
    old.go.set()
    new.go.set()

    async def ask() -> list[Any]:
        turn = MicroBatcher()
        futures = [turn.score(old, rows(n)) for n in (1, 2)]
        futures += [turn.score(new, rows(n, n + 30)) for n in (3, 12, 13)]
        nobody = turn.score(new, rows(5))
        nobody.cancel()
        return await asyncio.gather(*futures, return_exceptions=True)

    *answered, unlucky = run(ask())
    assert [answer.predictions for answer in answered] == [
        old.predict_canonical(rows(1)).predictions, old.predict_canonical(rows(2)).predictions,
        new.predict_canonical(rows(3, 33)).predictions, new.predict_canonical(rows(12, 42)).predictions,
    ]  # fmt: skip
    assert isinstance(unlucky, ValueError)
    assert old.calls[0] == 2
