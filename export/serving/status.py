"""The status codes that both front ends answer with, and the one exception that carries them."""

from __future__ import annotations

import enum


class Code(enum.IntEnum):
    """The canonical status codes; the numbers are those of gRPC and of TensorFlow's errors."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def http_status(self) -> int:
        """The HTTP status that TensorFlow Serving gives this code."""
        return _HTTP_STATUS[self]


_HTTP_STATUS = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.DATA_LOSS: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

_GRPC_DETAILS_LIMIT = 1024
# Characters of a name that a client sent, in a log and in a message.
MAX_NAME = 200


class ServingError(Exception):
    """A request or a load that failed, with the code and the message that the client gets.

    Args:
        code: the canonical status code.
        message: the text, without the code's name.

    Example:
        >>> ServingError(Code.NOT_FOUND, "Servable not found for request: Latest(m)").http_status
        404
    """

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        """The HTTP status that TensorFlow Serving gives this code."""
        return self.code.http_status

    @property
    def grpc_details(self) -> str:
        """The message as gRPC details: cut after 1024 bytes, which the REST body never is."""
        data = self.message.encode("utf-8", "replace")
        if len(data) <= _GRPC_DETAILS_LIMIT:
            return data.decode("utf-8")
        return data[:_GRPC_DETAILS_LIMIT].decode("utf-8", "ignore") + "...TRUNCATED"


def invalid_argument(message: str) -> ServingError:
    """Return the error for an invalid request."""
    return ServingError(Code.INVALID_ARGUMENT, message)
