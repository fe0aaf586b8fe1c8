"""Request headers and TLS certificates of a client."""

from __future__ import annotations

import dataclasses
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_convnets.errors import UserError

OptionalPath = str | os.PathLike[str] | None

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_GRPC_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
# Headers that the client itself sets.
_RESERVED = frozenset(("connection", "content-length", "content-type", "te", "transfer-encoding", "user-agent"))


@dataclasses.dataclass(frozen=True)
class Credentials:
    """Headers of each request, and the certificates and key for TLS.

    Args:
        headers: values by name, such as {"Authorization": "Bearer ..."}; over gRPC they are metadata.
        root_certificates: a PEM file of the trusted certificate authorities; by default the system's.
        client_certificate: a PEM file with the client's certificate, for endpoints that require one.
        client_key: a PEM file with the client's key, unencrypted; None if the certificate's file contains it.

    Raises:
        UserError: for a header that can't be sent, or a key without a certificate.
    """

    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    root_certificates: OptionalPath = None
    client_certificate: OptionalPath = None
    client_key: OptionalPath = None

    def __post_init__(self) -> None:
        for name, value in self.headers.items():
            # Values are secrets and are not shown.
            if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise UserError(
                    f"the header {name!r} can't be sent; allowed are a name of letters, digits and hyphens and a value "
                    "of printable ASCII; correct it."
                )
            if name.lower() in _RESERVED:
                raise UserError(f"the header {name!r} is set by the client itself; leave it out.")
        if self.client_key is not None and self.client_certificate is None:
            raise UserError("a client's key was given without its certificate; give the certificate's file too.")

    @property
    def need_tls(self) -> bool:
        """Whether certificates were given, which need TLS."""
        return any((self.root_certificates, self.client_certificate))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the headers as gRPC metadata.

        Raises:
            UserError: if gRPC does not allow a name.
        """
        names = {name: name.lower() for name in self.headers}
        for name, lower in names.items():
            if not _GRPC_NAME.fullmatch(lower) or lower.startswith("grpc-") or lower.endswith("-bin"):
                raise UserError(
                    f"gRPC takes no header {name!r}; allowed are letters, digits and _ . - in a name that does not "
                    "begin with grpc- or end with -bin; rename it, or use the REST address."
                )
        return tuple((names[name], value) for name, value in self.headers.items())

    def ssl_context(self) -> ssl.SSLContext:
        """Return the context that opens TLS connections and verifies the endpoint's certificate.

        Raises:
            UserError: if a PEM file can't be read or is invalid.
        """
        try:
            context = ssl.create_default_context(cafile=_path(self.root_certificates))
        except OSError as error:
            raise _bad_file("root certificates", self.root_certificates, error) from error
        if self.client_certificate is not None:
            try:
                certificate = os.fspath(self.client_certificate)
                context.load_cert_chain(certificate, _path(self.client_key), password=self._refuse_password)
            except OSError as error:
                what = "client certificate and key"
                raise _bad_file(what, [self.client_certificate, self.client_key], error) from error
        return context

    def channel_credentials(self) -> Any:
        """Return the credentials that open gRPC channels over TLS.

        Raises:
            UserError: as `ssl_context`.
        """
        import grpc

        # Validates the files: gRPC reports no error for invalid ones.
        self.ssl_context()
        root, certificate = _read(self.root_certificates), _read(self.client_certificate)
        key = certificate if self.client_key is None else _read(self.client_key)
        return grpc.ssl_channel_credentials(root, key, certificate)

    def _refuse_password(self) -> str:
        # Without a callback OpenSSL would prompt for the password in the terminal.
        raise UserError("the client's key is encrypted; give a file with the key unencrypted.")


def read_headers(given: Sequence[str]) -> dict[str, str]:
    """Parse the headers given to a command.

    Args:
        given: each "NAME: VALUE", or "@FILE" for a file with one per line, which keeps secrets out of the process list.

    Raises:
        UserError: if an item has another form, or a file can't be read.

    Example:
        >>> read_headers(["Authorization: Bearer abc"])
        {'Authorization': 'Bearer abc'}
    """
    headers = {}
    for item in given:
        for line in _lines(Path(item[1:])) if item.startswith("@") else [item]:
            name, colon, value = line.partition(":")
            if not colon or not name.strip():
                raise UserError(
                    "a header has no name followed by a colon; allowed is 'NAME: VALUE', or @FILE with one per line."
                )
            headers[name.strip()] = value.strip()
    return headers


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the file of headers {path} can't be read ({error}); give an existing text file.") from error


def _path(path: OptionalPath) -> str | None:
    return None if path is None else os.fspath(path)


def _read(path: OptionalPath) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _bad_file(what: str, path: OptionalPath | list[OptionalPath], error: OSError) -> UserError:
    names = " and ".join(os.fspath(one) for one in (path if isinstance(path, list) else [path]) if one is not None)
    reason = error.strerror or str(error)
    return UserError(f"the {what} can't be used: {names} ({reason}); give PEM files that belong together.")
