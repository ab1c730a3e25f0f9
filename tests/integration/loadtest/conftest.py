"""A running fake service with towline's routes."""

import threading
from collections.abc import Iterator

import pytest
import uvicorn

from tests.support.loadtest_service import FakeService


@pytest.fixture
def fake() -> Iterator[FakeService]:
    service = FakeService()
    config = uvicorn.Config(service, host="127.0.0.1", port=0, log_level="error", access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.01)
    service.port = server.servers[0].sockets[0].getsockname()[1]
    yield service
    server.should_exit = True
    thread.join(10)
