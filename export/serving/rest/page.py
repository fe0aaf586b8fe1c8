"""The page at "/": one static file that classifies photographs with the models that are served."""

from __future__ import annotations

import functools
import re
from importlib import resources
from urllib.parse import parse_qs

PATH, MODELS_PATH = "/", "/page/models"

_POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')
_ANY_SERVER = "connect-src http: https:"
# The address of another server, as the page writes it: scheme, host and port are all that a policy gets.
_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


@functools.cache
def content() -> bytes:
    """Return the page's HTML."""
    return resources.files("keras_convnets.export.serving.rest").joinpath("page.html").read_bytes()


def headers(query: str) -> list[tuple[bytes, bytes]]:
    """Return the page's HTTP headers.

    The policy is that of the page's own, but that the page may connect to one server alone.

    Args:
        query: of the page's URL; `server=ADDRESS` names another server than the one that the page comes from.
    """
    given = _ORIGIN.match(parse_qs(query).get("server", [""])[0])
    policy = own_policy().replace(_ANY_SERVER, f"connect-src {given[0] if given else chr(39) + 'self' + chr(39)}")
    return [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", f"{policy}; frame-ancestors 'none'".encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]


def own_policy() -> str:
    """Return the policy that the page states itself, which holds where the file is opened without this server."""
    found = _POLICY.search(content().decode("utf-8"))
    assert found is not None and _ANY_SERVER in found[1], "the page states its policy"
    return found[1]
