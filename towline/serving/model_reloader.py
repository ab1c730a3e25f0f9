"""The model reloader: holds the model that answers requests and replaces it when the ledger names another champion.

A thread polls the ledger. A new release is verified, opened and tested on its probe rows before it replaces the current
model. If any step fails, the current model stays. The last good release is written to a file, so that the service can
start while the ledger is unavailable.
"""

import contextlib
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
from towline.registry.champion_watcher import ChampionWatcher, RecordedRelease
from towline.registry.rollouts import Rollout
from towline.rollout.service_counts import stop_challenger, stop_reason
from towline.serving.options import ServeOptions
from towline.serving.rollout_arms import ActiveRollout
from towline.store import StoreLayout

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LOG = logging.getLogger("towline.serving")
_POLL_INTERVAL_S = 0.25
_RETRY_INTERVAL_S = 30.0  # after which a rejected release is tried again: it may have been restored
_NO_CHAMPION = TowlineError("it names no champion", where="TOWLINE_LEDGER_URL")


class LastKnownGood(Frozen):
    """The release that was served last, as stored in ``serving/<name>.json``."""

    name: str
    version: int
    release: str
    digest: str


class ModelReloader:
    """Holds the model of a service. Requests read ``model`` once; only ``open`` and the polling thread replace it.

    Args:
        options: which model, and where its store and ledger are.

    Attributes:
        model: the model that answers; None before ``open``.
        ready: whether load balancers should send requests to this process.
        reason: why it is not ready; empty when it is.
        rejections: how many releases were rejected because a check failed.
        rollout: the current rollout, with the challenger's model; None without one.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.model: Model | None = None
        self.rollout: ActiveRollout | None = None
        self.ready = False
        self.reason = "starting"
        self.rejections = 0
        self._options = options
        self._store = options.settings.store
        self._directory, self._name, self._version = _parse_target(options.name)
        self._watch = ChampionWatcher(options.settings.ledger_url, self._name)
        self._current: RecordedRelease | None = None
        self._rejected_path: str | None = None
        self._retry_at = 0.0
        self._ledger_unavailable = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def follows(self) -> bool:
        """Whether the model follows the champion in the ledger: not for a fixed version or a directory."""
        return self._directory is None and self._version is None

    def open(self) -> None:
        """Opens the release that the ledger names, or else the last known good one.

        Raises:
            ConfigError: there is no such model, or it has no champion.
            ReleaseError: the release does not match its manifest, and none was served before.
            TransientError: the ledger is unavailable, and no release was served before.
        """
        release = self._initial_release()
        try:
            model = self._load(release)
        except ReleaseError as error:
            last_good = self._last_known_good()
            if last_good is None or last_good.path == release.path:
                raise
            self._reject(release, error)
            release, model = last_good, self._load(last_good)
        self._set_model(release, model)
        if self.follows:
            self._open_rollout()

    def unavailable_reason(self) -> str:
        """Why there is no version to serve yet; empty when there is one.

        Raises:
            ConfigError: the name of the model or the ledger's address is invalid.
        """
        if not self.follows or self._last_known_good() is not None:
            return ""
        try:
            return "" if self._watch.champion() else "it has no champion yet"
        except TransientError as error:
            return error.what

    def follow(self) -> None:
        """Marks the service as ready, and starts the thread that polls the ledger."""
        self.ready, self.reason = True, ""
        if self.follows:
            self._thread = threading.Thread(target=self._run, name="towline-reload", daemon=True)
            self._thread.start()

    def check_ledger(self) -> None:
        """Reads the champion once, and replaces the model if another release can be opened. Never raises."""
        try:
            champion, rollout = self._watch.champion(), self._watch.rollout()
        except TowlineError as error:
            self._log_outage(error)
            return
        if champion is None:
            self._log_outage(_NO_CHAMPION)
            return
        if self._ledger_unavailable:
            self._ledger_unavailable = False
            _LOG.info("the ledger is available again")
        self._follow_champion(champion)
        self._follow_rollout(rollout)

    def catch_up(self) -> None:
        """Like ``check_ledger``, for a worker that was forked after the start and has the model of the start.

        While the ledger is unavailable, it gets the release that the other workers serve.
        """
        self.check_ledger()
        last_good = self._last_known_good() if self._ledger_unavailable else None
        if last_good is not None:
            self._follow_champion(last_good)
            self._follow_rollout(self._stored_rollout())

    def _follow_champion(self, champion: RecordedRelease) -> None:
        if self._current is not None and champion.path == self._current.path:
            self._rejected_path = None
            return
        if champion.path == self._rejected_path and time.monotonic() < self._retry_at:
            return
        started = time.perf_counter()
        try:
            model = self._load(champion)
        except (TowlineError, OSError) as error:
            self._reject(champion, error)
            return
        self._set_model(champion, model)
        self._rejected_path = None
        _LOG.info("now serving version %d, opened in %.0f ms", model.version, (time.perf_counter() - started) * 1e3)

    def _open_rollout(self) -> None:
        """Follows the rollout from the start, so that no key changes its version when the service is restarted."""
        try:
            self._follow_rollout(self._watch.rollout())
        except TowlineError:
            if stored := self._stored_rollout():
                self._follow_rollout(stored)

    def _follow_rollout(self, rollout: Rollout | None) -> None:
        """Opens the challenger of a rollout, or lets it go. A challenger that cannot be opened is stopped."""
        active = self.rollout
        if rollout == (active.rollout if active else None):
            return
        is_same = active is not None and rollout is not None and active.rollout.challenger == rollout.challenger
        challenger = active.challenger if active is not None and is_same else None
        if rollout is not None and challenger is None:
            folder = self._options.settings.layout.rollout(self._name, rollout.id)
            if stop_reason(folder):
                self.rollout = None
                return
            try:
                challenger = self._load(RecordedRelease(rollout.challenger, rollout.release, rollout.digest))
            except (TowlineError, OSError) as error:
                self.rollout = None
                stop_challenger(folder, f"version {rollout.challenger} cannot be opened: {error}")
                _LOG.error("version %d cannot be opened, the champion serves alone: %s", rollout.challenger, error)
                return
        if rollout is None or challenger is None:
            self.rollout = None
            with contextlib.suppress(OSError):  # in a folder that cannot be written it never was
                self._rollout_path().unlink()
            return
        folder = self._options.settings.layout.rollout(self._name, rollout.id)
        self.rollout = ActiveRollout(rollout, challenger, folder)
        _LOG.info("rollout: %s", rollout.describe())
        try:
            files.write(self._rollout_path(), rollout.model_dump_json(indent=1) + "\n")
        except (TowlineError, OSError) as error:
            _LOG.warning("cannot store the rollout, so it is lost after a restart without the ledger: %s", error)

    def _stored_rollout(self) -> Rollout | None:
        try:
            return Rollout.model_validate_json(self._rollout_path().read_bytes())
        except (OSError, ValidationError):
            return None

    def _rollout_path(self) -> Path:
        return self._options.state / f"{self._name}.rollout.json"

    def drain(self) -> None:
        """Marks the service as not ready; the model still answers requests that arrive."""
        self.ready, self.reason = False, "draining"

    def close(self) -> None:
        """Stops the polling thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stop.wait(_POLL_INTERVAL_S):
            try:
                self.check_ledger()
            except Exception:  # noqa: BLE001 - the service continues after any error of a database or a release
                _LOG.exception("checking the ledger failed; the current model stays")

    def _initial_release(self) -> RecordedRelease:
        if self._directory is not None:
            return RecordedRelease(0, str(self._directory), "")
        if self._version is not None:
            return self._fixed_version(self._version)
        try:
            champion = self._watch.champion()
        except (TransientError, ReleaseError) as error:
            last_good = self._last_known_good()
            if last_good is None:
                raise
            self._log_outage(error)
            return last_good
        if champion is not None:
            return champion
        last_good = self._last_known_good()
        if last_good is None:
            return self._recorded_release(self._name)
        self._log_outage(_NO_CHAMPION)
        return last_good

    def _fixed_version(self, version: int) -> RecordedRelease:
        try:
            release = self._watch.version(version)
        except TransientError:
            folders = sorted((StoreLayout(self._store).releases / self._name).glob(f"v{version}-*"))
            if len(folders) != 1:
                raise
            release = RecordedRelease(version, folders[0].relative_to(self._store).as_posix(), "")
        return release or self._recorded_release(f"{self._name}@{version}")

    def _recorded_release(self, text: str) -> RecordedRelease:
        """The release of ``NAME`` or ``NAME@VERSION``; the error for a missing one lists the versions that exist."""
        from towline.registry.ledger import open_ledger
        from towline.registry.selection import require_release, select_version

        ledger = open_ledger(self._options.settings)
        entry = require_release(select_version(self._options.settings, ledger, text))
        return RecordedRelease(entry.version, entry.release, ledger.digest(entry))

    def _load(self, release: RecordedRelease) -> Model:
        model = open_release(self._store / release.path, self._options.trusted, release.digest)
        manifest = model.metadata
        if self._directory is None and (manifest.name, manifest.version) != (self._name, release.version):
            expected = f"{self._name} {release.version}"
            raise _release_error(model, f"is {manifest.name} version {manifest.version}, not {expected}")
        check_probe_rows(model)
        return model

    def _set_model(self, release: RecordedRelease, model: Model) -> None:
        self.model, self._current = model, release
        if not self.follows:
            return
        last_good = LastKnownGood(
            name=model.name, version=model.version, release=release.path, digest=model.metadata.digest
        )
        path, text = self._path(), last_good.model_dump_json(indent=1) + "\n"
        try:
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                files.write(path, text)
        except (TowlineError, OSError, ValueError) as error:
            _LOG.warning("cannot store the served version, so the service cannot start without the ledger: %s", error)

    def _last_known_good(self) -> RecordedRelease | None:
        if not self.follows:
            return None
        try:
            stored = LastKnownGood.model_validate_json(self._path().read_bytes())
        except (OSError, ValidationError):
            return None
        return RecordedRelease(stored.version, stored.release, stored.digest) if stored.name == self._name else None

    def _path(self) -> Path:
        return self._options.state / f"{self._name}.json"

    def _reject(self, release: RecordedRelease, error: Exception) -> None:
        if release.path != self._rejected_path:
            self.rejections += 1
            reason = f"{error.what} ({error.where})" if isinstance(error, TowlineError) else str(error)
            _LOG.error("version %d is rejected, the current model stays: %s", release.version, reason)
        self._rejected_path, self._retry_at = release.path, time.monotonic() + _RETRY_INTERVAL_S

    def _log_outage(self, error: TowlineError) -> None:
        if not self._ledger_unavailable:
            _LOG.warning("cannot read the ledger, the current model stays: %s (%s)", error.what, error.where)
        self._ledger_unavailable = True


