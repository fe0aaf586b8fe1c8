"""Request limits: a finite default for every resource that grows with what a client sends.

TensorFlow Serving has none of these limits. Each is a flag of the command `serve`, where 0 takes it away.
"""

from __future__ import annotations

import dataclasses

from keras_convnets.errors import UserError
from keras_convnets.export.serving.status import Code, ServingError


def _limit(default: int, purpose: str) -> int:
    return dataclasses.field(default=default, metadata={"purpose": purpose})


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server; 0 stands for none.

    What a server needs at most besides its models is, by the defaults: 2 GiB of requests that were received, 2 GiB of
    gRPC messages on their way in, 2 GiB of tensors made of requests, 2 GiB of answers being written, 1.2 GB of decoded
    pixels, 0.3 GiB of requests too small to wait for admission, and what the networks themselves need for
    `max_request_rows` rows in each of the runs at a time, or in each batch. Lower limits need less in proportion.

    Attributes:
        max_request_bytes: of one request as it is sent, and of what it inflates to. 32 photographs of 6 MB, in base64.
            JSON takes up to thirty times its bytes for lists of numbers, which max_working_bytes counts: about 100
            images of 224 x 224 as such lists.
        max_request_rows: images, strings, tf.Examples or other rows of one request; a tensor of another shape than the
            signature's counts as the rows that it is as large as.
        max_request_elements: numbers or strings of one tensor of a request. 2**26 float32 fill max_request_bytes.
        max_repeated_values: elements of a TensorProto that are not sent, because its last value is repeated. One image
            of 299 x 299 in a single colour.
        max_message_fields: fields of a protocol buffer, including nested messages.
        max_decoded_pixels: pixels of images that are decoded concurrently, over all requests.
        max_pending_bytes: bytes of requests that are not answered yet, over all clients.
        max_working_bytes: memory for parsing and converting requests, over all clients, estimated beforehand.
            Requests wait until it is available; one that needs more alone is refused.
        max_connections: concurrent REST connections, and concurrent gRPC calls.

    Raises:
        UserError: if a limit is negative.
    """

    max_request_bytes: int = _limit(2**28, "bytes of a request, as sent and inflated")
    max_request_rows: int = _limit(256, "images or other rows of a request")
    max_request_elements: int = _limit(2**26, "elements of a tensor")
    max_repeated_values: int = _limit(2**18, "elements of a gRPC tensor that repeat its last value")
    max_message_fields: int = _limit(2**20, "fields of a gRPC message")
    max_decoded_pixels: int = _limit(400_000_000, "pixels decoded at a time, over all requests")
    max_pending_bytes: int = _limit(2**31, "bytes of requests not answered yet, over all clients")
    max_working_bytes: int = _limit(2**31, "bytes made of the requests that are worked on, as estimated before")
    max_connections: int = _limit(1000, "REST connections, and gRPC calls, at a time")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise UserError(f"{name} is {value}; give a number of at least 0, where 0 is no limit.")

    def check_rows(self, rows: int) -> None:
        """Check the number of a request's rows.

        Raises:
            ServingError: INVALID_ARGUMENT.
        """
        if self.max_request_rows and rows > self.max_request_rows:
            raise _over(
                f"The request has {rows} rows", self.max_request_rows, "max_request_rows", "send fewer at a time"
            )

    def check_elements(self, elements: int, alias: str) -> None:
        """Check the number of a tensor's elements, before there is a tensor.

        Raises:
            ServingError: INVALID_ARGUMENT.
        """
        if self.max_request_elements and elements > self.max_request_elements:
            what = f"Input {alias} has {elements} elements"
            raise _over(what, self.max_request_elements, "max_request_elements", "send a smaller tensor")

    def check_repeated(self, repeated: int, size: int, alias: str) -> None:
        """Check the elements of a tensor that are not sent but repeat the last value.

        Args:
            repeated: their number.
            size: bytes of the value where it is a string.
            alias: the input's name.

        Raises:
            ServingError: INVALID_ARGUMENT.
        """
        what = f"tensor parsing error: {alias}: it repeats its last value {repeated} times"
        if self.max_repeated_values and repeated > self.max_repeated_values:
            raise _over(what, self.max_repeated_values, "max_repeated_values", "send every value")
        self.check_bytes(repeated * size, f"{what}, which makes {repeated * size} bytes")

    def check_bytes(self, size: int, what: str) -> None:
        """Check the size of a request in bytes: as sent, inflated, or with repeated values expanded.

        Raises:
            ServingError: RESOURCE_EXHAUSTED, 413 in HTTP.
        """
        if self.max_request_bytes and size > self.max_request_bytes:
            raise TooLarge(too_large_text(what, self.max_request_bytes, "max_request_bytes"))


NO_LIMITS = Limits(**{field.name: 0 for field in dataclasses.fields(Limits)})


class TooLarge(ServingError):
    """A request that is always too large: RESOURCE_EXHAUSTED in gRPC, 413 in HTTP.

    Args:
        message: the text, without the code's name.
    """

    def __init__(self, message: str):
        super().__init__(Code.RESOURCE_EXHAUSTED, message)

    @property
    def http_status(self) -> int:
        """The HTTP status; clients retry 429, but not 413."""
        return 413


def too_large_text(what: str, limit: int, flag: str) -> str:
    """Return the error message for a refused request: its size, the limit and the flag that sets it."""
    return f"{what}; the server allows {limit} (--{flag}): send less at a time, or have the limit raised."


def _over(what: str, limit: int, flag: str, advice: str) -> ServingError:
    return ServingError(
        Code.INVALID_ARGUMENT, f"{what}; the server allows {limit} (--{flag}): {advice}, or have the limit raised."
    )
