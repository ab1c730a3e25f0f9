"""The upper limit: an ASGI app that reads the body and returns a constant.

app.py PORT         with towline's connections, which join the two writes of a response
app.py PORT plain   with uvicorn's connections
"""

import sys

import uvicorn

from towline.serving.process.connection import HttpConnection

BODY = b'{"predictions":["no"],"probabilities":[[0.9,0.1]],"model":{"name":"no-op","version":1},"request_id":"0"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}


async def app(scope, receive, send):
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        await send(START)
        await send({"type": "http.response.body", "body": BODY})


if __name__ == "__main__":
    http = "httptools" if sys.argv[2:] else HttpConnection
    uvicorn.run(
        app, port=int(sys.argv[1]), loop="uvloop", http=http, ws="none", lifespan="off", interface="asgi3",
        log_config=None, access_log=False, proxy_headers=False, server_header=False, backlog=2048,
        timeout_keep_alive=75,
    )  # fmt: skip
