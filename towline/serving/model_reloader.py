"""The model that answers now: exchanged when the ledger names another champion, kept when anything fails."""

import json
import logging
import math
import os
import re
import threading
import time
from pathlib import Path

from pydantic import ValidationError

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError, ReleaseError, TowlineError, TransientError
from towline.inference.predictor import Model, open_release
from towline.manifest import MANIFEST, REMEDY
from towline.registry.champion_watcher import ChampionWatcher, Release
from towline.serving.options import Options
from towline.store import StoreLayout

_LOG = logging.getLogger("towline.serving")
_EVERY = 0.25  # seconds between two looks at the ledger
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_AGAIN = 30.0  # seconds until a refused release is looked at again: it may have been restored


class Good(Frozen):
    """``serving/<name>.json``: the release that was served last, opened at a start without the ledger."""

    name: str
    version: int
    release: str
    digest: str


class Live:
    """What a service serves. Only ``follow``'s thread and the opening write; readers take ``model`` once a request.

    Attributes:
        model: the release that answers; None before it is opened.
        ready: whether new requests should be sent here.
        reason: why not; empty when ready.
        refused: releases that were to serve and were not let.
    """

    def __init__(self, options: Options) -> None:
        self.model: Model | None = None
        self.ready = False
        self.reason = "starting"
        self.refused = 0
        self._options = options
        self._store = options.settings.store
        self._directory, self._name, self._version = _which(options.name)
        self._watch = ChampionWatcher(options.settings.ledger_url, self._name)
        self._serves: Release | None = None
        self._bad: str | None = None
        self._again = 0.0
        self._away = False
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def follows(self) -> bool:
        """Whether the ledger may name another release: not for a fixed version or a directory."""
        return self._directory is None and self._version is None

    def open(self) -> None:
        """Opens what is to serve: the ledger's word, else what was served last.

        Raises:
            ConfigError: there is no such model, or it has no champion.
            ReleaseError: the release is not what its manifest says, and none was served before.
            TransientError: the ledger is away, and nothing was served before.
        """
        wanted = self._wanted()
        try:
            model = self._load(wanted)
        except ReleaseError as error:
            good = self._good()
            if good is None or good.path == wanted.path:
                raise
            self._refuse(wanted, error)
            wanted, model = good, self._load(good)
        self._take(wanted, model)

    def missing(self) -> str:
        """Why there is nothing to serve yet, in words; empty once there is.

        Raises:
            ConfigError: it is not for waiting: the name is none, or the ledger's address.
        """
        if not self.follows or self._good() is not None:
            return ""
        try:
            return "" if self._watch.champion() else "it has no champion yet"
        except TransientError as error:
            return error.what

    def follow(self) -> None:
        """Starts the thread that asks the ledger, and counts as ready from here on."""
        self.ready, self.reason = True, ""
        if self.follows:
            self._thread = threading.Thread(target=self._run, name="towline-live", daemon=True)
            self._thread.start()

    def look(self) -> None:
        """Asks the ledger once; exchanges the model if it names another release that opens. Never raises."""
        try:
            wanted = self._watch.champion()
        except TowlineError as error:
            self._outage(error)
            return
        if wanted is None:
            self._outage(_NO_CHAMPION)
            return
        if self._away:
            self._away = False
            _LOG.info("the ledger answers again")
        if self._serves is not None and wanted.path == self._serves.path:
            self._bad = None
            return
        if wanted.path == self._bad and time.monotonic() < self._again:
            return
        began = time.perf_counter()
        try:
            model = self._load(wanted)
        except (TowlineError, OSError) as error:
            self._refuse(wanted, error)
            return
        self._take(wanted, model)
        self._bad = None
        _LOG.info("version %d serves now, opened in %.0f ms", model.version, (time.perf_counter() - began) * 1e3)

    def drain(self) -> None:
        """From here on new requests should go elsewhere; the model still answers those that come."""
        self.ready, self.reason = False, "draining"

    def close(self) -> None:
        """Ends the thread."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._end.wait(_EVERY):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the service outlives whatever a database or a release may raise
                _LOG.exception("following the ledger failed; what serves goes on serving")

    def _wanted(self) -> Release:
        if self._directory is not None:
            return Release(0, str(self._directory), "")
        if self._version is not None:
            return self._pinned(self._version)
        try:
            wanted = self._watch.champion()
        except (TransientError, ReleaseError) as error:
            good = self._good()
            if good is None:
                raise
            self._outage(error)
            return good
        if wanted is None:
            wanted = self._good()
            if wanted is None:
                raise _unknown(self._options, self._name)
            self._outage(_NO_CHAMPION)
        return wanted

    def _pinned(self, version: int) -> Release:
        try:
            known = self._watch.version(version)
        except TransientError:
            found = sorted((StoreLayout(self._store).releases / self._name).glob(f"v{version}-*"))
            if len(found) != 1:
                raise
            known = Release(version, found[0].relative_to(self._store).as_posix(), "")
        if known is None:
            raise _unknown(self._options, self._name, version)
        return known

    def _load(self, wanted: Release) -> Model:
        model = open_release(self._store / wanted.path, self._options.trusted, wanted.digest)
        found = model.metadata
        if self._directory is None and (found.name, found.version) != (self._name, wanted.version):
            raise _refused(model, f"is {found.name} version {found.version}, not {self._name} {wanted.version}")
        probe(model)
        return model

    def _take(self, release: Release, model: Model) -> None:
        self.model, self._serves = model, release
        if self.follows:
            self._remember(Good(
                name=model.name, version=model.version, release=release.path, digest=model.metadata.digest
            ))  # fmt: skip

    def _remember(self, good: Good) -> None:
        path = self._path()
        text = good.model_dump_json(indent=1) + "\n"
        try:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                files.write(path, text)
        except (TowlineError, OSError, ValueError) as error:
            _LOG.warning("cannot note what serves, so a start without the ledger will not find it: %s", error)

    def _good(self) -> Release | None:
        if not self.follows:
            return None
        try:
            good = Good.model_validate_json(self._path().read_bytes())
        except (OSError, ValidationError):
            return None
        return Release(good.version, good.release, good.digest) if good.name == self._name else None

    def _path(self) -> Path:
        return self._options.state / f"{self._name}.json"

    def _refuse(self, release: Release, error: Exception) -> None:
        if release.path != self._bad:
            self.refused += 1
            told = f"{error.what} ({error.where})" if isinstance(error, TowlineError) else str(error)
            _LOG.error("version %d is refused, what serves goes on serving: %s", release.version, told)
        self._bad, self._again = release.path, time.monotonic() + _AGAIN

    def _outage(self, error: TowlineError) -> None:
        if not self._away:
            _LOG.warning("cannot follow the ledger, what serves goes on serving: %s (%s)", error.what, error.where)
        self._away = True


_NO_CHAMPION = TowlineError("it names no champion", where="TOWLINE_LEDGER_URL")


def _which(name: str) -> tuple[Path | None, str, int | None]:
    """The directory, the model's name and the version that are meant."""
    path = Path(name)
    if os.sep in name or (path / MANIFEST).is_file():
        return path.absolute(), path.name, None
    model, at, version = name.partition("@")
    if not NAME.fullmatch(model) or (at and not version.isdecimal()):
        raise ConfigError(
            f"not a model: {name!r}", where="command line", remedy="write NAME, NAME@3, or a path to a release"
        )
    return None, model, int(version) if at else None