def check_probe_rows(model: Model) -> int:
    """Scores the probe rows of a release on this machine and compares the labels with the stored ones.

    Returns:
        How many rows were compared.

    Raises:
        ReleaseError: a row cannot be scored, or has another label.
    """
    try:
        stored = json.loads((model.directory / "probe.json").read_bytes())
        labels, expected_labels = model.predict_rows(stored["rows"]).predictions, stored["labels"]
    except Exception as error:
        raise _release_error(model, f"cannot answer its own probe rows: {type(error).__name__}: {error}") from error
    for row, (label, expected) in enumerate(zip(labels, expected_labels, strict=True)):
        close = isinstance(expected, float) and math.isclose(label, expected, rel_tol=1e-9, abs_tol=1e-12)
        if type(label) is not type(expected) or not (close or label == expected):  # in Python 1 == True
            raise _release_error(model, f"answers probe row {row} with {label!r} instead of {expected!r}")
    return len(expected_labels)


def _parse_target(name: str) -> tuple[Path | None, str, int | None]:
    """The release directory, the name of the model and the version that ``NAME[@VERSION]|PATH`` means."""
    path = Path(name)
    if os.sep in name or (path / MANIFEST).is_file():
        return path.absolute(), path.name, None
    model, at, version = name.partition("@")
    if not NAME.fullmatch(model) or (at and not version.isdecimal()):
        raise ConfigError(
            f"not a model: {name!r}", where="command line", remedy="write NAME, NAME@3, or a path to a release"
        )
    return None, model, int(version) if at else None


def _release_error(model: Model, finding: str) -> ReleaseError:
    return ReleaseError(f"the release {finding}", where=str(model.directory), remedy=REMEDY)
