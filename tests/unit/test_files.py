"""Files are complete or absent, whatever happens while they are written."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from towline import files
from towline.errors import TransientError


def test_a_failing_write_leaves_the_old_content(tmp_path: Path) -> None:
    """A reader never sees an incomplete file, and no temporary file is left."""
    path = files.write(tmp_path / "a", "old")
    with pytest.raises(TypeError), files.replacing(path) as file:
        file.writelines([b"half", "not bytes"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_errors_of_the_disk_have_a_remedy(tmp_path: Path, number: int) -> None:
    """A full or read-only disk is an error with the path and a remedy."""
    with pytest.raises(TransientError) as caught, files.disk(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))
    assert caught.value.remedy
    assert str(tmp_path) in caught.value.where


def _try(path: Path, answer: "multiprocessing.SimpleQueue[bool]") -> None:
    with files.exclusive_lock(path, wait=False) as got:
        answer.put(got)


def test_a_lock_is_exclusive_between_processes(tmp_path: Path) -> None:
    """Two processes never have the lock at the same time; it is free afterwards."""
    context = multiprocessing.get_context("spawn")
    answers: list[bool] = []
    for held in (True, False):
        queue = context.SimpleQueue()
        process = context.Process(target=_try, args=(tmp_path / "lock", queue))
        if held:
            with files.exclusive_lock(tmp_path / "lock"):
                process.start()
                process.join()
        else:
            process.start()
            process.join()
        answers.append(queue.get())
    assert answers == [False, True]
