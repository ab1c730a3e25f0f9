"""Several processes write shards into one output file; here threads do, in any order."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from towline.batch.input.shards import Shard
from towline.batch.output import direct_text
from towline.batch.output.direct_text import FAILED, UNKNOWN, AppendedText, PlacedText, ShardPlaces, known_lengths
from towline.batch.work_folder import ShardResult, WorkFolder
from towline.errors import TransientError

TEXTS = [b"first\n", b"", b"third shard\n", b"4\n"]


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    folder = WorkFolder(path=tmp_path)
    folder.assembled.write_bytes(b"header\n")
    return folder


def place(work: WorkFolder, shard: int) -> int:
    text = PlacedText(ShardPlaces(work.places))
    with text.open(work, shard) as file:
        half = len(TEXTS[shard]) // 2
        file.write(pa.py_buffer(TEXTS[shard][:half]))
        file.write(memoryview(TEXTS[shard][half:]))
    return text.end


def run_in_threads(tasks: list[Callable[[], int]]) -> list[Future[int]]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [pool.submit(task) for task in tasks]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_shards_are_written_in_order(work: WorkFolder, order: tuple[int, ...]) -> None:
    """In whatever order they are scored; each result has the position where its text ends."""
    ShardPlaces.create(work.places, [UNKNOWN] * 4, 7)
    ends = [future.result() for future in run_in_threads([lambda shard=shard: place(work, shard) for shard in order])]
    assert work.assembled.read_bytes() == b"header\n" + b"".join(TEXTS)
    assert dict(zip(order, ends, strict=True)) == {0: 13, 1: 13, 2: 25, 3: 27}


def test_room_is_left_for_shards_of_other_engines(work: WorkFolder) -> None:
    """The text of a shard that another engine has scored is inserted later; a shard in the output needs no room."""
    work.finish(0, ShardResult(rows=1, scored=1, quarantined=0, end=7))
    work.finish(2, ShardResult(rows=1, scored=1, quarantined=0))
    work.piece(2).write_bytes(TEXTS[2])
    shards = [Shard(number=number, file=0, start=0, end=1, size=1) for number in range(4)]
    lengths = known_lengths(work, shards)
    assert lengths == [0, UNKNOWN, len(TEXTS[2]), UNKNOWN]
    ShardPlaces.create(work.places, lengths, 7)
    futures = run_in_threads([lambda: place(work, 3), lambda: place(work, 1)])
    assert [future.result() for future in futures] == [21, 7]
    assert work.assembled.read_bytes() == b"header\n" + bytes(len(TEXTS[2])) + TEXTS[3]


@pytest.mark.parametrize("end", [lambda shared: shared.record(1, FAILED), ShardPlaces.cancel])
def test_the_failure_of_an_earlier_shard_ends_the_waiting(work: WorkFolder, end: Callable[[ShardPlaces], None]) -> None:
    """Otherwise the job would wait for the later shards. The end of the job ends the waiting, too."""
    shared = ShardPlaces.create(work.places, [UNKNOWN] * 4, 7)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(place, work, 3)
        assert not waiting.done()
        end(shared)
        with pytest.raises(TransientError, match="another shard has failed"):
            waiting.result(timeout=60)
    assert work.assembled.read_bytes() == b"header\n"


def test_the_failure_of_a_later_shard_does_not_end_the_waiting(work: WorkFolder) -> None:
    """The job reports the error of the first failed shard, so earlier shards are completed."""
    shared = ShardPlaces.create(work.places, [UNKNOWN] * 4, 7)
    shared.record(2, FAILED)
    assert [future.result() for future in run_in_threads([lambda: place(work, 1), lambda: place(work, 0)])] == [13, 13]
    assert work.assembled.read_bytes() == b"header\n" + TEXTS[0]


def test_a_long_text_is_collected_in_a_file(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the size of the shard. No file remains in the folder."""
    monkeypatch.setattr(direct_text, "MEMORY_BYTES", 10)
    ShardPlaces.create(work.places, [UNKNOWN], 7)
    text = PlacedText(ShardPlaces(work.places))
    with text.open(work, 0) as file:
        for number in range(9):
            file.write(b"line %d\n" % number)
        assert sum(len(part) for part in file._parts) <= 10
    assert work.assembled.read_text().split("\n")[1:] == [*(f"line {number}" for number in range(9)), ""]
    assert sorted(path.name for path in work.path.iterdir()) == ["output", "places"]


def test_a_shard_is_appended_to_the_one_before_it(work: WorkFolder) -> None:
    """Text after it, which a worker of a killed job may have written, is overwritten."""
    work.finish(0, ShardResult(rows=1, scored=1, quarantined=0, end=13))
    work.assembled.write_bytes(b"header\nfirst\nlate")
    text = AppendedText()
    with text.open(work, 1) as file:
        file.write(b"second\n")
    assert text.end == 20
    assert work.assembled.read_bytes() == b"header\nfirst\nsecond\n"
    with pytest.raises(TypeError), text.open(work, 1) as file:
        file.writelines([b"sec", None])
    assert work.assembled.read_bytes() == b"header\nfirst\n"
