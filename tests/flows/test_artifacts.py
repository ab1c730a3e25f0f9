"""Text of tables and configs is shown as text where Prefect's interface renders Markdown."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import yaml

from tests.support.commands import CommandResult

HOSTILE = "<img src=x onerror=alert(1)> [click](javascript:alert(1)) **bold**"


def test_markdown_of_tables_is_escaped(towline: Callable[..., CommandResult], tmp_path: Path, prefect: str) -> None:
    """HTML and Markdown in column names and category levels is escaped in every artifact of a run."""
    rng = np.random.default_rng(1)
    size = rng.normal(0, 1, 200)
    table = pd.DataFrame({HOSTILE: "same", "size": size, "level": rng.choice([HOSTILE, "b"], 200)})
    table["y"] = 3 * size + rng.normal(0, 1, 200)
    table.to_parquet(tmp_path / "t.parquet")
    raw = {
        "name": "hostile-names",
        "data": {"source": str(tmp_path / "t.parquet"), "target": "y"},
        "candidates": ["linear"],
        "evaluation": {"resamples": 50},
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(raw))
    result = towline("run", tmp_path / "t.yaml")
    assert result.code in (0, 4), result.err

    body = json.dumps({"artifacts": {"key": {"like_": "hostile-names"}}, "limit": 200}).encode()
    request = Request(f"{prefect}/api/artifacts/filter", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as response:  # on loopback
        artifacts = json.load(response)
    rendered = [artifact["description"] or "" for artifact in artifacts]
    rendered += [str(artifact["data"]) for artifact in artifacts if artifact["type"] == "markdown"]
    texts = "\n".join(rendered)
    assert "onerror" in texts
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[click|(?<!\\)\*\*bold", texts)
