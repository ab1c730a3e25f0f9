"""Random tables and configs: odd names, mixed types, nulls, every kind of target, tiny and wide, CSV and Parquet."""

import keyword
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from hypothesis import strategies as st

ODD = [
    "a b", " lead", "trail ", "größe", "温度", "🚲", "it's", 'say "hi"', "a[0]", "{x}", "a.b", "a,b", "a;b",
    "two\nlines",
    "tab\t",
    "x" * 300, "1; DROP TABLE rows;--", "' OR 1=1 --", "target", "index", "nan", "None", "null", "NaN", "0", "1.5", "-",
    "%s",
    "${HOME}", "__class__", "self", "row", "time", "level_0", "<b>bold</b>", "$x^2$", "a_b", "\\frac", "#", "@", "a=b",
    "a/b",
    "../up", "True", "predict", "column", "&amp;", "e\u0301", "\u200b", "a`b", "|", "{{ x }}", "class", "count",
    "sum", "month", "a__month",
]  # fmt: skip
KINDS = [
    "float", "float", "int", "int", "bool", "yes-no", "levels", "levels", "98 levels", "date", "stamp", "stamp text",
    "constant",
    "constant text", "null", "text", "id", "key", "huge", "long", "words", "tiny", "numbers as text", "mixed",
    "infinite",
]  # fmt: skip
TARGETS = [
    "float",
    "int",
    "zeros",
    "skewed",
    "yes-no",
    "bool",
    "0-1",
    "rare",
    "1.0-2.0",
    "three",
    "ints",
    "odd classes",
]


