"""Evidently's web interface over the drift results of all models.

``python -m towline.monitoring.reporting.evidently_server PORT`` serves it on loopback until the process ends. New
windows are added to Evidently's workspace while it runs.
"""

import datetime as dt
import logging
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from towline.config import Settings
from towline.errors import TowlineError
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.evidently_report import add_missing_windows

UPDATE_INTERVAL = 30.0  # seconds
_logger = logging.getLogger(__name__)


def serve(settings: Settings, port: int) -> None:
    """Serves Evidently's web interface on loopback until the process ends."""
    from evidently.ui.service import local_service
    from evidently.ui.service.app import run_local

    def update_forever() -> None:
        while True:
            time.sleep(UPDATE_INTERVAL)
            _update_workspace(settings)

    _update_workspace(settings)
    threading.Thread(target=update_forever, daemon=True).start()
    local_service.assets_router = _assets_router
    run_local(host="127.0.0.1", port=port, workspace=str(settings.layout.evidently))


def _assets_router() -> Any:
    """Evidently's pages with the title "Drift"; Evidently's own title says "Demo"."""
    import litestar
    from evidently.ui.service.api.static import BASE_PATH
    from litestar.static_files import create_static_files_router

    page = re.sub("<title>.*?</title>", "<title>Drift</title>", (Path(BASE_PATH) / "index.html").read_text("utf-8"))
    page = re.sub(r'<meta\s+name="description".*?/>', "", page, flags=re.DOTALL)

    @litestar.get(["/", "/projects/{path:path}"], include_in_schema=False, media_type=litestar.MediaType.HTML)
    async def index() -> str:
        return page

    return litestar.Router(path="", route_handlers=[index, create_static_files_router("/", directories=[BASE_PATH])])


def _update_workspace(settings: Settings) -> None:
    for path in settings.layout.drift_records():
        model, now = path.parent.name, dt.datetime.now(dt.UTC)
        try:
            add_missing_windows(Journal(path.parent).drift(), settings.layout.evidently, model, now)
        except (TowlineError, OSError, ValueError) as error:
            _logger.warning("the windows of %s were not added: %s", model, error)


def main(arguments: Sequence[str]) -> None:
    serve(Settings.from_environment(), int(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
