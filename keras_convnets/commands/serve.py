"""Answer TensorFlow Serving's REST and gRPC for exported models."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from keras_convnets.commands.arguments import Command, Parser, count, not_negative, positive, switch
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.extras import require


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument("repository", nargs="?", default="saved_models", metavar="DIR", help="default: %(default)s")
    add = parser.add_argument
    add("--port", type=int, default=8500, help="of gRPC; default: %(default)s")
    add("--rest_api_port", type=int, default=8501, help="of REST; default: %(default)s")
    add("--host", help="address to listen on; default: 127.0.0.1, this machine only")
    add("--grpc_socket_path", default="", metavar="FILE", help="a UNIX socket that answers gRPC too")
    add("--grpc_channel_arguments", default="", metavar="KEY=VALUE,...", help="options of gRPC's own")
    add("--model_name", help="serve this model only, or the name for --model_base_path")
    add("--model_base_path", metavar="DIR", help="a model's folder of versions, instead of a repository")
    add("--model_config_file", metavar="FILE", help="a ModelServerConfig, instead of a repository")
    engines = ("tensorflow", "onnxruntime", "tensorflow_model_server")
    add("--engine", choices=engines, help="default: tensorflow_model_server where it is on PATH, else tensorflow")
    add("--batching_parameters_file", metavar="FILE", help="a BatchingParameters")
    add("--monitoring_config_file", metavar="FILE", help="a MonitoringConfig: metrics for Prometheus")
    page = "whether / is a page that classifies photographs; default: true"
    add("--page", nargs="?", const=True, type=switch, metavar="true|false", help=page)
    add("--access_log", choices=("json",), help="a line of JSON on standard output for each request")
    seconds = (
        ("file_system_poll_wait_seconds", 1.0, "between two looks for versions; 0: look once"),
        ("model_config_file_poll_wait_seconds", 0.0, "between two readings of --model_config_file; 0: on SIGHUP only"),
    )
    for name, default, purpose in seconds:
        add(f"--{name}", type=not_negative, default=default, metavar="S", help=f"{purpose}; default: %(default)s")
    add("--rest_api_timeout_in_ms", type=positive, default=30_000, metavar="MS", help="default: %(default)s")
    add("--max_queued_requests", type=positive, metavar="N", help="more are refused; default: 128")
    _add_limit_flags(parser)
    folders = "whose models clients may have served (HandleReloadConfigRequest), and the next with another flag; "
    folders += "default: what is served, and none where --host is reached by other machines"
    add("--reload_folders", action="append", metavar="DIR", help=folders)
    switches = (
        ("enable_batching", False, "run requests that come at the same time together"),
        ("enable_model_warmup", True, "answer a version's warm-up requests before it is available"),
        ("rest_api_enable_cors_support", False, "let pages of other origins read the answers"),
        ("enable_grpc_healthcheck_service", False, "answer grpc.health.v1"),
        ("allow_version_labels_for_unavailable_models", False, "let a new label name a version still to be loaded"),
    )
    for name, default, purpose in switches:
        purpose = f"{purpose}; default: {str(default).lower()}"
        add(f"--{name}", nargs="?", const=True, default=default, type=switch, metavar="true|false", help=purpose)


def _add_limit_flags(parser: Parser) -> None:
    from keras_convnets.export.serving.admission.limits import Limits

    group = parser.add_argument_group("limits of the local server", "0: none, as in TensorFlow Serving")
    for field in dataclasses.fields(Limits):
        purpose = f"{field.metadata['purpose']}; default: {field.default}"
        group.add_argument(f"--{field.name}", type=count, metavar="N", help=purpose)


def run(args: argparse.Namespace) -> None:
    """Serve until asked to stop: with TensorFlow Serving's program where it is found, else in this process."""
    require("serving", "the local server")
    from keras_convnets.export.serving import command

    flags = vars(args)
    command.check_batching(flags)
    program = command.find_model_server(args.engine)
    if program is not None:
        arguments = command.model_server_arguments(flags)
        print(f"Serving with {program}, which listens on every address of this machine.", flush=True)
        os.execv(program, [program, *arguments])
    server = command.make_local_server(flags)
    if args.engine is None:
        print(f"{command.MODEL_SERVER} is not on PATH: the local server answers in its place.", file=sys.stderr)
    load_tensorflow()
    from keras_convnets.export.serving import serve_forever

    # Standard output holds the access log alone where there is one.
    stream = sys.stderr if args.access_log else sys.stdout
    serve_forever(server, announce=lambda line: print(line, file=stream, flush=True))


COMMAND = Command(__doc__, add_flags, run)
