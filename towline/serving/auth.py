"""The API keys of a running service, which reads their file again when it changes."""

import datetime as dt
import hmac
import logging
import time
from pathlib import Path

from towline.api_keys import MAX_KEY_LENGTH, ApiKey, KeyFile, key_digest, key_file, key_id, read_keys
from towline.errors import ConfigError

_LOG = logging.getLogger("towline.serving")
_CHECK_INTERVAL_S = 0.5  # between two checks of the file


class ApiKeys:
    """The keys of a running service. It reads the file again within a second after a change.

    While the file is damaged or missing, the last valid keys are used. A file without a key admits no caller.

    Raises:
        ConfigError: the file is damaged when the service starts.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._required = self._has_read_failed = False
        self._stamp_read = self._stamp()
        self._set_keys(read_keys(store))
        self._next = time.monotonic() + _CHECK_INTERVAL_S

    @property
    def required(self) -> bool:
        """Whether requests need a key: always, once a key file existed."""
        self.refresh()
        return self._required

    def scopes(self, presented: str) -> frozenset[str] | None:
        """The scopes of a key (admin includes predict); None if it is unknown, expired or revoked."""
        self.refresh()
        if len(presented) > MAX_KEY_LENGTH:
            return None
        key = self._keys.get(key_id(presented), _UNKNOWN_KEY)
        if not hmac.compare_digest(key_digest(presented), key.sha256) or key.revoked is not None:
            return None
        if key.expires is not None and key.expires.timestamp() <= time.time():
            return None
        return _GRANTED_SCOPES["admin" if "admin" in key.scopes else "predict"]

    def identity(self, presented: str) -> str:
        """The id of a stored key, for rate limits and logs; ``unknown`` for any other text."""
        name = key_id(presented)
        return name if name in self._keys else "unknown"

    def refresh(self) -> None:
        """Reads the file again if it has changed; checks at most twice a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _CHECK_INTERVAL_S
        stamp = self._stamp()
        has_changed = stamp != self._stamp_read
        if not has_changed and not self._has_read_failed:
            return
        self._stamp_read, self._has_read_failed = stamp, False
        if stamp is None:
            _LOG.error("the key file is missing (%s): the keys read last stay in force", key_file(self._store))
            return
        try:
            self._set_keys(read_keys(self._store))
        except ConfigError as error:
            self._has_read_failed = True  # a mount may recover without a change of the file
            if has_changed:
                _LOG.error("%s (%s): the keys read last stay in force", error.what, error.where)

    def _set_keys(self, stored: KeyFile) -> None:
        self._keys = {key.id: key for key in stored.keys}
        self._required |= bool(stored.keys) or self._stamp_read is not None
        if self._required and not stored.keys:
            _LOG.error(
                "%s holds no key: all requests are refused until you run `towline keys create NAME`",
                key_file(self._store),
            )

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = key_file(self._store).stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


_GRANTED_SCOPES = {"predict": frozenset({"predict"}), "admin": frozenset({"predict", "admin"})}
# an unknown key is compared with this record, so that it takes as long as a known one
_UNKNOWN_KEY = ApiKey(
    id="0" * 8, name="nobody", scopes=("predict",), sha256="0" * 64, created=dt.datetime.fromtimestamp(0, dt.UTC)
)
