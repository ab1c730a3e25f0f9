"""The model that answers now: opened at the start, exchanged when the ledger names another, kept when anything fails."""

import gc
import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from towline import files
from towline.config import Frozen
from towline.errors import ConfigError, ReleaseError, TowlineError, Unavailable
from towline.registry.watch import Release, Watch
from towline.release.predictor import open_release
from towline.serving.options import Options

if TYPE_CHECKING:
    from towline.release.predictor import Model

_LOG = logging.getLogger("towline.serving")
_EVERY = 0.5  # seconds between two looks at the ledger
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
        self._watch = Watch(options.settings.ledger_url, self._name)
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
            Unavailable: the ledger is away, and nothing was served before.
        """
        try:
            wanted = self._wanted()
            model = self._load(wanted)
        except (Unavailable, ReleaseError) as error:
            good = self._good() if self.follows else None
            if good is None or isinstance(error, ReleaseError) and good == self._serves:
                raise
            if isinstance(error, ReleaseError):
                self._refuse(self._serves, error)
            else:
                self._outage(error)
            _LOG.warning("opening version %d, which served last", good.version)
            wanted, model = good, self._load(good)
        self._take(wanted, model)

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
            self._outage(TowlineError("the ledger names no champion any more", where=self._name))
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
            except Exception:
                _LOG.exception("following the ledger failed; what serves goes on serving")

    def _wanted(self) -> Release:
        if self._directory is not None:
            return Release(0, str(self._directory), "")
        if self._version is not None:
            return self._pinned(self._version)
        wanted = self._watch.champion()
        if wanted is None:
            raise _unknown(self._options, self._name)
        return wanted

    def _pinned(self, version: int) -> Release:
        try:
            known = self._watch.version(version)
        except Unavailable:
            found = sorted((self._store / "releases" / self._name).glob(f"v{version}-*"))
            if len(found) != 1:
                raise
            known = Release(version, found[0].relative_to(self._store).as_posix(), "")
        if known is None:
            raise _unknown(self._options, self._name, version)
        return known

    def _load(self, wanted: Release) -> "Model":
        model = open_release(self._store / wanted.path, self._options.trusted)
        found = model.metadata
        if self._directory is None:
            if (found.name, found.version) != (self._name, wanted.version):
                raise _refused(model, f"is {found.name} version {found.version}, not {self._name} {wanted.version}")
            if wanted.digest and found.digest != wanted.digest:
                raise _refused(model, f"has the digest {found.digest[:12]}…, the ledger says {wanted.digest[:12]}…")
        _probe(model)
        return model

    def _take(self, release: Release, model: "Model") -> None:
        before, self.model, self._serves, self._bad = self.model, model, release, None
        if before is not None:
            del before
            gc.collect()  # what the old model held goes now, not when the collector comes round to old objects
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
            _LOG.error("version %d is refused, what serves goes on serving: %s", release.version, error)
        self._bad, self._again = release.path, time.monotonic() + _AGAIN

    def _outage(self, error: TowlineError) -> None:
        if not self._away:
            _LOG.warning("cannot follow the ledger, what serves goes on serving: %s (%s)", error.what, error.where)
        self._away = True
