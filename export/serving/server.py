"""The server: the models and both front ends, started and stopped together."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from keras_convnets.errors import UserError
from keras_convnets.export.serving.access_log import AccessLog
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.engines import check_engine, load_engine
from keras_convnets.export.serving.engines.engine import Engine
from keras_convnets.export.serving.flag_files import require_packages
from keras_convnets.export.serving.models import configuration
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.observer import Observer
from keras_convnets.export.serving.rest.app import RestApp
from keras_convnets.export.serving.scheduling.batching import Batching, BatchingParameters
from keras_convnets.export.serving.scheduling.concurrency import MAX_QUEUED_REQUESTS, ConcurrencyLimit
from keras_convnets.export.serving.scheduling.scheduler import Scheduler
from keras_convnets.export.serving.sockets import add_unix_socket, bind, is_loopback, port_error
from keras_convnets.export.serving.status import Code, ServingError

if TYPE_CHECKING:
    import grpc

    from keras_convnets.export.serving.rest.http_server import RestServer

GRACE_SECONDS = 10.0
ENDING = (signal.SIGTERM, signal.SIGINT)
SPARE_WORKERS = 8

_log = logging.getLogger(__name__)


class ModelServer:
    """Serves SavedModels over REST and gRPC as TensorFlow Serving does, on the same ports and URLs.

    Args:
        models: each model's base path by name; the base path holds a directory for each version, named by its number.
            Or a function that returns a `ModelServerConfig`; it is called again when the configuration is read again.
        port: the gRPC port; 0 takes a free one.
        rest_api_port: the REST port; 0 takes a free one.
        host: the address to listen on; only this machine reaches the default.
        grpc_socket_path: a UNIX socket on which gRPC is answered too; "" for none.
        grpc_channel_arguments: options of gRPC's own for its side of the server, such as
            `("grpc.max_connection_age_ms", 2000)`.
        engine: "tensorflow", or "onnxruntime" for the ONNX files of versions that were exported here.
        batching: the batching parameters; None runs each request alone.
        max_queued_requests: how many may wait before more are refused.
        enable_model_warmup: answer a version's own warm-up requests before it is available.
        allow_version_labels_for_unavailable_models: let a new label name a version that is not available.
        config_poll_wait_seconds: seconds between two readings of the configuration; 0 reads it on `reread` only.
        file_system_poll_wait_seconds: seconds between two looks for new versions; 0 looks once only.
        rest_api_timeout_in_ms: after which a REST request is answered with 504.
        rest_api_enable_cors_support: let pages of other origins read the answers.
        prometheus_path: where REST shows metrics; None for nowhere.
        enable_grpc_healthcheck_service: answer grpc.health.v1 too.
        page: whether "/" is a page that classifies photographs with the models.
        access_log: a text stream that gets a line of JSON for each request; None for no access log.
        limits: how much a client may ask for.
        reload_folders: folders whose models a client may have served through HandleReloadConfigRequest. By default the
            repository or the base paths that are served, and none where others than this machine reach `host`.
        max_num_load_retries: how often loading a version that appeared later is tried again.
        load_retry_interval_seconds: the time between two tries.

    Attributes:
        port: the gRPC port; the actual one once started.
        rest_api_port: the REST port; likewise.

    Raises:
        UserError: no model is given, the engine is unknown, or the extra packages are not installed.

    Example:
        >>> with ModelServer({"resnet20": "saved_models/resnet20"}) as server:
        ...     print(server.url("resnet20"))
        http://127.0.0.1:8501/v1/models/resnet20
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike[str]] | Callable[[], Any],
        *,
        port: int = 8500,
        rest_api_port: int = 8501,
        host: str = "127.0.0.1",
        grpc_socket_path: str = "",
        grpc_channel_arguments: Sequence[tuple[str, int | str]] = (),
        engine: str = "tensorflow",
        batching: BatchingParameters | None = None,
        max_queued_requests: int = MAX_QUEUED_REQUESTS,
        enable_model_warmup: bool = True,
        allow_version_labels_for_unavailable_models: bool = False,
        config_poll_wait_seconds: float = 0.0,
        file_system_poll_wait_seconds: float = 1.0,
        rest_api_timeout_in_ms: int = 30_000,
        rest_api_enable_cors_support: bool = False,
        prometheus_path: str | None = None,
        enable_grpc_healthcheck_service: bool = False,
        page: bool = True,
        access_log: TextIO | None = None,
        limits: Limits | None = None,
        reload_folders: Sequence[str | os.PathLike[str]] | None = None,
        max_num_load_retries: int = 5,
        load_retry_interval_seconds: float = 60.0,
    ):
        _check_arguments(models, engine)
        self.port, self.rest_api_port, self.host = port, rest_api_port, host
        self._socket_path, self._health = grpc_socket_path, enable_grpc_healthcheck_service
        self._grpc_options = list(grpc_channel_arguments)
        self._scheduler: Scheduler
        if batching is None:
            self._scheduler = ConcurrencyLimit(waiting=max_queued_requests)
        else:
            self._scheduler = Batching(batching)
        inside = self._scheduler.requests_at_once + max_queued_requests
        # Threads for all that run or wait, and more, so that the state of a server that is full can still be asked for.
        self._workers = inside + SPARE_WORKERS
        self._admission = Admission(limits, inside)
        self._reload_folders = None if reload_folders is None else [os.fspath(folder) for folder in reload_folders]
        self._read_config = models if callable(models) else functools.partial(configuration.of_base_paths, models)
        self._config = self._read_config()
        self._config_poll_wait = config_poll_wait_seconds
        self._access_log = None if access_log is None else AccessLog(access_log)
        self._observer = Observer(access_log=self._access_log)
        self._servables = Servables(
            self._config,
            file_system_poll_wait_seconds=file_system_poll_wait_seconds,
            max_num_load_retries=max_num_load_retries,
            load_retry_interval_seconds=load_retry_interval_seconds,
            allow_version_labels_for_unavailable_models=allow_version_labels_for_unavailable_models,
            load=functools.partial(self._load, engine, enable_model_warmup),
        )
        self._executor = concurrent.futures.ThreadPoolExecutor(self._workers, thread_name_prefix="rest")
        self._app = RestApp(
            self._servables,
            self._executor,
            timeout_seconds=rest_api_timeout_in_ms / 1000,
            admission=self._admission,
            cors=rest_api_enable_cors_support,
            observer=self._observer,
            prometheus_path=prometheus_path,
            has_page=page,
        )
        self._rest: RestServer | None = None
        self._grpc: grpc.Server | None = None
        self._stopped = threading.Event()
        self._reread = threading.Event()
        self._config_thread: threading.Thread | None = None

    def _load(self, engine: str, warm: bool, folder: Path) -> Engine:
        loaded = load_engine(engine, folder, self._scheduler, self._admission)
        if warm:
            from keras_convnets.export.serving.warmup import warm_up

            warm_up(loaded, folder)
        return loaded

    @property
    def models(self) -> list[str]:
        """The names of the models; once started, of those configured now."""
        return self._servables.names() or [item.name for item in self._config.model_config_list.config]

    def url(self, model: str) -> str:
        """Return a model's REST URL; append `:predict` to send images."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.rest_api_port}/v1/models/{model}"

    def start(self) -> None:
        """Load the models, then open the ports; they stay closed where the server is stopped before.

        A model that has no version yet is waited for while another has one, as TensorFlow Serving does.

        Raises:
            UserError: a port or the socket's path is in use, or no model has a version that loads: a base path does
                not exist or holds none, or each fails.
        """
        if self.port == self.rest_api_port != 0:
            raise UserError(f"port {self.port} is given twice; give --port and --rest_api_port different numbers.")
        # Ports that are taken are found out before the models load, which takes a while; nothing listens yet.
        with contextlib.closing(bind(self.host, self.port, "--port")):
            pass
        rest_socket = bind(self.host, self.rest_api_port, "--rest_api_port")
        try:
            self._servables.load_initial(lambda: not self._stopped.is_set())
            if self._stopped.is_set():
                rest_socket.close()
                return
            self._start_front_ends(rest_socket)
        except BaseException:
            rest_socket.close()
            raise
        self._servables.start_polling()
        self._config_thread = threading.Thread(target=self._follow_config, name="configuration", daemon=True)
        self._config_thread.start()

    def _start_front_ends(self, rest_socket: socket.socket) -> None:
        from keras_convnets.export.serving.rest.http_server import RestServer
        from keras_convnets.export.serving.rpc.server import make_server

        server = make_server(
            self._servables,
            self._workers,
            observer=self._observer,
            health=self._health,
            admission=self._admission,
            check_reload=self._check_reload,
            options=self._grpc_options,
        )
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            self.port = server.add_insecure_port(f"{host}:{self.port}")
        except RuntimeError as error:
            raise port_error(self.host, self.port, "--port", error) from error
        if self._socket_path:
            add_unix_socket(server, self._socket_path)
        try:
            rest_socket.listen(2048)
        except OSError as error:
            server.stop(None)
            raise port_error(self.host, self.rest_api_port, "--rest_api_port", error) from error
        self.rest_api_port = rest_socket.getsockname()[1]
        self._grpc = server
        self._rest = RestServer(self._app, rest_socket, self._admission.limits.max_connections)
        self._grpc.start()
        self._rest.start()

    def reread(self) -> None:
        """Have the configuration read again and followed, soon; safe in a signal handler."""
        self._reread.set()

    def _check_reload(self, config: Any) -> None:
        """Check what a client wants to have served; raises ServingError where it may not."""
        folders = self._reload_folders
        if folders is None and not is_loopback(self.host):
            raise ServingError(
                Code.PERMISSION_DENIED,
                "HandleReloadConfigRequest is off where others than this machine reach the server; start it with "
                "--reload_folders and the folders whose models they may have served.",
            )
        if folders is None:
            source = self._read_config
            folders = [str(source.root)] if isinstance(source, configuration.RepositoryConfig) else []
        served = [item.base_path for item in self._config.model_config_list.config]
        configuration.check_folders(config, folders, served)

    def _follow_config(self) -> None:
        complaint = ""
        while True:
            asked = self._reread.wait(self._config_poll_wait or None)
            if self._stopped.is_set():
                return
            self._reread.clear()
            try:
                config = self._read_config()
                if asked or config != self._config:
                    self._servables.reload(config, wait=False)
                    self._config = config
                complaint = ""
            except (UserError, ServingError) as error:
                if asked or str(error) != complaint:
                    _log.error("The configuration can't be used, nothing changes: %s", error)
                complaint = str(error)
            except Exception:
                # A watcher that dies unnoticed would leave a server that follows nothing any more.
                _log.exception("Reading the configuration failed; it will be tried again")

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the server is asked to stop; return False if the timeout, in seconds, expires first."""
        return self._stopped.wait(timeout)

    def request_stop(self) -> None:
        """End `wait`; safe in a signal handler. The server answers until `stop`."""
        self._stopped.set()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Take no more requests, answer those under way within the grace period, and close the ports."""
        self._stopped.set()
        self._reread.set()
        ended = self._grpc.stop(grace_seconds) if self._grpc is not None else None
        if self._rest is not None:
            self._rest.stop(grace_seconds)
        if ended is not None:
            ended.wait()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._config_thread is not None:
            self._config_thread.join()
        self._servables.stop()
        if self._access_log is not None:
            self._access_log.close()
        self._grpc = self._rest = self._access_log = None

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def serve_forever(
    server: ModelServer, announce: Callable[[str], None] | None = None, *, grace_seconds: float = GRACE_SECONDS
) -> None:
    """Start a server and serve until SIGTERM or SIGINT, then finish the running requests and return.

    SIGHUP has the configuration read again. A second signal ends the server without waiting. Call it from the main
    thread, which alone may handle signals.

    Args:
        server: a server that is not started yet.
        announce: called with a message when the server is ready and when it stops; by default nothing is printed.
        grace_seconds: how long requests under way may take after the signal.

    Raises:
        UserError: as `ModelServer.start`.
    """
    announce = announce or (lambda text: None)
    signals: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if number not in ENDING:
            server.reread()
            return
        signals.append(number)
        server.request_stop()
        if len(signals) > 1:
            raise KeyboardInterrupt

    with _handlers(handle):
        try:
            server.start()
            for model in server.models if not server.wait(0) else ():
                announce(f"Serving {model} at {server.url(model)} (REST) and {server.host}:{server.port} (gRPC).")
            server.wait()
            announce("Stopping as soon as the requests under way are answered.")
            server.stop(grace_seconds)
        except KeyboardInterrupt:
            server.stop(0)


def _check_arguments(models: Any, engine: str) -> None:
    if not models:
        raise UserError("no model to serve was given; give at least one name with its base path.")
    check_engine(engine)
    require_packages()


@contextlib.contextmanager
def _handlers(handle: Callable[[int, Any], None]) -> Iterator[None]:
    # Windows has no SIGHUP: there a configuration is read again by its own interval only.
    rereading = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    before = {number: signal.signal(number, handle) for number in (*ENDING, *rereading)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
