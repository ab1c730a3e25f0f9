"""Compressed bodies, unpacked up to the size that a body may have and no further."""

import zlib
from collections.abc import Mapping

from towline.serving.problems import Problem

CODINGS = (b"gzip", b"x-gzip", b"deflate")
MEMBERS = 100  # of a gzip file, which may be several behind each other
_EITHER = 32 + zlib.MAX_WBITS  # the header says whether it is gzip or zlib
_TAKEN = ((b"accept-encoding", b"gzip, deflate"),)


def is_compressed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a body has to be unpacked.

    Raises:
        Problem: it is compressed in a way that is not read.
    """
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding in CODINGS:
        return True
    if coding != b"identity":
        raise Problem("unknown-encoding", "the Content-Encoding is neither gzip nor deflate", headers=_TAKEN)
    return False


def decompress(body: bytes, most: int) -> bytes | None:
    """The content of a body, or None if that has more than ``most`` bytes; no more than these are ever made.

    Raises:
        Problem: the body is damaged.
    """
    parts, size = [], 0
    for _ in range(MEMBERS):
        member = zlib.decompressobj(_EITHER)
        try:
            part = member.decompress(body, most + 1 - size)
        except zlib.error:
            raise Problem("bad-request", "the body is not compressed as its Content-Encoding says") from None
        size += len(part)
        if size > most:
            return None
        parts.append(part)
        if not member.eof:
            raise Problem("bad-request", "the compressed body is cut off")
        body = member.unused_data
        if not body:
            return b"".join(parts)
    raise Problem("bad-request", f"the compressed body has more than {MEMBERS} members")
