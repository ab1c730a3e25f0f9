"""A prediction log and a release that it logs for."""

from tests.support.prediction_log_fixtures import folder, log, release

__all__ = ["folder", "log", "release"]