@dataclass(frozen=True)
class Case:
    """The specification of a random table; ``write`` creates the table."""

    rows: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    nulls: tuple[float, ...]
    target: str
    time: str
    group: bool
    parquet: bool
    folds: int
    candidate: Any
    seed: int

    def table(self) -> pd.DataFrame:
        rng = np.random.default_rng(self.seed)
        columns = {
            name: _column(kind, null, self.rows, rng)
            for name, kind, null in zip(self.names[1:], self.kinds, self.nulls, strict=True)
        }
        columns[self.names[0]] = _target(self.target, self.rows, rng, columns)
        if self.group:
            columns["who is it"] = rng.integers(0, max(2, self.rows // 4), self.rows)
        if self.time:
            columns["when"] = _column(self.time, 0.0, self.rows, rng)
        return pd.DataFrame(columns)

    def write(self, folder: Path, name: str) -> Path:
        table = self.table()
        file = folder / ("t.parquet" if self.parquet else "t.csv")
        if self.parquet:
            table.to_parquet(file, index=False)
        else:
            table.to_csv(file, index=False)
        data = {"source": str(file), "target": self.names[0]}
        data |= {"time": "when"} if self.time else {}
        data |= {"group": "who is it"} if self.group else {}
        raw = {
            "name": name,
            "data": data,
            "validation": {"min_rows": 2},
            "candidates": [self.candidate],
            "cross_validation": {"folds": self.folds},
            "evaluation": {"resamples": 50},
        }
        (folder / "t.yaml").write_text(yaml.safe_dump(raw))
        return folder / "t.yaml"


def _column(kind: str, null: float, rows: int, rng: np.random.Generator) -> pd.Series:
    base = pd.Timestamp("2023-12-30")
    stamps = base + pd.to_timedelta(rng.integers(0, 200 * 24, rows), unit="h")
    makers: dict[str, Any] = {
        "float": lambda: rng.normal(10, 5, rows),
        "int": lambda: rng.integers(-3, 50, rows),
        "bool": lambda: rng.random(rows) < 0.3,
        "yes-no": lambda: rng.choice(["yes", "no"], rows),
        "levels": lambda: rng.choice(["red", "blue", "a, b", 'q"', "ñ", "NA", "nan", " ", "1", "<i>"], rows),
        "98 levels": lambda: np.array([f"L{n}" for n in rng.integers(0, 98, rows)]),
        "date": lambda: stamps.date,
        "stamp": lambda: stamps,
        "in order": lambda: base + pd.to_timedelta(np.arange(rows), unit="D"),
        "stamp text": lambda: stamps.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "constant": lambda: np.full(rows, 7.0),
        "constant text": lambda: ["same"] * rows,
        "null": lambda: [None] * rows,
        "text": lambda: [" ".join(rng.choice(["lorem", "ipsum", "dolor"], 12)) for _ in range(rows)],
        "id": lambda: np.arange(1000, 1000 + rows),
        "key": lambda: [f"k-{n:04x}" for n in rng.permutation(rows)],
        "huge": lambda: rng.choice([1e308, -1e308, 1.5e300, 0.0], rows),
        "long": lambda: rng.integers(2**53, 2**63 - 1, rows),
        "tiny": lambda: rng.choice([5e-324, 1e-310, 0.0, -0.0], rows),
        "words": lambda: rng.choice(keyword.kwlist, rows),
        "numbers as text": lambda: rng.integers(0, 5, rows).astype(str),
        "mixed": lambda: rng.choice(["1", "2", "x", ""], rows),
        "infinite": lambda: np.where(rng.random(rows) < 0.1, np.inf, 1.0 + rng.random(rows)),
    }
    values = pd.Series(makers[kind]())
    return values.astype(object).where(rng.random(rows) >= null, None) if null else values


def _target(kind: str, rows: int, rng: np.random.Generator, columns: dict[str, pd.Series]) -> pd.Series:
    signal = np.zeros(rows)
    for values in columns.values():
        if values.dtype.kind in "if" and np.isfinite(values).all() and values.nunique() > 1:
            scaled = np.asarray(values / np.abs(values).max(), dtype=float)
            signal = signal + (scaled - scaled.mean()) / max(float(scaled.std()), 1e-9)
    signal = np.clip(signal, -9, 9) + rng.normal(0, 1, rows)
    rank = np.argsort(np.argsort(signal)) / rows
    targets: dict[str, Any] = {
        "float": signal,
        "int": (signal * 10).astype(int),
        "zeros": np.where(rank < 0.9, 0.0, 5.0 + signal),
        "skewed": np.exp(np.clip(signal * 10, -300, 300)),
        "yes-no": np.where(rank < 0.5, "yes", "no"),
        "bool": rank < 0.4,
        "0-1": (rank < 0.4).astype(int),
        "rare": np.where(rank < 0.04, "sold", "kept"),
        "1.0-2.0": np.where(rank < 0.5, 1.0, 2.0),
        "three": np.array(["low", "mid", "high"])[(rank * 3).astype(int)],
        "ints": (rank * 4).astype(int) - 1,
        "odd classes": np.array(["<x>", "a, b", "nan", "È"])[(rank * 4).astype(int)],
    }
    return pd.Series(targets[kind])


names = st.one_of(
    st.sampled_from(ODD),
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0\r"), min_size=1, max_size=12
    ),
    st.from_regex(r"[a-z]{1,6}_[0-9]{1,2}", fullmatch=True),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    wide = draw(st.integers(0, 9)) == 9
    count = 200 if wide else draw(st.integers(1, 8))
    rows = draw(st.integers(3, 60)) if draw(st.integers(0, 3)) == 3 else draw(st.integers(60, 150))
    columns = draw(st.lists(names, min_size=min(count, 8) + 1, max_size=min(count, 8) + 1, unique=True))
    columns += [f"c{n}" for n in range(count - len(columns) + 1)]
    pool = (
        [kind for kind in KINDS if kind not in ("null", "mixed", "infinite")] if draw(st.integers(0, 4)) < 4 else KINDS
    )
    return Case(
        rows=rows,
        names=tuple(columns),
        kinds=tuple(draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))),
        nulls=tuple(draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.6]), min_size=count, max_size=count))),
        target=draw(st.sampled_from(TARGETS)),
        time=draw(st.sampled_from(["", "", "stamp", "in order", "stamp text", "date"])),
        group=draw(st.integers(0, 5)) == 5,
        parquet=draw(st.booleans()),
        folds=draw(st.integers(2, 3)),
        candidate=draw(st.sampled_from(["linear", {"estimator": "boosting", "params": {"max_iter": 5}}])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
