"""Error responses of the service: problem documents (RFC 9457), and the table from error code to HTTP status."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from towline.errors import Fault, InputValidationError, TowlineError
from towline.inference.scorer import RowPredictions, find_nonfinite

MAX_LISTED_FAULTS = 20  # faults listed in one response
Header = tuple[bytes, bytes]


class ProblemType(NamedTuple):
    """HTTP status, title and remedy of an error code."""

    status: int
    title: str
    remedy: str = ""


INTERNAL_ERROR = "fault"
PROBLEM_TYPES: Mapping[str, ProblemType] = {
    "malformed-json": ProblemType(400, "The body is not strict JSON", "send one UTF-8 JSON document"),
    "bad-request": ProblemType(400, "The request cannot be read"),
    "no-key": ProblemType(401, "A key is needed", "send it as Authorization: Bearer KEY or as X-API-Key: KEY"),
    "missing-scope": ProblemType(403, "The key lacks a scope", "use a key with the scope named in the detail"),
    "foreign-host": ProblemType(
        403,
        "The Host header is not allowed",
        "use http://127.0.0.1 or http://localhost, or start the service with --allowed-hosts NAME",
    ),
    "not-found": ProblemType(404, "Not found", "/openapi.json lists every path"),
    "method-not-allowed": ProblemType(405, "Method not allowed", "use a method of the Allow header"),
    "too-large": ProblemType(
        413, "The body is too large", "send several smaller requests, or score a file with `towline score`"
    ),
    "not-json": ProblemType(415, "The media type is not supported", "send Content-Type: application/json"),
    "unknown-encoding": ProblemType(
        415, "The compression is not supported", "compress the body with gzip, or not at all"
    ),
    "wrong-shape": ProblemType(422, "The document has the wrong shape", "/docs shows an example"),
    "unanswerable": ProblemType(422, "The model has no finite prediction for these rows", "correct extreme values"),
    "too-many-requests": ProblemType(429, "Too many requests", "retry after the seconds in Retry-After"),
    INTERNAL_ERROR: ProblemType(500, "Internal error", "report the request id to the operator of the service"),
    "busy": ProblemType(503, "Too many requests are waiting", "retry after the seconds in Retry-After"),
    "not-ready": ProblemType(503, "No model is loaded", "retry when /readyz answers 200"),
    # error codes of the library; any other code is an internal error
    "T200": ProblemType(422, "The rows cannot be read"),
    "T210": ProblemType(
        422, "The rows do not match the contract of the model", "/docs shows every field and an example"
    ),
    "T300": ProblemType(422, "The rows break the contract of the model"),
    "T600": ProblemType(503, "The release cannot be used"),
    "T900": ProblemType(503, "A store or a server is unavailable", "try again"),
}


class Problem(Exception):
    """A refused request. Its texts never contain an input value.

    Args:
        code: a key of ``PROBLEM_TYPES``.
        detail: one sentence on this request.
        faults: invalid rows and fields, of which at most 20 are listed.
        count: number of faults in all.
        headers: additional response headers.
        delay: seconds by which the response is delayed.
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
    def type(self) -> ProblemType:
        return PROBLEM_TYPES[self.code]

    def document(self, request_id: str) -> dict[str, Any]:
        """The members of RFC 9457, and ``code``, ``remedy``, ``request_id``, ``errors`` and ``error_count``."""
        problem_type = self.type
        document: dict[str, Any] = {
            "type": f"/docs#{self.code}", "title": problem_type.title, "status": problem_type.status,
            "detail": self.detail, "code": self.code, "request_id": request_id,
        }  # fmt: skip
        if problem_type.remedy:
            document["remedy"] = problem_type.remedy
        if self.faults:
            document["errors"] = [
                {"row": fault.row, "field": fault.field, "detail": f"{_field_prefix(fault.field)}{fault.message}"}
                for fault in self.faults
            ]
            document["error_count"] = self.count
        return document

    def summary(self) -> str:
        """The detail and the first five faults in one line."""
        lines = [f"row {fault.row}: {_field_prefix(fault.field)}{fault.message}" for fault in self.faults[:5]]
        return "; ".join([self.detail, *lines, *(["…"] if self.count > 5 else [])])

    def body(self, request_id: str, *, error_member: bool = False) -> bytes:
        """The document as JSON; ``error_member`` adds the member ``error`` for clients of the v2 protocol."""
        document = self.document(request_id)
        if error_member:
            document["error"] = self.summary()
        return orjson.dumps(document)


def problem_from_error(error: TowlineError) -> Problem:
    """The problem for an error of the library, without paths of this machine."""
    if isinstance(error, InputValidationError):
        subject = "1 value does" if error.count == 1 else f"{error.count:,} values do"
        return Problem(error.code, f"{subject} not match the contract", faults=error.faults, count=error.count)
    code = error.code if error.code in PROBLEM_TYPES else INTERNAL_ERROR
    if PROBLEM_TYPES[code].status >= 500:
        return Problem(code, "the service failed; see its log")
    return Problem(code, error.what)


def check_finite(predictions: RowPredictions) -> None:
    """Refuses NaN and infinities, which JSON cannot represent.

    Raises:
        Problem: names the rows.
    """
    if rows := find_nonfinite(predictions):
        faults = tuple(Fault(row, "", "the prediction is not finite") for row in rows)
        raise Problem("unanswerable", "a prediction is not a finite number", faults=faults)


def wrong_shape(detail: str, *faults: Fault) -> Problem:
    """The problem of a JSON document with the wrong shape."""
    return Problem("wrong-shape", detail, faults=faults)


def _field_prefix(field: str) -> str:
    return f"{field!r} " if field else ""