def _unknown(options: Options, name: str, version: int | None = None) -> ConfigError:
    """The error for a model, or a version, that is not there; raises ReleaseError where the ledger was lost."""
    from difflib import get_close_matches

    from towline.registry.ledger import open_ledger
    from towline.registry.resolution import check_recorded

    ledger = open_ledger(options.settings)
    check_recorded(options.settings, ledger, name)
    known = ledger.models()
    versions = [f"{name}@{row.version}" for row in ledger.versions(name)]
    if version is not None and versions:
        what, remedy = f"{name} has no version {version}", f"there are: {', '.join(versions)}"
    elif versions:
        what, remedy = f"{name} has no champion yet", f"serve one of its versions by number: {', '.join(versions)}"
    else:
        near = get_close_matches(name, known, 1)
        some = f"there are: {', '.join(known)}" if known else "there is none yet: towline run CONFIG makes one"
        what, remedy = f"no model called {name!r}", f"did you mean {near[0]}?" if near else some
    return ConfigError(what, where=str(options.settings.store), remedy=remedy)


def probe(model: Model) -> int:
    """How many rows a release answers as it did when it was made: the last word on whether it works on this machine.

    Raises:
        ReleaseError: it answers one of them in another way, or not at all.
    """
    try:
        kept = json.loads((model.directory / "probe.json").read_bytes())
        given, expected = model.answer(kept["rows"]).predictions, kept["labels"]
    except Exception as error:
        raise _refused(model, f"cannot answer its own probe: {type(error).__name__}: {error}") from error
    for position, (now, then) in enumerate(zip(given, expected, strict=True)):
        near = isinstance(then, float) and math.isclose(now, then, rel_tol=1e-9, abs_tol=1e-12)
        if type(now) is not type(then) or not (near or now == then):  # to Python 1 is equal to True
            raise _refused(model, f"answers row {position} of its own probe with {now!r}, it was {then!r}")
    return len(expected)


def _refused(model: Model, finding: str) -> ReleaseError:
    return ReleaseError(f"the release {finding}", where=str(model.directory), remedy=REMEDY)
