"""The file format of a plan: tables as NumPy arrays, the rest as JSON. Reading it never executes code."""

import dataclasses
import json
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from towline.data.text_features import TextProjection
from towline.errors import ReleaseError
from towline.inference.compiled.feature_lookups import CalendarLookup, CategoryLookup, FeatureLookup, NumericLookup
from towline.inference.compiled.plan import (
    AgeColumn,
    BitmaskForest,
    DesignColumns,
    LinearSum,
    LinearTerm,
    OutputTransform,
    Plan,
    RawScorer,
    TextColumns,
    TraversedForest,
    TreeNodes,
    WeightedMean,
)
from towline.training.calibration import Calibration

PLAN_FILE = "plan.npz"
FORMAT = 6
_READABLE = (2, 3, 4, 5, FORMAT)  # 2 had no derived columns, 3 no ensembles, 4 no calibration, 5 one threshold only
#: field of TreeNodes → its name in plan files, if it is another
_STORED_NAMES = {"children": "kids"}
#: names of the scorers in plan files, certificates and model cards
KINDS: dict[type, str] = {
    LinearSum: "linear", BitmaskForest: "bitmask forest", TraversedForest: "traversed forest", WeightedMean: "ensemble",
}  # fmt: skip


def describe_scorer(plan: Plan) -> str:
    """The kind of the plan's scorer; of an ensemble also those of its parts."""
    kind, scorer = KINDS[type(plan.scorer)], plan.scorer
    if isinstance(scorer, WeightedMean):
        return f"{kind} of {', '.join(describe_scorer(part) for part in scorer.parts)}"
    return kind


def write_plan(plan: Plan, file: IO[bytes]) -> None:
    """Writes a plan; equal plans are written as equal bytes."""
    np.savez_compressed(file, allow_pickle=False, **_plan_arrays(plan))


def _plan_arrays(plan: Plan) -> dict[str, np.ndarray]:
    """The arrays of a plan file; ``plan`` holds its JSON."""
    arrays: dict[str, np.ndarray] = {}
    scorer = plan.scorer
    if isinstance(scorer, WeightedMean):
        document: dict[str, Any] = {"slots": [], "weights": list(scorer.weights)}
        for at, part in enumerate(scorer.parts):
            arrays |= {f"part{at}.{name}": array for name, array in _plan_arrays(part).items()}
    else:
        document = _scorer_document(scorer, arrays)
    document = {
        "format": FORMAT,
        "scorer": KINDS[type(scorer)],
        "output": _output_document(plan.output),
        "derived": [_derived_document(part, arrays, at) for at, part in enumerate(plan.derived)],
        **document,
    }
    arrays["plan"] = np.frombuffer(json.dumps(document, ensure_ascii=False).encode(), dtype=np.uint8)
    return arrays


def _output_document(output: OutputTransform) -> dict[str, Any]:
    document = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return document | {"calibration": output.calibration.model_dump(mode="json") if output.calibration else None}


