"""The flags of an endpoint, and the client that they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_convnets.commands.arguments import Parser
from keras_convnets.errors import UserError

if TYPE_CHECKING:
    from keras_convnets.export import Client

_TLS_FILES = {
    "root_certificates": "the authorities that are trusted, PEM; default: the system's",
    "client_certificate": "the client's own certificate, PEM",
    "client_key": "its key, PEM; default: in --client_certificate",
}


def add_endpoint_flags(parser: Parser) -> None:
    """Add the flags for request headers and TLS certificates."""
    group = parser.add_argument_group("for an endpoint's URL")
    what = "to send along, and the next with another flag, such as 'Authorization: Bearer X'; @FILE: one a line"
    group.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help=what)
    for name, what in _TLS_FILES.items():
        group.add_argument(f"--{name}", metavar="FILE", help=f"with https:// or grpcs://: {what}")


def check_endpoint_flags(args: argparse.Namespace, urls: Sequence[str]) -> None:
    """Refuse the flags of an endpoint where no URL names one."""
    given = ["--header"] * bool(args.header) + [f"--{name}" for name in _TLS_FILES if getattr(args, name)]
    if given and not urls:
        raise UserError(f"{', '.join(given)} came without an endpoint; give its URL, or leave it out.")


def open_client(url: str, args: argparse.Namespace) -> Client:
    """Return a client that shows the endpoint what the flags say."""
    from keras_convnets import export
    from keras_convnets.export.credentials import read_headers

    files = {name: getattr(args, name) for name in _TLS_FILES}
    return export.Client(url, headers=read_headers(args.header), **files)
