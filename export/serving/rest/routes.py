"""The URL grammar of TensorFlow Serving's REST interface.

The path is matched as it was sent, query string included and percent-escapes untouched, because that is what
TensorFlow Serving matches: `GET /v1/models/m?x=1` asks for a model called "m?x=1".
"""

from __future__ import annotations

import dataclasses
import re
from urllib.parse import unquote_to_bytes

from keras_convnets.export.repository import MAX_VERSION
from keras_convnets.export.serving.rest.verbs import STATUS, VERBS, Asked

_POSTED = [name for name, verb in VERBS.items() if verb.runs_model]
_GOT = [name for name, verb in VERBS.items() if not verb.runs_model and name != STATUS]
_VERSION_OR_LABEL = r"(?:(?:/versions/([0-9]+))|(?:/labels/([^/:]+)))?"
_POST = re.compile(rf"/v1/models/([^/:]+){_VERSION_OR_LABEL}:({'|'.join(_POSTED)})", re.IGNORECASE | re.DOTALL)
_GET = re.compile(rf"/v1/models(?:/([^/:]+))?{_VERSION_OR_LABEL}(?:/({'|'.join(_GOT)}))?", re.IGNORECASE | re.DOTALL)
_HANDLED = re.compile(r"/v1/.*", re.IGNORECASE)


class VersionOverflow(Exception):
    """A version number in the URL that does not fit 64 bits.

    Args:
        model: the model's name, percent-decoded.
    """

    def __init__(self, model: str):
        super().__init__(model)
        self.model = model


@dataclasses.dataclass(frozen=True)
class Route:
    """What a request line asks for.

    Attributes:
        verb: its name in the table; "" where it matches nothing, or for a verb that is not in lower case, which is
            malformed but counts for the model.
        asked: the model.
    """

    verb: str
    asked: Asked


NO_ROUTE = Route("", Asked(""))


def is_handled(target: str) -> bool:
    """Tell whether the path belongs to the REST interface at all (anything below `/v1/`)."""
    return _HANDLED.fullmatch(target) is not None


def parse(method: str, target: str) -> Route:
    """Return what a request line asks for.

    The pattern ignores case but the verb and "metadata" count in lower case only: `:PREDICT` is malformed and
    `/METADATA` asks for the status.

    Args:
        method: the HTTP method, in capitals.
        target: the path with its query string as sent, decoded as Latin-1.

    Raises:
        VersionOverflow: the version does not fit a signed 64-bit integer.

    Example:
        >>> parse("POST", "/v1/models/resnet50/versions/2:predict")
        Route(verb='predict', asked=Asked(model='resnet50', version=2, label=None))
    """
    if method == "POST" and (match := _POST.fullmatch(target)):
        model, version, label, verb = match.groups()
        verb = verb if verb in VERBS else ""
    elif method == "GET" and (match := _GET.fullmatch(target)):
        model, version, label, subresource = match.groups()
        verb = subresource if subresource in VERBS else STATUS
    else:
        return NO_ROUTE
    name = _decoded(model or "")
    # Python refuses to convert thousands of digits; twenty are enough to see that there are too many.
    number = int(version.lstrip("0")[:20] or "0") if version else None
    if number is not None and number > MAX_VERSION:
        raise VersionOverflow(name)
    return Route(verb, Asked(name, number, _decoded(label) if label else None))


def _decoded(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "surrogateescape")
