"""A damaged release is never opened."""

import random
from pathlib import Path

import pytest

from towline.errors import ReleaseError
from towline.inference.predictor import open_release


@pytest.mark.slow
def test_a_flipped_byte_at_any_position_is_refused(release: Path) -> None:
    """At each of 1,000 positions over all files; the restored release can be opened."""
    files = {path: path.read_bytes() for path in sorted(release.rglob("*")) if path.is_file()}
    draw = random.Random(11)
    places = [(path, draw.randrange(len(files[path]))) for path in files for _ in range(-(-1000 // len(files)))]
    assert len(places) >= 1000
    for path, position in places:
        spoilt = bytearray(files[path])
        spoilt[position] ^= 1 << draw.randrange(8)
        path.write_bytes(spoilt)
        with pytest.raises(ReleaseError):
            open_release(release)
        path.write_bytes(files[path])
    assert open_release(release).compiled
