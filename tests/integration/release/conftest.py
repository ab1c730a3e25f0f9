"""A small trained run of each task, packaged once for the tests of this folder."""

from tests.support.release_fixtures import binary, packed, regression, release

__all__ = ["binary", "packed", "regression", "release"]
