"""List a repository's versions, delete old ones, have an earlier one served, or write files that deploy it."""

from __future__ import annotations

import argparse

from keras_convnets.commands.arguments import Command, Parser, add_commands
from keras_convnets.commands.startup import quiet_stderr
from keras_convnets.commands.terminal import print_json
from keras_convnets.errors import UserError


def _add_list_flags(parser: Parser) -> None:
    _add_repository_flag(parser)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="one model; default: all")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list(args: argparse.Namespace) -> None:
    """List the versions; an asterisk marks those that are served."""
    from keras_convnets.export import repository
    from keras_convnets.export.listing import versions_plain, versions_text

    with quiet_stderr():
        found = repository.published(args.to, args.model)
    if args.json:
        print_json(versions_plain(found))
    else:
        print(versions_text(found))


def _add_prune_flags(parser: Parser) -> None:
    _add_repository_flag(parser)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="one model; default: all")
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the highest versions stay")


def _prune(args: argparse.Namespace) -> None:
    """Delete all but the highest versions; one that a rollback serves stays."""
    from keras_convnets.export import repository

    with quiet_stderr():
        gone = repository.prune(args.to, args.keep, args.model)
    for path in gone:
        print(f"deleted {path}")
    if not gone:
        print(f"nothing to delete: no model has more than {args.keep} versions.")


def _add_rollback_flags(parser: Parser) -> None:
    _add_repository_flag(parser)
    parser.add_argument("model", metavar="MODEL", help="its name in the repository")
    parser.add_argument("--version", type=int, metavar="N", help="default: the one before what is served")
    parser.add_argument("--latest", action="store_true", help="take a rollback back")


def _rollback(args: argparse.Namespace) -> None:
    """Have an earlier version served, by models.config; nothing is deleted."""
    from keras_convnets.export import repository

    if args.latest and args.version is not None:
        raise UserError("rollback got --latest and --version; give one of the two.")
    with quiet_stderr():
        if args.latest:
            number, further = repository.serve_latest(args.to, args.model), "and those to come"
        else:
            number, further = repository.rollback(args.to, args.model, args.version), "until rollback --latest"
    print(f"{args.to}/models.config: {args.model} is served at version {number}, {further}.")


def _add_deploy_flags(parser: Parser) -> None:
    parser.add_argument("model", nargs="*", metavar="MODEL", help="names in the repository; default: all")
    parser.add_argument("--to", required=True, metavar="DIR", help="the folder that is written; it must not exist")
    repository = "the repository; default: %(default)s"
    parser.add_argument("--repository", default="saved_models", metavar="DIR", help=repository)


def _deploy(args: argparse.Namespace) -> None:
    """Write docker compose, Kubernetes, NGINX, Prometheus and Grafana files for exported models, and a Dockerfile."""
    with quiet_stderr():
        from keras_convnets.export import deployment

        models = deployment.write(args.to, args.repository, args.model)
    for model in models:
        if not model.has_onnx:
            print(
                f"{model.name} has no model.onnx in each served version: it is not in the files of Triton and OpenVINO."
            )
    print(f"wrote {args.to}; {args.to}/README.md says how to run {', '.join(model.name for model in models)}.")


def _add_repository_flag(parser: Parser) -> None:
    parser.add_argument("--to", default="saved_models", metavar="DIR", help="the repository; default: %(default)s")


ACTIONS = {
    "list": Command(_list.__doc__, _add_list_flags, _list),
    "prune": Command(_prune.__doc__, _add_prune_flags, _prune),
    "rollback": Command(_rollback.__doc__, _add_rollback_flags, _rollback),
    "deploy": Command(_deploy.__doc__, _add_deploy_flags, _deploy),
}
COMMAND = Command(__doc__, lambda parser: add_commands(parser, "ACTION", ACTIONS))
