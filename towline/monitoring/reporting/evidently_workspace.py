"""Evidently's web interface over the nights of the watch."""

import datetime as dt
import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

from towline.config import Settings
from towline.errors import TowlineError
from towline.monitoring.journal import Journal
from towline.monitoring.reporting.evidently_report import catch_up

_LOOK = 30.0  # seconds between two looks for new nights
_logger = logging.getLogger(__name__)


def serve(settings: Settings, port: int) -> None:
    """Evidently's web interface on loopback, until the process ends; nights are added to its workspace as they come."""
    from evidently.ui.service import local_service
    from evidently.ui.service.app import run_local

    def keep_up() -> None:
        while True:
            time.sleep(_LOOK)
            _follow(settings)

    _follow(settings)
    threading.Thread(target=keep_up, daemon=True).start()
    local_service.assets_router = _assets
    run_local(host="127.0.0.1", port=port, workspace=str(settings.layout.evidently))


def _assets() -> Any:
    """Evidently's pages under a title of their own; that of Evidently says "Demo"."""
    import litestar
    from evidently.ui.service.api.static import BASE_PATH
    from litestar.static_files import create_static_files_router

    page = re.sub("<title>.*?</title>", "<title>Drift</title>", (Path(BASE_PATH) / "index.html").read_text("utf-8"))
    page = re.sub(r'<meta\s+name="description".*?/>', "", page, flags=re.DOTALL)

    @litestar.get(["/", "/projects/{path:path}"], include_in_schema=False, media_type=litestar.MediaType.HTML)
    async def index() -> str:
        return page

    return litestar.Router(path="", route_handlers=[index, create_static_files_router("/", directories=[BASE_PATH])])


def _follow(settings: Settings) -> None:
    for path in settings.layout.drift_records():
        try:
            catch_up(Journal(path.parent).drift(), settings.layout.evidently, path.parent.name, dt.datetime.now(dt.UTC))
        except (TowlineError, OSError, ValueError) as error:
            _logger.warning("the nights of %s are not added: %s", path.parent.name, error)
