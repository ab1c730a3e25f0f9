"""A plan on disk: its tables as NumPy arrays, the rest as JSON; nothing in it is ever executed."""

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from towline.errors import ReleaseError
from towline.inference.compiled.plan import (
    Bits,
    Head,
    Level,
    Linear,
    Nodes,
    Number,
    Output,
    Part,
    Plan,
    Slot,
    Sum,
    Vector,
    Walk,
)

PLAN = "plan.npz"
FORMAT = 1


def write(plan: Plan, file: IO[bytes]) -> None:
    """Writes a plan; equal plans give equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    slots: list[dict[str, Any]] = []

    def keep(slot: Slot, **tables: np.ndarray | None) -> None:
        at = len(slots)
        slots.append(_described(slot))
        if isinstance(slot, Number):
            tables["cuts"] = np.array(slot.cuts, dtype=np.float64)
        arrays.update({f"{name}.{at}": table for name, table in tables.items() if table is not None})

    head, extra = plan.head, {}
    if isinstance(head, Linear):
        for share in head.shares:
            keep(share.slot, rows=share.rows, slope=share.slope)
    elif isinstance(head, Bits):
        arrays["leaves"] = head.leaves
        for slot, masks in head.masks:
            keep(slot, masks=masks)
    elif isinstance(head, Walk):
        arrays |= head.nodes._asdict()
        extra = {"width": head.width, "depth": head.depth, "single": head.single}
        for vector in head.vectors:
            keep(vector.slot, at=vector.at, rows=vector.rows)
    arrays["start"] = head.start  # type: ignore[attr-defined]
    described = {
        "format": FORMAT,
        "head": type(head).__name__,
        "output": dataclasses.asdict(plan.output),
        "slots": slots,
        **extra,
    }
    arrays["plan"] = np.frombuffer(json.dumps(described, ensure_ascii=False).encode(), dtype=np.uint8)
    np.savez_compressed(file, allow_pickle=False, **arrays)


def read(path: Path) -> Plan:
    """Reads a plan whose digest has been checked.

    Raises:
        ReleaseError: it is not a plan of this format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        raw = json.loads(arrays["plan"].tobytes())
        output = raw["output"] | {"order": tuple(raw["output"]["order"])}
        return Plan(_head(raw, arrays), Output(**output))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ReleaseError(
            f"the compiled scorer cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy="run the pipeline again, or install the version of towline that wrote it",
        ) from error


def _head(raw: dict[str, Any], arrays: dict[str, np.ndarray]) -> Head:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']}, not {FORMAT}")
    slots = [_slot(one, arrays.get(f"cuts.{at}")) for at, one in enumerate(raw["slots"])]
    start = arrays["start"]
    if raw["head"] == "Linear":
        shares = [Sum(slot, arrays[f"rows.{at}"], arrays.get(f"slope.{at}")) for at, slot in enumerate(slots)]
        return Linear(start, shares)
    if raw["head"] == "Bits":
        return Bits(start, [(slot, arrays[f"masks.{at}"]) for at, slot in enumerate(slots)], arrays["leaves"])
    if raw["head"] != "Walk":
        raise ValueError(f"unknown head {raw['head']!r}")
    vectors = [
        Vector(slot, arrays[f"at.{at}"], arrays[f"rows.{at}"], isinstance(slot, Number))
        for at, slot in enumerate(slots)
    ]
    nodes = Nodes(**{name: arrays[name] for name in Nodes._fields})
    return Walk(start, vectors, raw["width"], nodes, raw["depth"], raw["single"])


def _described(slot: Slot) -> dict[str, Any]:
    if isinstance(slot, Number):
        return {"kind": "number", "column": slot.column, "mean": slot.mean, "scale": slot.scale}
    if isinstance(slot, Level):
        return {"kind": "level", "column": slot.column, "keys": [key for key in slot.keys if key is not None]}
    return {"kind": "part", "column": slot.column, "part": cast("Part", slot).part}


def _slot(raw: dict[str, Any], cuts: np.ndarray | None) -> Slot:
    if raw["kind"] == "number":
        return Number(raw["column"], raw["mean"], raw["scale"], () if cuts is None else tuple(cuts.tolist()))
    if raw["kind"] == "level":
        return Level(raw["column"], {None: 0} | {key: row for row, key in enumerate(raw["keys"], 2)})
    return Part(raw["column"], raw["part"])
