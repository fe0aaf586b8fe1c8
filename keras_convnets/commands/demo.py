"""Classify photographs in the browser: export a network if need be, serve it on this machine, open its page."""

from __future__ import annotations

import argparse
import tempfile
import webbrowser
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keras_convnets.commands.arguments import Command, Parser
from keras_convnets.commands.startup import load_tensorflow
from keras_convnets.errors import UserError
from keras_convnets.extras import require

# Its weights are part of the package.
DEFAULT = "ResNet20:cifar10"


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    what = (
        "a run directory, a .keras file or MODEL:WEIGHTS, which is exported first; or a repository, or a model in one"
    )
    parser.add_argument("source", nargs="?", default=DEFAULT, metavar="SOURCE", help=f"{what}; default: %(default)s")
    kept = "a repository to export to; default: a temporary one, deleted at the end"
    parser.add_argument("--to", metavar="DIR", help=kept)
    parser.add_argument("--rest_api_port", type=int, default=8501, help="default: %(default)s, or a free one")
    parser.add_argument("--port", type=int, default=8500, help="of gRPC; default: %(default)s, or a free one")
    parser.add_argument("--no_browser", action="store_true", help="print the page's address only")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C.

    Raises:
        UserError: if the source can't be exported or served.
    """
    require("serving", "the demo")
    load_tensorflow()
    from keras_convnets.export.serving import ModelServer, serve_forever
    from keras_convnets.export.serving.sockets import free_port

    with ExitStack() as stack:
        models = _exported(args.source)
        if models is None:
            to = args.to or stack.enter_context(tempfile.TemporaryDirectory(prefix="keras_convnets_demo_"))
            models = _export(args.source, to)
        elif args.to:
            raise UserError(f"--to came with {args.source}, which is exported already; leave it out.")
        server = ModelServer(models, port=free_port(args.port), rest_api_port=free_port(args.rest_api_port))
        page = f"http://127.0.0.1:{server.rest_api_port}/"
        opened = args.no_browser

        def announce(line: str) -> None:
            nonlocal opened
            print(line, flush=True)
            if not opened:
                # The server answers by now.
                opened = True
                webbrowser.open(page)

        print(f"The page will be {page} (Ctrl-C ends it).", flush=True)
        serve_forever(server, announce=announce)


def _exported(source: str) -> Any:
    """Return what the server takes for a repository or a model's folder of versions; None for anything else."""
    from keras_convnets.export import repository
    from keras_convnets.export.serving.models.configuration import RepositoryConfig

    path = Path(source)
    if (path / repository.SAVED_MODEL).is_file():
        raise UserError(f"{source} is one version; give the model's folder, {path.absolute().parent}, instead.")
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    if repository.versions(path):
        return {path.absolute().name: path}
    return RepositoryConfig(source)


def _export(source: str, to: str) -> Mapping[str, str]:
    from keras_convnets import export
    from keras_convnets.commands.sources import check_has_weights, open_model

    is_place = Path(source).exists()
    if not is_place:
        check_has_weights(source, "show")
    print(f"Exporting {source}.", flush=True)
    version = export.publish(source if is_place else open_model(source), to=to, formats=("saved_model",))
    return {version.parent.name: str(version.parent)}


COMMAND = Command(__doc__, add_flags, run)
