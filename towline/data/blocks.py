"""Blocks: histograms of the training rows by day or by group, which show how much windows differ without drift.

The rows of a window are not a random sample of the history: they share a day, its weather and its customers. The counts
of each block, in the cells and categories of the profile, preserve this variation.
"""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towline.data.text_features import text_lengths
from towline.files import read_arrays

if TYPE_CHECKING:  # drift detection does not import it
    import pandas as pd

MAX_BLOCKS, MAX_BLOCKS_OF_WIDE_TABLE, WIDE_COLUMNS = 364, 91, 100
MIN_BLOCKS = 8  # with fewer, the variation between blocks cannot be estimated
CELLS = 64  # of a column of numbers, besides one below and one above the grid
MAX_LEVELS = 64


class Blocks(NamedTuple):
    """Counts by block.

    Attributes:
        kind: ``time`` (a block is a day, in order), ``group``, or ``none`` (no blocks).
        rows: (blocks,) of all columns.
        counts: column → (blocks, cells): below the grid, its cells, above it; or the levels, most frequent first, and
            all other levels. Nulls are not counted.
    """

    kind: str
    rows: np.ndarray
    counts: dict[str, np.ndarray]


def assign_blocks(
    times: "pd.Series[Any] | None", groups: "pd.Series[Any] | None", columns: int
) -> tuple[str, np.ndarray]:
    """The kind of the blocks and the block of each row (n,), -1 for no block.

    Groups have priority over days, because the rows of a group are alike on every day; they are merged by a hash. Rows
    without a group are assigned to the blocks round-robin. If there are more days than blocks, whole weeks are
    selected, evenly over the history.

    Args:
        times: (n,) time of each row.
        groups: (n,) group of each row.
        columns: number of columns; a wide table gets fewer blocks.
    """
    import pandas as pd

    max_blocks = MAX_BLOCKS if columns <= WIDE_COLUMNS else MAX_BLOCKS_OF_WIDE_TABLE
    if groups is not None:
        hashed = pd.util.hash_pandas_object(groups.astype(str), index=False).to_numpy() % np.uint64(max_blocks)
        alone = groups.isna().to_numpy()
        hashed[alone] = np.arange(alone.sum()) % max_blocks
        return "group", np.unique(hashed, return_inverse=True)[1]
    if times is None:
        return "none", np.empty(0, dtype=np.int64)
    days = pd.to_datetime(times).to_numpy().astype("datetime64[D]")
    known = ~np.isnat(days)
    distinct_days, codes = np.unique(days[known], return_inverse=True)
    selected = np.arange(len(distinct_days))
    if len(distinct_days) > max_blocks:
        weeks = len(distinct_days) // 7
        starts = np.unique(np.linspace(0, weeks - 1, max_blocks // 7).astype(int)) * 7
        selected = (starts[:, None] + np.arange(7)).ravel()
    block_of_day = np.full(len(distinct_days), -1)
    block_of_day[selected] = np.arange(len(selected))
    blocks = np.full(len(days), -1)
    blocks[known] = block_of_day[codes]
    return "time", blocks


def count_blocks(features: "pd.DataFrame", columns: Mapping[str, Any], kind: str, block: np.ndarray) -> Blocks:
    """Counts the rows of each block.

    Args:
        features: a canonical frame, or predictions.
        columns: their profiles by name (``profile.describe_columns``).
        kind: of ``assign_blocks``.
        block: (n,) of ``assign_blocks``.
    """
    size = int(block.max(initial=-1)) + 1
    if size < MIN_BLOCKS:
        return Blocks("none", np.empty(0, dtype=np.int64), {})
    in_block = block >= 0
    block = block[in_block]
    counts = {}
    for name, profile in columns.items():
        cells, width = _find_cells(features[name][in_block], profile)
        if width:
            present = cells >= 0
            table = np.bincount(block[present] * width + cells[present], minlength=size * width)
            counts[name] = table.reshape(size, width).astype(np.int32)
    return Blocks(kind, np.bincount(block, minlength=size), counts)


def _find_cells(values: "pd.Series[Any]", profile: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """The cell of each value (n,), -1 for null, and the number of cells; 0 if the column has none."""
    if "counts" in profile:
        levels = {level: number for number, level in enumerate(list(profile["counts"])[:MAX_LEVELS])}
        cells: np.ndarray = values.map(levels).fillna(len(levels)).to_numpy(np.int64).copy()
        cells[values.isna().to_numpy()] = -1
        return cells, len(levels) + 1
    grid = profile.get("grid")
    if grid is None:
        return np.empty(0, dtype=np.int64), 0
    numbers = text_lengths(values) if profile["kind"] == "text" else values.to_numpy(np.float64)
    cells = np.full(len(numbers), -1, dtype=np.int64)
    finite = np.isfinite(numbers)
    scaled = (numbers[finite] - grid["low"]) * (CELLS / (grid["high"] - grid["low"]))
    cells[finite] = np.clip(np.floor(scaled), -1, CELLS).astype(np.int64) + 1
    cells[numbers == grid["high"]] = CELLS
    return cells, CELLS + 2


def serialize_blocks(parts: Mapping[str, Blocks]) -> bytes:
    """The bytes of a file with named blocks; equal blocks give equal bytes."""
    arrays = {}
    for part, blocks in parts.items():
        arrays[f"{part}/kind"] = np.array(blocks.kind)
        arrays[f"{part}/rows"] = blocks.rows.astype(np.int64)
        arrays[f"{part}/names"] = np.array(list(blocks.counts), dtype=np.str_)
        for number, table in enumerate(blocks.counts.values()):
            is_small = bool(table.size) and table.max() < 2**16
            arrays[f"{part}/{number}"] = table.astype(np.uint16) if is_small else table
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def deserialize_blocks(content: bytes) -> dict[str, Blocks]:
    """The named blocks of ``serialize_blocks``."""
    arrays = read_arrays(io.BytesIO(content))
    blocks = {}
    for part in dict.fromkeys(name.partition("/")[0] for name in arrays):
        names = arrays[f"{part}/names"].tolist()
        counts = {name: arrays[f"{part}/{number}"].astype(np.int64) for number, name in enumerate(names)}
        blocks[part] = Blocks(str(arrays[f"{part}/kind"]), arrays[f"{part}/rows"], counts)
    return blocks
