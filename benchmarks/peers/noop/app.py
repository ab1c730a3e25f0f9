"""The limit: an ASGI app that reads the body and answers a constant."""

BODY = b'{"predictions":["no"],"model":{"name":"noop","version":1},"request_id":"0"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}


async def app(_scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send(START)
    await send({"type": "http.response.body", "body": BODY})
