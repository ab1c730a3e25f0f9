"""The body of a request: read up to the size limit, and decompressed up to the same limit."""

import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from towline.serving.problems import Problem

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_CODINGS = (b"gzip", b"x-gzip", b"deflate")
_MAX_MEMBERS = 100  # gzip members: a gzip file may consist of several
_SLICE = 65_536  # bytes that are decompressed in one step
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_ACCEPTED = ((b"accept-encoding", b"gzip, deflate"),)


class ClientDisconnected(Exception):
    """The client closed the connection before the response."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], max_bytes: int) -> bytes:
    """Reads the whole body of a request, with a length or in chunks.

    Raises:
        Problem: it is longer than ``max_bytes``, or Content-Length is not a number.
        ClientDisconnected: the client closed the connection before the body was complete.
    """
    length = headers.get(b"content-length")
    if length is not None:
        if not length.isdigit():
            raise Problem("bad-request", "Content-Length is not a number", headers=((b"connection", b"close"),))
        if len(length) > 18 or int(length) > max_bytes:
            raise body_too_large(max_bytes)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        if len(body) > max_bytes:
            raise body_too_large(max_bytes)
        return body
    return await _read_chunks(receive, body, max_bytes)


async def _read_chunks(receive: Receive, first: bytes, max_bytes: int) -> bytes:
    body = bytearray(first)  # a list of chunks would take forty bytes for a chunk of one byte
    more = True
    while len(body) <= max_bytes:
        if not more:
            return bytes(body)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message.get("body", b"")
        more = message.get("more_body", False)
    raise body_too_large(max_bytes)


def body_too_large(max_bytes: int) -> Problem:
    """The refusal of a longer body; the connection is closed, as the rest of the body is not read."""
    return Problem("too-large", f"the body has more than {max_bytes:,} bytes", headers=((b"connection", b"close"),))


def is_compressed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether the body is compressed.

    Raises:
        Problem: the Content-Encoding is not supported.
    """
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding in _CODINGS:
        return True
    if coding != b"identity":
        raise Problem("unknown-encoding", "the Content-Encoding is neither gzip nor deflate", headers=_ACCEPTED)
    return False


def decompress(body: bytes, max_bytes: int) -> bytes | None:
    """The decompressed body; None if it has more than ``max_bytes``. At most that many bytes are decompressed.

    Raises:
        Problem: the body is damaged.
    """
    contents, size, at, members = list[bytes](), 0, 0, 1
    member = zlib.decompressobj(_GZIP_OR_ZLIB)
    while part := body[at : at + _SLICE]:  # zlib copies what follows a member: of the whole body, for each of them
        try:
            contents.append(member.decompress(part, max_bytes + 1 - size))
        except zlib.error:
            raise Problem("bad-request", "the body does not match its Content-Encoding") from None
        size += len(contents[-1])
        if size > max_bytes:
            return None
        at += len(part) - len(member.unused_data)
        if member.eof:
            if at == len(body):
                return b"".join(contents)
            members += 1
            if members > _MAX_MEMBERS:
                raise Problem("bad-request", f"the compressed body has more than {_MAX_MEMBERS} members")
            member = zlib.decompressobj(_GZIP_OR_ZLIB)
    raise Problem("bad-request", "the compressed body is truncated")
