"""The server: the models and both front ends, started and stopped together."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from keras_convnets.errors import UserError
from keras_convnets.export.serving.rest import MAX_REQUEST_BYTES, RestApp, RestServer
from keras_convnets.export.serving.servables import Servables

if TYPE_CHECKING:
    import grpc

# Requests worked on at once by each front end; TensorFlow spreads the work of each over the cores itself.
WORKERS = max(16, 4 * (os.cpu_count() or 1))
GRACE_SECONDS = 10.0


class ModelServer:
    """Serves SavedModels over REST and gRPC as TensorFlow Serving does, on the same ports and URLs.

    Args:
        models: each model's base path by name; the base path holds a directory for each version, named by its number.
        port: the gRPC port; 0 takes a free one.
        rest_api_port: the REST port; 0 takes a free one.
        host: the address to listen on; only this machine reaches the default.
        file_system_poll_wait_seconds: seconds between two looks for new versions; 0 looks once only.
        rest_api_timeout_in_ms: after which a REST request is answered with 504.
        max_request_bytes: the largest REST body; None for any size.
        max_num_load_retries: how often loading a version that appeared later is tried again.
        load_retry_interval_seconds: the time between two tries.

    Attributes:
        port: the gRPC port; the actual one once started.
        rest_api_port: the REST port; likewise.

    Example:
        >>> with ModelServer({"resnet20": "saved_models/resnet20"}) as server:
        ...     print(server.url("resnet20"))
        http://127.0.0.1:8501/v1/models/resnet20
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str]],
        *,
        port: int = 8500,
        rest_api_port: int = 8501,
        host: str = "127.0.0.1",
        file_system_poll_wait_seconds: float = 1.0,
        rest_api_timeout_in_ms: int = 30_000,
        max_request_bytes: int | None = MAX_REQUEST_BYTES,
        max_num_load_retries: int = 5,
        load_retry_interval_seconds: float = 60.0,
    ):
        if not models:
            raise UserError("no model to serve was given; give at least one name with its base path.")
        self.models = dict(models)
        self.port = port
        self.rest_api_port = rest_api_port
        self.host = host
        self._timeout = rest_api_timeout_in_ms / 1000
        self._max_request_bytes = max_request_bytes
        self._servables = Servables(
            self.models,
            file_system_poll_wait_seconds=file_system_poll_wait_seconds,
            max_num_load_retries=max_num_load_retries,
            load_retry_interval_seconds=load_retry_interval_seconds,
        )
        self._rest: RestServer | None = None
        self._grpc: grpc.Server | None = None
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._stopped = threading.Event()

    def url(self, model: str) -> str:
        """Return a model's REST URL; with `:predict` behind it, images can be sent there."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.rest_api_port}/v1/models/{model}"

    def start(self) -> None:
        """Load the models, then open the ports.

        Raises:
            UserError: a port is in use, a base path does not exist or holds no version, a version does not load, or
                the extra packages are not installed.
        """
        _require_packages()
        if self.port == self.rest_api_port != 0:
            raise UserError(f"port {self.port} is given twice; give --port and --rest_api_port different numbers.")
        # Ports that are taken are found out before the models load, which takes a while; nothing listens yet.
        with contextlib.closing(_bind(self.host, self.port, "--port")):
            pass
        rest_socket = _bind(self.host, self.rest_api_port, "--rest_api_port")
        try:
            self._servables.load_initial()
            self._start_front_ends(rest_socket)
        except BaseException:
            rest_socket.close()
            raise
        self._servables.start_polling()

    def _start_front_ends(self, rest_socket: socket.socket) -> None:
        from keras_convnets.export.serving import grpc_service

        server = grpc_service.make_server(self._servables, WORKERS)
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            self.port = server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            raise _port_error(self.host, self.port, "--port", error) from error
        try:
            rest_socket.listen(2048)
        except OSError as error:
            server.stop(None)
            raise _port_error(self.host, self.rest_api_port, "--rest_api_port", error) from error
        self.rest_api_port = rest_socket.getsockname()[1]
        self._executor = concurrent.futures.ThreadPoolExecutor(WORKERS, thread_name_prefix="rest")
        app = RestApp(
            self._servables,
            self._executor,
            timeout_seconds=self._timeout,
            max_request_bytes=self._max_request_bytes,
        )
        self._grpc = server
        self._rest = RestServer(app, rest_socket)
        self._grpc.start()
        self._rest.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the server is asked to stop; returns False when the timeout, in seconds, came first."""
        return self._stopped.wait(timeout)

    def request_stop(self) -> None:
        """End `wait`; safe in a signal handler. The server goes on until `stop`."""
        self._stopped.set()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Take no more requests, answer those under way within the grace period, and close the ports."""
        self._stopped.set()
        ended = self._grpc.stop(grace_seconds) if self._grpc is not None else None
        if self._rest is not None:
            self._rest.stop(grace_seconds)
        if ended is not None:
            ended.wait()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        self._servables.stop()
        self._grpc = self._rest = self._executor = None

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def serve_forever(
    server: ModelServer, announce: Callable[[str], None] | None = None, *, grace_seconds: float = GRACE_SECONDS
) -> None:
    """Start a server and serve until SIGTERM or SIGINT, then answer what is under way and return.

    A second signal ends the server without waiting. Call it from the main thread, which alone may handle signals.

    Args:
        server: a server that is not started yet.
        announce: gets a sentence when the server answers and one when it stops; nothing is printed otherwise.
        grace_seconds: how long requests under way may take after the signal.

    Raises:
        UserError: as `ModelServer.start`.
    """
    announce = announce or (lambda text: None)
    signals: list[int] = []

    def handle(number: int, frame: Any) -> None:
        signals.append(number)
        server.request_stop()
        if len(signals) > 1:
            raise KeyboardInterrupt

    with _handlers(handle):
        try:
            server.start()
            for model in server.models:
                announce(f"Serving {model} at {server.url(model)} (REST) and {server.host}:{server.port} (gRPC).")
            server.wait()
            announce("Stopping as soon as the requests under way are answered.")
            server.stop(grace_seconds)
        except KeyboardInterrupt:
            server.stop(0)


@contextlib.contextmanager
def _handlers(handle: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_packages() -> None:
    try:
        for package in ("grpc", "uvicorn", "tensorflow_serving.apis"):
            importlib.import_module(package)
    except ImportError as error:
        raise UserError("serving needs the extra packages: pip install 'keras-convnets[serving]'.") from error


def _bind(host: str, port: int, flag: str) -> socket.socket:
    # Looking up the address would silently wrap a number that is too large.
    if not 0 <= port <= 65535:
        raise UserError(f"port {port} does not exist; give {flag} a number from 1 to 65535, or 0 for a free port.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _port_error(host, port, flag, error) from error
    try:
        # Otherwise a port that was closed a moment ago would count as taken.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _port_error(host, port, flag, error) from error
    return bound


def _port_error(host: str, port: int, flag: str, error: Exception) -> UserError:
    if isinstance(error, RuntimeError) or getattr(error, "errno", None) == errno.EADDRINUSE:
        return UserError(
            f"port {port} on {host} is in use; stop what listens there, or give another port with {flag} "
            "(0 takes a free one)."
        )
    return UserError(
        f"cannot listen on {host!r}, port {port} ({getattr(error, 'strerror', None) or error}); give an address of "
        f"this machine, and with {flag} a port that you may use (0 takes a free one)."
    )
