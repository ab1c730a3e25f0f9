"""The check of a cluster's workers before the first row is read: their version of towline and what files they see."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from towline import __version__
from towline.errors import ConfigError


class WorkerFacts(NamedTuple):
    """What a worker reports.

    Attributes:
        version: of towline.
        missing: the paths that it does not see.
    """

    version: str
    missing: tuple[str, ...]


def inspect_worker(paths: Sequence[str]) -> WorkerFacts:
    """Runs on a worker; ``paths`` exist where the command runs."""
    return WorkerFacts(__version__, tuple(path for path in paths if not Path(path).exists()))


@contextmanager
def shared_paths(folder: Path, others: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Paths that all workers must see: a temporary file in the folder of the output, and the others."""
    with NamedTemporaryFile(dir=folder, prefix=".towline-shared-") as probe:
        yield (probe.name, *map(str, others))


def check_workers(answers: Mapping[str, object], cluster: str) -> None:
    """Checks the answers of all workers.

    Args:
        answers: by worker; WorkerFacts, or the exception of a worker that cannot run ``inspect_worker``.
        cluster: its address.

    Raises:
        ConfigError: a worker has another version of towline or none, or does not see a path.
    """
    remedy = f"install towline {__version__} and the packages of the model on all workers"
    for worker, answer in sorted(answers.items()):
        where = f"{cluster}: worker {worker}"
        if isinstance(answer, ImportError | AttributeError):
            raise ConfigError(f"the worker cannot import towline {__version__}: {answer}", where=where, remedy=remedy)
        if isinstance(answer, BaseException):
            raise ConfigError(f"the worker cannot be checked: {answer}", where=where, remedy=remedy)
        facts = WorkerFacts(*answer)  # type: ignore[misc]
        if facts.version != __version__:
            what = f"the worker has towline {facts.version}, this command is of towline {__version__}"
            raise ConfigError(what, where=where, remedy=remedy)
        if facts.missing:
            first = Path(facts.missing[0])
            place = first.parent if first.name.startswith(".towline-shared-") else first
            raise ConfigError(
                f"the worker does not see {place}",
                where=where,
                remedy="put the input, the output and the release on a file system that all workers mount at this path",
            )
