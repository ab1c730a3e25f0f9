"""Config keys that had another name before: an error for an old key names the new one."""

from collections.abc import Mapping

#: old key → new key, both in full, without positions in lists
RENAMED: Mapping[str, str] = {
    "data.level": "data.detrend",
    "retrain.need": "retrain.bad_windows",
    "retrain.of": "retrain.recent_windows",
    "retrain.signs": "retrain.triggers",
}
