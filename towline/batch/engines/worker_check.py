"""The check of a cluster's workers before the first row is read: their version of towline and what files they see."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from towline import __version__
from towline.errors import ConfigError

_PROBE = ".towline-shared-"


class WorkerFacts(NamedTuple):
    """The report of a worker.

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
    with NamedTemporaryFile(dir=folder, prefix=_PROBE) as probe:
        yield (probe.name, *map(str, others))


def check_this_worker(paths: Sequence[str], version: str = __version__) -> None:
    """Checks on a worker that it suits the command.

    Args:
        paths: that exist where the command runs.
        version: of towline that the command has.

    Raises:
        ConfigError: this worker has another version of towline, or does not see a path.
    """
    _check_facts(inspect_worker(paths), version, f"worker {socket.gethostname()}")


def check_workers(answers: Mapping[str, object], cluster: str) -> None:
    """Checks the answers of all workers.

    Args:
        answers: by worker; WorkerFacts, or the exception of a worker that cannot run ``inspect_worker``.
        cluster: its address.

    Raises:
        ConfigError: a worker has another version of towline or none, or does not see a path.
    """
    for worker, answer in sorted(answers.items()):
        where = f"{cluster}: worker {worker}"
        if isinstance(answer, BaseException):
            is_missing = isinstance(answer, ImportError | AttributeError)
            what = f"the worker cannot {f'import towline {__version__}' if is_missing else 'be checked'}: {answer}"
            raise ConfigError(what, where=where, remedy=_install(__version__))
        _check_facts(WorkerFacts(*answer), __version__, where)  # type: ignore[misc]


def _check_facts(facts: WorkerFacts, version: str, where: str) -> None:
    if facts.version != version:
        what = f"the worker has towline {facts.version}, this command is of towline {version}"
        raise ConfigError(what, where=where, remedy=_install(version))
    if facts.missing:
        first = Path(facts.missing[0])
        place = first.parent if first.name.startswith(_PROBE) else first
        raise ConfigError(
            f"the worker does not see {place}",
            where=where,
            remedy="put the input, the output and the release on a file system that all workers mount at this path",
        )


def _install(version: str) -> str:
    return f"install towline {version} and the packages of the model on all workers"
