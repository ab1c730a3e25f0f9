"""Alertmanager's configuration with an address for its alerts, which it does not read from the environment itself.

``python deployments/receivers.py FILE`` writes it, with ALERT_WEBHOOK as the address; without one nothing is sent.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import yaml

PLAIN = Path(__file__).parent / "alertmanager" / "alertmanager.yml"


def configured(text: str, webhook: str) -> str:
    """The same with the webhook at every receiver.

    Raises:
        ValueError: it is not an address; the error leaves out its text, which may hold a secret.
    """
    config = yaml.safe_load(text)
    if webhook:
        parts = urlsplit(webhook)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("ALERT_WEBHOOK is not an address; write e.g. https://hooks.example.com/towline")
        for receiver in config["receivers"]:
            receiver["webhook_configs"] = [{"url": webhook, "send_resolved": True}]
    return yaml.safe_dump(config, sort_keys=False)


def write(path: Path, webhook: str) -> None:
    """For its owner only."""
    draft = path.with_name(path.name + ".new")
    draft.touch(0o600)
    draft.write_text(configured(PLAIN.read_text(encoding="utf-8"), webhook), encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]), os.environ.get("ALERT_WEBHOOK", ""))
