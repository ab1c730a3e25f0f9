"""Lookups of columns give the same rows as lookups of single values."""

import numpy as np
import pytest

from towline.inference.compiled.feature_lookups import NumericLookup

SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "tied": lambda rng, n: rng.integers(-50, 50, n) + 0.5,
    "skewed": lambda rng, n: np.exp(5 * rng.normal(size=n)),
    "tiny": lambda rng, n: 1e-310 * rng.normal(size=n),
    "huge": lambda rng, n: 1e300 * rng.normal(size=n),
    "far from zero": lambda rng, n: 1e15 + rng.integers(0, 10_000, n),
    "with extremes": lambda rng, n: np.concatenate([rng.normal(size=n), [1e308, -1e308]]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [0, 1, 20, 255])
def test_a_column_of_numbers_gets_the_rows_of_its_values(shape: str, count: int) -> None:
    rng = np.random.default_rng(count)
    cuts = np.unique(SHAPES[shape](rng, count)).astype(np.float64)
    near = np.concatenate([cuts, np.nextafter(cuts, np.inf), np.nextafter(cuts, -np.inf)])
    others = [0.0, -0.0, 1.7e308, -1.7e308, 5e-324, np.inf, -np.inf, np.nan]
    values = np.concatenate([near, SHAPES[shape](rng, 200), others])
    lookup = NumericLookup(0, cuts=tuple(cuts.tolist()))
    assert lookup.indices(values).tolist() == [lookup.index(value) for value in values.tolist()]
