"""Opening a release with features runs no code."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.releases import make_house_table, train_run
from towline.inference.predictor import open_release

#: opens a release and predicts a row; prints the audit events that mean that code runs
AUDITED = """
import sys
events = []
def hook(event, arguments):
    if event == "exec" and arguments[0].co_filename.startswith(library):
        return  # a module of Python is imported
    if event == "compile" and "{'descr'" in str(arguments[0])[:12]:
        return  # NumPy parses the header of an array as a literal
    if event in ("exec", "compile", "pickle.find_class", "ctypes.dlopen"):
        events.append((event, str(arguments)[:200]))
    elif event == "import" and arguments[0].partition(".")[0] not in allowed:
        events.append((event, arguments[0]))
import json, os
from pathlib import Path
from towline.inference import predictor
library = os.path.dirname(os.__file__)
import towline.expressions.compilation
folder, row = Path(sys.argv[1]), json.loads(sys.argv[2])
allowed = sys.stdlib_module_names | {"towline", "numpy", "pydantic", "yaml"}
allowed |= {name.partition(".")[0] for name in sys.modules}
sys.addaudithook(hook)
model = predictor.open_release(folder)
prediction = model.predict(row)[0]
print(json.dumps({"prediction": prediction, "events": events}))
"""


def test_opening_a_release_runs_no_code(tmp_path: Path) -> None:
    """An audit hook records neither exec nor compile, no import of another package and no pickle."""
    table = make_house_table().drop(columns="sold")
    features = {"per_door": "size / doors", "large": "regexp_matches(cast(round(size) as text), '^[5-9]')"}
    features["near"] = "distance < 3 and zone = 'x'"
    (tmp_path / "doors.csv").write_text(
        "doors,since,distance,zone\n" + "".join(f"{n},2024-12-0{n},{n},{'xy'[n % 2]}\n" for n in range(1, 9))
    )
    lookup = {"table": "doors.csv", "key": "doors", "columns": ["distance", "zone"], "time": "since"}
    run = train_run(tmp_path, table, target="value", time="at", features=features, lookups={"doors": lookup})
    release = run.settings.store / run.package().path
    row = {"at": "2025-01-01T00:00:00", "size": 41.98, "a `kind`, of sorts": "d", "doors": 3, "sunny": True}
    command = [sys.executable, "-P", "-c", AUDITED, str(release), json.dumps(row)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(result.stdout) == {"prediction": open_release(release).predict(row)[0], "events": []}
