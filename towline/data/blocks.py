"""Blocks: histograms of the training rows by day or by group, which show how much windows differ without drift.

The rows of a window are not a random sample of the history: they share a day, its weather and its customers. The counts
of each block, in the cells and categories of the profile, preserve this variation.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towline.files import read_arrays

if TYPE_CHECKING:  # drift detection does not import it
    import pandas as pd

BLOCKS = 364
CELLS = 64  # of a column of numbers, between the two that lie beyond the grid
LEVELS = 64
WIDE = 100  # columns: with more than these, blocks are fewer
_LEAST = 8  # blocks: fewer tell nothing of how blocks differ


class Blocks(NamedTuple):
    """Counts by block.

    Attributes:
        kind: ``time`` (a block is a day, in order), ``group``, or ``none`` (no blocks).
        rows: (blocks,) of all columns.
        counts: column → (blocks, cells): below the grid, its cells, above it; or levels, most frequent first, and the
            rest. Nulls are what is missing from ``rows``.
    """

    kind: str
    rows: np.ndarray
    counts: dict[str, np.ndarray]


def assign_blocks(
    times: "pd.Series[Any] | None", groups: "pd.Series[Any] | None", columns: int
) -> tuple[str, np.ndarray]:
    """Which block each row belongs to, -1 for none. A group goes before time: its rows are alike on every day.

    Of more days than are kept, whole weeks are taken, evenly over the history. Groups are put together by a hash.
    """
    import pandas as pd

    most = BLOCKS if columns <= WIDE else BLOCKS // 4
    if groups is not None:
        hashed = pd.util.hash_pandas_object(groups.astype(str), index=False).to_numpy() % np.uint64(most)
        return "group", np.unique(hashed, return_inverse=True)[1]
    if times is None:
        return "none", np.empty(0, dtype=np.int64)
    days = pd.to_datetime(times).to_numpy().astype("datetime64[D]")
    known = ~np.isnat(days)
    present, codes = np.unique(days[known], return_inverse=True)
    selected = np.arange(len(present))
    if len(present) > most:
        weeks = len(present) // 7
        starts = np.unique(np.linspace(0, weeks - 1, most // 7).astype(int)) * 7
        selected = (starts[:, None] + np.arange(7)).ravel()
    place = np.full(len(present), -1)
    place[selected] = np.arange(len(selected))
    blocks = np.full(len(days), -1)
    blocks[known] = place[codes]
    return "time", blocks


def count_blocks(features: "pd.DataFrame", facts: Mapping[str, Any], kind: str, unit: np.ndarray) -> Blocks:
    """Counts the rows of each block.

    Args:
        features: a canonical frame, or the predictions made of one.
        facts: of ``profile``, by column.
        kind: of ``units``.
        unit: of the same, one for each row.
    """
    size = int(unit.max(initial=-1)) + 1
    if size < _LEAST:
        return Blocks("none", np.empty(0, dtype=np.int64), {})
    inside = unit >= 0
    of = unit[inside]
    counts = {}
    for name, fact in facts.items():
        codes, width = _codes(features[name][inside], fact)
        if width:
            there = codes >= 0
            table = np.bincount(of[there] * width + codes[there], minlength=size * width)
            counts[name] = table.reshape(size, width).astype(np.int32)
    return Blocks(kind, np.bincount(of, minlength=size), counts)


def _codes(values: "pd.Series[Any]", facts: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """The cell of each value, -1 for null, and how many cells there are; 0 where the column has none."""
    if "counts" in facts:
        names = list(facts["counts"])[:LEVELS]
        codes: np.ndarray = (
            values.map({name: at for at, name in enumerate(names)}).fillna(len(names)).to_numpy(np.int64).copy()
        )
        codes[values.isna().to_numpy()] = -1
        return codes, len(names) + 1
    grid = facts.get("grid")
    if grid is None:
        return np.empty(0, dtype=np.int64), 0
    numbers = values.to_numpy(np.float64)
    place = np.full(len(numbers), -1, dtype=np.int64)
    there = np.isfinite(numbers)
    scaled = (numbers[there] - grid["low"]) * (CELLS / (grid["high"] - grid["low"]))
    place[there] = np.clip(np.floor(scaled), -1, CELLS).astype(np.int64) + 1
    place[numbers == grid["high"]] = CELLS
    return place, CELLS + 2


def serialize_blocks(parts: Mapping[str, Blocks]) -> bytes:
    """Blocks under names, as the bytes of a file; equal blocks give equal bytes."""
    arrays = {}
    for part, blocks in parts.items():
        arrays[f"{part}/kind"] = np.array(blocks.kind)
        arrays[f"{part}/rows"] = blocks.rows.astype(np.int64)
        arrays[f"{part}/names"] = np.array(list(blocks.counts), dtype=np.str_)
        for at, table in enumerate(blocks.counts.values()):
            small = table.astype(np.uint16) if table.size and table.max() < 2**16 else table
            arrays[f"{part}/{at}"] = small
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def deserialize_blocks(content: bytes) -> dict[str, Blocks]:
    """The reverse of ``packed``."""
    arrays = read_arrays(io.BytesIO(content))
    blocks = {}
    for part in dict.fromkeys(name.partition("/")[0] for name in arrays):
        names = arrays[f"{part}/names"].tolist()
        counts = {name: arrays[f"{part}/{at}"].astype(np.int64) for at, name in enumerate(names)}
        blocks[part] = Blocks(str(arrays[f"{part}/kind"]), arrays[f"{part}/rows"], counts)
    return blocks
