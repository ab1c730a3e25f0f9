"""What Prefect's interface renders as Markdown shows the text of tables and configs as text."""

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
    """Column names and category levels with HTML and Markdown in them are escaped in every artifact of a run."""
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
    done = towline("run", tmp_path / "t.yaml")
    assert done.code in (0, 4), done.err

    body = json.dumps({"artifacts": {"key": {"like_": "hostile-names"}}, "limit": 200}).encode()
    request = Request(f"{prefect}/api/artifacts/filter", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:  # on loopback
        artifacts = json.load(answer)
    rendered = [artifact["description"] or "" for artifact in artifacts]
    rendered += [str(artifact["data"]) for artifact in artifacts if artifact["type"] == "markdown"]
    texts = "\n".join(rendered)
    assert "onerror" in texts
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[click|(?<!\\)\*\*bold", texts)
