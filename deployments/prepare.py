"""At each start of the stack: gives every volume its owner, Prometheus its key and Alertmanager its address.

Doing it again changes nothing.
"""

import os
from pathlib import Path

from receivers import write

from towline.api_keys import create_key
from towline.serving import auth

TOWLINE_USER, NOBODY = 10001, 65534
STORE = Path("/store")
KEY = Path("/keys/metrics_key")
ALERTING = Path("/alerting/alertmanager.yml")

if not (KEY.exists() and "admin" in (auth.ApiKeys(STORE).scopes(KEY.read_text(encoding="ascii")) or ())):
    text, _ = create_key(STORE, "prometheus", ("admin",))
    draft = KEY.with_suffix(".new")
    draft.write_text(text, encoding="ascii")
    draft.chmod(0o400)
    draft.rename(KEY)
    os.chown(KEY, NOBODY, NOBODY)
write(ALERTING, os.environ.get("ALERT_WEBHOOK", ""))
os.chown(ALERTING, NOBODY, NOBODY)
SHARED = [STORE / name for name in ("releases", "serving", "predictions", "rollouts")]
TOWLINE_FOLDERS = [STORE, *SHARED, *map(Path, ("/artifacts", "/prefect"))]
PROMETHEUS_FOLDERS = [KEY.parent, ALERTING.parent, *map(Path, ("/prometheus", "/alertmanager"))]
for owner, roots in ((TOWLINE_USER, [*TOWLINE_FOLDERS, Path("/backups")]), (NOBODY, PROMETHEUS_FOLDERS)):
    for root in roots:
        os.chown(root, owner, owner)
for made in (STORE / "serving").iterdir():
    os.chown(made, TOWLINE_USER, TOWLINE_USER)
