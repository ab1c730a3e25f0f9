"""Simulated rows, and the reference of a model trained on them, for the benchmark of drift detection.

Ten columns: five of numbers (normal, skewed, heavy-tailed, counts, whole numbers), a flag, three categories (3, 10 and
60 levels) and the model's prediction; some with nulls. Each comes from a separate normal latent variable.
"""

import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa

ROWS = 20_000
ENTITY = 20
ALIKE = 0.2
SEASON, WEATHER = 0.7, 0.3
DAYS = 730
SHARES = {
    "three": (0.5, 0.3, 0.2),
    "ten": (0.4, 0.2, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.03, 0.01),
    "sixty": tuple(1 / rank for rank in range(1, 61)),
}
NAMES = ("normal", "skewed", "heavy", "count", "whole", "flag", *SHARES, "prediction")
NULLS = {"normal": 0.05, "three": 0.1, "whole": 0.02}


def columns(latent: np.ndarray, rng: np.random.Generator, spoilt: str = "") -> pa.Table:
    """A table out of (rows, 10) latent values; ``spoilt`` names a change."""
    made: dict[str, pa.Array] = {}
    for place, name in enumerate(NAMES):
        z = latent[:, place]
        share = NULLS.get(name, 0.0)
        if name in SHARES:
            shares = np.array(SHARES[name]) / sum(SHARES[name])
            if spoilt.startswith(f"share {name}"):
                at = int(spoilt.rpartition(" ")[2])
                shares = shares * (1 - (shares[at] + 0.1)) / (1 - shares[at])
                shares[at] = 1 - np.delete(shares, at).sum()
            cuts = [NormalDist().inv_cdf(min(1 - 1e-12, cut)) for cut in np.cumsum(shares)[:-1]]
            codes = np.searchsorted(cuts, z).astype(np.int32)
            missing = rng.random(len(z)) < share if share else None
            indices = pa.array(codes, mask=missing)
            made[name] = pa.DictionaryArray.from_arrays(indices, [f"{name} {n}" for n in range(len(shares))])
            continue
        values = {
            "normal": lambda z: 10 + 3 * z, "skewed": np.exp, "heavy": lambda z: z + 0.15 * z**3,
            "count": lambda z: np.floor(np.exp(1 + 0.5 * z)), "whole": lambda z: np.round(50 + 10 * z),
            "flag": lambda z: z > 0.5, "prediction": lambda z: 100 + 20 * z,
        }[name](z)  # fmt: skip
        if spoilt == f"shift {name}":
            values = values + 0.2 * SD[name]
        if spoilt == f"nulls {name}":
            share += 0.1
        made[name] = pa.array(values, mask=rng.random(len(z)) < share if share else None)
    return pa.table(made)


def alone(rows: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(rows, len(NAMES)))


def clustered(rows: int, rng: np.random.Generator) -> np.ndarray:
    own = rng.normal(size=(math.ceil(rows / ENTITY), len(NAMES))).repeat(ENTITY, axis=0)[:rows]
    return math.sqrt(ALIKE) * own + math.sqrt(1 - ALIKE) * rng.normal(size=own.shape)


class Years:
    """Days that follow each other: a season with its own phase in each column, and weather."""

    def __init__(self, days: int, rng: np.random.Generator) -> None:
        phase = rng.random(len(NAMES)) * 2 * np.pi
        season = SEASON * np.sin(np.arange(days)[:, None] * 2 * np.pi / 365.25 + phase)
        weather, persistence = np.zeros((days, len(NAMES))), 0.6
        noise = math.sqrt(1 - persistence**2) * WEATHER
        for day in range(1, days):
            weather[day] = persistence * weather[day - 1] + noise * rng.normal(size=len(NAMES))
        self.means = season + weather

    def rows(self, day: int, rows: int, rng: np.random.Generator) -> np.ndarray:
        return self.means[day] + rng.normal(size=(rows, len(NAMES)))


SD = {
    "normal": 3.0, "skewed": math.sqrt((math.e - 1) * math.e), "whole": 10.0, "prediction": 20.0,
    **dict.fromkeys(("heavy", "count", "flag"), math.nan),
}  # fmt: skip


def release(folder: Path, kind: str, rng: np.random.Generator, days: int = DAYS) -> tuple[Path, Years]:
    """The reference of a model trained on such rows; the years continue after its last day."""
    import pandas as pd

    from towline.config import PipelineConfig
    from towline.data import blocks
    from towline.data.profile import describe_columns, profile_features
    from towline.data.schema.inference import infer_contract

    years = Years(days + 366, rng)
    if kind == "daily":
        of = np.sort(rng.integers(0, days, ROWS))
        latent = years.means[of] + rng.normal(size=(ROWS, len(NAMES)))
    else:
        latent = (clustered if kind == "clustered" else alone)(ROWS, rng)
    frame = columns(latent, rng).to_pandas()
    answers = frame[["prediction"]].astype(float)
    frame = frame.drop(columns="prediction").assign(y=np.arange(ROWS) / 7)
    for name in SHARES:
        frame[name] = frame[name].astype(object)
    config = PipelineConfig.model_validate(
        {"name": "x", "data": {"source": "t", "target": "y", "columns": dict.fromkeys(SHARES, "category")}}
    )
    contract = infer_contract(frame, config)
    features = contract.features(frame)
    inputs, outputs = profile_features(features, contract), describe_columns(answers, {"prediction": "numeric"})
    times = groups = None
    if kind == "daily":
        times = pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(of, unit="D"))
    if kind == "clustered":
        groups = pd.Series(np.arange(ROWS) // ENTITY)
    by, unit = blocks.assign_blocks(times, groups, len(NAMES))
    parts = {
        "inputs": blocks.count_blocks(features, inputs["columns"], by, unit),
        "answers": blocks.count_blocks(answers, outputs["columns"], by, unit),
    }
    made = folder / "v1-0123456789ab"
    made.mkdir(parents=True, exist_ok=True)
    (made / "contract.json").write_text(contract.model_dump_json())
    (made / "profile.json").write_text(json.dumps({**inputs, "answers": outputs}))
    (made / "blocks.npz").write_bytes(blocks.serialize_blocks(parts))
    return made, years