def _scorer_document(scorer: RawScorer, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The JSON of a scorer; adds its tables to the arrays."""
    lookups: list[dict[str, Any]] = []

    def add_lookup(lookup: FeatureLookup, **tables: np.ndarray | None) -> None:
        at = len(lookups)
        lookups.append(_lookup_document(lookup))
        if isinstance(lookup, NumericLookup):
            tables["cuts"] = np.array(lookup.cuts, dtype=np.float64)
        arrays.update({f"{name}.{at}": table for name, table in tables.items() if table is not None})

    document: dict[str, Any] = {"slots": lookups}
    arrays["start"] = scorer.start  # type: ignore[attr-defined]
    if isinstance(scorer, LinearSum):
        for term in scorer.terms:
            add_lookup(term.lookup, rows=term.rows, slope=term.slope)
    elif isinstance(scorer, BitmaskForest):
        arrays["leaves"] = scorer.leaves
        for lookup, masks in scorer.masks:
            add_lookup(lookup, masks=masks)
    elif isinstance(scorer, TraversedForest):
        arrays |= {_STORED_NAMES.get(name, name): array for name, array in scorer.nodes._asdict().items()}
        document |= {"width": scorer.width, "depth": scorer.depth, "single": scorer.single}
        for columns in scorer.design_columns:
            add_lookup(columns.lookup, at=columns.at, rows=columns.rows)
    return document


def read_plan(path: Path) -> Plan:
    """Reads a plan; its digest must have been checked.

    Raises:
        ReleaseError: the file is not a plan of this format.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return _read_arrays(dict(file))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ReleaseError(
            f"the compiled scorer cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy="run the pipeline again, or install the version of towline that wrote it",
        ) from error


def _read_arrays(arrays: dict[str, np.ndarray]) -> Plan:
    raw = json.loads(arrays["plan"].tobytes())
    output = raw["output"] | {"order": tuple(raw["output"]["order"])}
    if isinstance(output.get("threshold"), list):
        output["threshold"] = tuple(output["threshold"])
    if calibration := output.get("calibration"):
        output["calibration"] = Calibration.model_validate(calibration)
    derived = tuple(_read_derived(document, arrays, at) for at, document in enumerate(raw.get("derived", ())))
    return Plan(_read_scorer(raw, arrays), OutputTransform(**output), derived)


def _read_scorer(raw: dict[str, Any], arrays: dict[str, np.ndarray]) -> RawScorer:
    if raw["format"] not in _READABLE:
        raise ValueError(f"format {raw['format']}, not {FORMAT}")
    if raw["scorer"] == "ensemble":
        prefixes = [f"part{at}." for at in range(len(raw["weights"]))]
        parts = [
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            for prefix in prefixes
        ]
        return WeightedMean([_read_arrays(part) for part in parts], raw["weights"])
    lookups = [_read_lookup(document, arrays.get(f"cuts.{at}")) for at, document in enumerate(raw["slots"])]
    start = arrays["start"]
    if raw["scorer"] == "linear":
        terms = [
            LinearTerm(lookup, arrays[f"rows.{at}"], arrays.get(f"slope.{at}")) for at, lookup in enumerate(lookups)
        ]
        return LinearSum(start, terms)
    if raw["scorer"] == "bitmask forest":
        masks = [(lookup, arrays[f"masks.{at}"]) for at, lookup in enumerate(lookups)]
        return BitmaskForest(start, masks, arrays["leaves"])
    if raw["scorer"] != "traversed forest":
        raise ValueError(f"unknown scorer {raw['scorer']!r}")
    design_columns = [
        DesignColumns(lookup, arrays[f"at.{at}"], arrays[f"rows.{at}"], isinstance(lookup, NumericLookup))
        for at, lookup in enumerate(lookups)
    ]
    nodes = TreeNodes(**{name: arrays[_STORED_NAMES.get(name, name)] for name in TreeNodes._fields})
    return TraversedForest(start, design_columns, raw["width"], nodes, raw["depth"], raw["single"])


def _derived_document(part: AgeColumn | TextColumns, arrays: dict[str, np.ndarray], at: int) -> dict[str, Any]:
    """The JSON of derived columns; adds their tables to the arrays."""
    if isinstance(part, AgeColumn):
        latest = part.latest if math.isfinite(part.latest) else None
        return {"kind": "age", "column": part.column, "time": part.time, "latest": latest}
    projection = part.projection
    vocabulary = json.dumps(list(projection.vocabulary)).encode()
    arrays[f"vocabulary.{at}"] = np.frombuffer(vocabulary, dtype=np.uint8)
    arrays |= {f"weights.{at}": projection.weights, f"components.{at}": projection.components}
    return {"kind": "text", "column": part.column, "analyzer": projection.analyzer}


def _read_derived(raw: dict[str, Any], arrays: dict[str, np.ndarray], at: int) -> AgeColumn | TextColumns:
    if raw["kind"] == "age":
        latest = raw.get("latest")  # a plan of an earlier format has none
        return AgeColumn(raw["column"], raw["time"], math.inf if latest is None else latest)
    vocabulary = {term: row for row, term in enumerate(json.loads(arrays[f"vocabulary.{at}"].tobytes()))}
    projection = TextProjection(raw["analyzer"], vocabulary, arrays[f"weights.{at}"], arrays[f"components.{at}"])
    return TextColumns(raw["column"], projection)


def _lookup_document(lookup: FeatureLookup) -> dict[str, Any]:
    if isinstance(lookup, NumericLookup):
        return {"kind": "number", "column": lookup.column, "mean": lookup.mean, "scale": lookup.scale}
    if isinstance(lookup, CategoryLookup):
        return {"kind": "level", "column": lookup.column, "keys": [key for key in lookup.keys if key is not None]}
    return {"kind": "part", "column": lookup.column, "part": cast("CalendarLookup", lookup).part}


def _read_lookup(raw: dict[str, Any], cuts: np.ndarray | None) -> FeatureLookup:
    if raw["kind"] == "number":
        return NumericLookup(raw["column"], raw["mean"], raw["scale"], () if cuts is None else tuple(cuts.tolist()))
    if raw["kind"] == "level":
        return CategoryLookup(raw["column"], {None: 0} | {key: row for row, key in enumerate(raw["keys"], 2)})
    return CalendarLookup(raw["column"], raw["part"])
