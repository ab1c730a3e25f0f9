"""An ASGI application that reads a body and sends a small answer: what uvicorn itself costs, for comparison."""

from typing import Any

BODY = b'{"predictions":[41.0],"model":{"name":"echo","version":1},"request_id":"4dfe315dda575c21-0"}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
