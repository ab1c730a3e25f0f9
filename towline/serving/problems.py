"""What went wrong with a request, as RFC 9457 tells it: one table from code to HTTP status."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from towline.errors import Fault, InputValidationError, TowlineError

MAX_LISTED_FAULTS = 20  # faults told in one answer
Header = tuple[bytes, bytes]


class ProblemType(NamedTuple):
    """What all problems of a code have in common."""

    status: int
    title: str
    remedy: str = ""


INTERNAL_ERROR = "fault"
PROBLEM_TYPES: Mapping[str, ProblemType] = {
    "malformed-json": ProblemType(400, "The body is not strict JSON", "send one UTF-8 JSON document"),
    "bad-request": ProblemType(400, "The request cannot be read"),
    "no-key": ProblemType(401, "A key is needed", "send it as Authorization: Bearer KEY or as X-API-Key: KEY"),
    "missing-scope": ProblemType(403, "The key does not open this", "ask for a key with the scope that is named"),
    "foreign-host": ProblemType(
        403, "Not by this name", "ask by http://127.0.0.1 or http://localhost, or start it with --allowed-hosts NAME"
    ),
    "not-found": ProblemType(404, "There is nothing here", "/openapi.json lists every path"),
    "method-not-allowed": ProblemType(405, "Not by this method", "use one that the Allow header names"),
    "too-large": ProblemType(413, "The body is too large", "send it in parts, or score a file with `towline score`"),
    "not-json": ProblemType(415, "The body is of another media type", "send Content-Type: application/json"),
    "unknown-encoding": ProblemType(
        415, "The body is compressed in another way", "compress it with gzip, or not at all"
    ),
    "wrong-shape": ProblemType(422, "The document is not of the shape this path takes", "/docs shows an example"),
    "unanswerable": ProblemType(
        422, "The model has no finite answer for these rows", "mend the values that are far out"
    ),
    "too-many-requests": ProblemType(429, "Too many requests", "wait as long as Retry-After says"),
    INTERNAL_ERROR: ProblemType(500, "A fault in the service", "give the request id to those who run it"),
    "busy": ProblemType(503, "Too many requests wait already", "wait as long as Retry-After says"),
    "not-ready": ProblemType(503, "No model is loaded", "ask /readyz until it answers 200"),
    # errors of the library, by their code; what is not here is a fault
    "T200": ProblemType(422, "The rows cannot be read"),
    "T210": ProblemType(422, "The rows do not fit the contract of the model", "/docs shows every field and an example"),
    "T300": ProblemType(422, "The rows break the contract of the model"),
    "T600": ProblemType(503, "The release cannot be used"),
    "T900": ProblemType(503, "A store or a server is away", "try again"),
}


class Problem(Exception):
    """A request that is refused. Its texts never hold a value of the input.

    Args:
        code: of the table.
        detail: what is the matter with this request, one sentence.
        faults: fields and rows, at most 20 of them told.
        count: how many faults there are in all.
        headers: further headers of the answer.
        delay: seconds until it is answered.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        faults: tuple[Fault, ...] = (),
        count: int | None = None,
        headers: tuple[Header, ...] = (),
        delay: float = 0.0,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.faults = faults[:MAX_LISTED_FAULTS]
        self.count = len(faults) if count is None else count
        self.headers = headers
        self.delay = delay

    @property
    def kind(self) -> ProblemType:
        return PROBLEM_TYPES[self.code]

    def document(self, request_id: str) -> dict[str, Any]:
        """The members of RFC 9457, and ours: ``code``, ``remedy``, ``request_id``, ``errors``, ``error_count``."""
        kind = self.kind
        told: dict[str, Any] = {
            "type": f"/docs#{self.code}", "title": kind.title, "status": kind.status, "detail": self.detail,
            "code": self.code, "request_id": request_id,
        }  # fmt: skip
        if kind.remedy:
            told["remedy"] = kind.remedy
        if self.faults:
            told["errors"] = [
                {"row": fault.row, "field": fault.field, "detail": f"{_named(fault.field)}{fault.message}"}
                for fault in self.faults
            ]
            told["error_count"] = self.count
        return told

    def body(self, request_id: str, *, error_member: bool = False) -> bytes:
        """The document as JSON; ``error_member``: with the one member clients of the v2 protocol read."""
        told = self.document(request_id)
        if error_member:
            lines = [f"row {fault['row']}: {fault['detail']}" for fault in told.get("errors", ())]
            told["error"] = "; ".join([self.detail, *lines[:5], *(["…"] if self.count > 5 else [])])
        return orjson.dumps(told)


def problem_from_error(error: TowlineError) -> Problem:
    """The problem an error of the library is, told without where on this machine it happened."""
    if isinstance(error, InputValidationError):
        told = "1 value does" if error.count == 1 else f"{error.count:,} values do"
        return Problem(error.code, f"{told} not fit the contract", faults=error.faults, count=error.count)
    code = error.code if error.code in PROBLEM_TYPES else INTERNAL_ERROR
    if PROBLEM_TYPES[code].status >= 500:
        return Problem(code, "the service could not answer; its log tells why")
    return Problem(code, error.what)


def wrong_shape(detail: str, *faults: Fault) -> Problem:
    """A document that is JSON but not of the shape its path takes."""
    return Problem("wrong-shape", detail, faults=faults)


def _named(field: str) -> str:
    return f"{field!r} " if field else ""
