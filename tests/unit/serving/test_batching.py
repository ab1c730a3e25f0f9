"""Requests to a slow model are joined, kept apart by model, and never pile up without end."""

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.serving.service import CLASSES, ROW, Fake, make_contract, running
from towline.inference.scorer import RowPredictions
from towline.serving.batching import MicroBatcher, ThreadBatcher
from towline.serving.problems import Problem


class Slow(Fake):
    """Waits before its first call until it is let."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.go = threading.Event()

    def predict_canonical(self, canonical: Any) -> RowPredictions:
        self.go.wait(10)
        if any(row[0] == 13 for row in canonical):
            raise ValueError("an unlucky number")
        return super().predict_canonical(canonical)


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(make_contract(CLASSES), tmp_path, compiled=False)


def rows(*sizes: float) -> list[list[Any]]:
    return [[size, "house", 1.0, None] for size in sizes]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def queued(requests: Iterable[Coroutine[Any, Any, RowPredictions]]) -> list["asyncio.Task[RowPredictions]"]:
    """Sends the first, and the others once it is with the model."""
    tasks = []
    for request in requests:
        tasks.append(asyncio.ensure_future(request))
        await asyncio.sleep(0.02 if len(tasks) == 1 else 0)
    return tasks


def test_what_comes_while_it_is_busy_is_joined(slow: Slow) -> None:
    """One call for the first, one for all that came meanwhile; each gets its own rows' answers."""

    async def ask() -> list[RowPredictions]:
        batcher = ThreadBatcher()
        tasks = await queued(batcher.score(slow, rows(n, n + 30)) for n in range(10))
        assert batcher.depth == 18
        slow.go.set()
        return await asyncio.gather(*tasks)

    answers = run(ask())
    assert slow.calls == [2, 18]
    alone = [slow.predict_canonical(rows(n, n + 30)) for n in range(10)]
    assert answers == alone


def test_a_call_holds_no_more_rows_than_allowed(slow: Slow) -> None:
    """Joined up to a limit; one large request goes alone, and none is overtaken."""

    async def ask() -> None:
        batcher = ThreadBatcher(max_batch=10)
        tasks = await queued(batcher.score(slow, rows(*range(n))) for n in (1, 4, 5, 6, 12, 1))
        slow.go.set()
        await asyncio.gather(*tasks)

    run(ask())
    assert slow.calls == [1, 9, 6, 12, 1]


def test_two_models_are_never_mixed(slow: Slow, tmp_path: Path) -> None:
    """A call is of one model, whatever was exchanged while requests waited."""
    folder = tmp_path / "newer"
    folder.mkdir()
    newer = Slow(make_contract(CLASSES), folder, compiled=False, version=4, offset=1000)

    async def ask() -> list[RowPredictions]:
        batcher = ThreadBatcher()
        models = [slow, slow, newer, newer, slow]
        tasks = await queued(batcher.score(model, rows(1)) for model in models)
        slow.go.set()
        newer.go.set()
        return await asyncio.gather(*tasks)

    answers = run(ask())
    assert [answer.predictions for answer in answers] == [["no"], ["no"], ["yes"], ["yes"], ["no"]]
    assert (slow.calls, newer.calls) == ([1, 1, 1], [2])


def test_one_that_cannot_be_answered_spoils_no_other(slow: Slow) -> None:
    """The rows that fail are found by asking for each request alone."""

    async def ask() -> list[Any]:
        batcher = ThreadBatcher()
        tasks = await queued(batcher.score(slow, rows(n)) for n in (1, 2, 13, 4))
        slow.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(ask())
    assert [type(answer) for answer in answers] == [RowPredictions, RowPredictions, ValueError, RowPredictions]


def test_a_full_queue_refuses(slow: Slow) -> None:
    """503 and when to come again, and only what is too much; a request of more rows than fit is taken alone."""

    async def ask() -> None:
        batcher = ThreadBatcher(max_queued=5)
        first, waiting = await queued(batcher.score(slow, rows(*range(n))) for n in (12, 3))
        with pytest.raises(Problem) as caught:
            await batcher.score(slow, rows(1, 2, 3))
        assert (caught.value.code, caught.value.type.status) == ("busy", 503)
        assert (b"retry-after", b"1") in caught.value.headers
        fits = asyncio.ensure_future(batcher.score(slow, rows(1, 2)))
        await asyncio.sleep(0)
        slow.go.set()
        assert [len((await task).predictions) for task in (first, waiting, fits)] == [12, 3, 2]
        assert batcher.depth == 0
        assert len((await batcher.score(slow, rows(1))).predictions) == 1

    run(ask())


def test_many_requests_at_once(slow: Slow) -> None:
    """Through the service: each its own answer, in far fewer calls than requests."""
    slow.go.set()
    with running(slow) as service:

        async def one(size: int) -> list[str]:
            found = await service.client.post_async("/predict", {"rows": [{**ROW, "size": size}]})
            predictions: list[str] = found.json()["predictions"]
            return predictions

        async def ask() -> list[list[str]]:
            return await asyncio.gather(*(one(size) for size in range(12, 52) if size != 13))

        answers = service.client.run(ask())
    assert answers == [["yes" if size > 25 else "no"] for size in range(12, 52) if size != 13]
    assert len(slow.calls) < 39


def test_an_answer_nobody_waits_for(slow: Slow) -> None:
    """A request that is given up does not stop those behind it."""

    async def ask() -> RowPredictions:
        batcher = ThreadBatcher()
        given_up, behind = await queued(batcher.score(slow, rows(n)) for n in (1, 2))
        given_up.cancel()
        slow.go.set()
        return await behind

    assert run(ask()).predictions == ["no"]


def test_requests_of_one_turn(tmp_path: Path) -> None:
    """They share one call, kept apart by model; each gets its own rows' answers, and a bad row spoils no other's."""
    old, new = (Slow(make_contract(CLASSES), tmp_path, offset=offset) for offset in (0, 1000))
    old.go.set()
    new.go.set()

    async def ask() -> list[Any]:
        turn = MicroBatcher()
        asked = [turn.score(old, rows(n)) for n in (1, 2)]
        asked += [turn.score(new, rows(n, n + 30)) for n in (3, 12, 13)]
        nobody = turn.score(new, rows(5))
        nobody.cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    *answered, unlucky = run(ask())
    assert [answer.predictions for answer in answered] == [
        old.predict_canonical(rows(1)).predictions, old.predict_canonical(rows(2)).predictions,
        new.predict_canonical(rows(3, 33)).predictions, new.predict_canonical(rows(12, 42)).predictions,
    ]  # fmt: skip
    assert isinstance(unlucky, ValueError)
    assert old.calls[0] == 2
