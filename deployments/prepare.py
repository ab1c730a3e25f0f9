"""At each start of the stack: gives every volume its owner, and Prometheus its key. Doing it again changes nothing."""

import os
from pathlib import Path

from towline.serving import keys

US, NOBODY = 10001, 65534
STORE = Path("/store")
KEY = Path("/keys/metrics_key")

if not KEY.exists():
    text, _ = keys.create(STORE, "prometheus", ("admin",))
    draft = KEY.with_suffix(".new")
    draft.write_text(text, encoding="ascii")
    draft.chmod(0o400)
    draft.rename(KEY)
    os.chown(KEY, NOBODY, NOBODY)
for owner, roots in ((US, (STORE, STORE / "releases", STORE / "serving", STORE / "predictions", Path("/artifacts"), Path("/prefect"), Path("/backups"))),
                     (NOBODY, (Path("/prometheus"), Path("/alertmanager"), KEY.parent))):  # fmt: skip
    for root in roots:
        os.chown(root, owner, owner)
for made in (STORE / "serving").iterdir():
    os.chown(made, US, US)
