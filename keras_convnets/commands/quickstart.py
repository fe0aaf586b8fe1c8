"""Train, evaluate, export, serve and classify over REST and gRPC, on a small real data set.

--pretrained exports and serves the network that comes with the package instead, and classifies photographs."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from keras_convnets.commands.arguments import Command, Parser
from keras_convnets.extras import require

NAME = "digits"
# What --pretrained serves, and its name in the repository.
PRETRAINED, PRETRAINED_NAME = "ResNet20:cifar10", "cifar10"
SETTINGS = ("epochs=40", "batch_size=64", "holdout=0.1")
START_SECONDS = 120.0
# Number of predictions printed, spread evenly over the samples; the accuracy counts all of them.
SHOWN = 20


def add_flags(parser: Parser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--run", default="runs/quickstart", metavar="DIR", help="the run directory; default: %(default)s"
    )
    parser.add_argument(
        "--to", default="saved_models", metavar="DIR", help="the model repository; default: %(default)s"
    )
    parser.add_argument("--keep_serving", action="store_true", help="keep the endpoint running until Ctrl-C")
    parser.add_argument(
        "--pretrained",
        nargs="*",
        metavar="IMAGE",
        help=f"train nothing: serve {PRETRAINED}, whose weights are part of this package, and classify these images; "
        "default: scikit-learn's two sample photographs",
    )


def run(args: argparse.Namespace) -> None:
    """Train ResNet-20 on scikit-learn's handwritten digits, or take trained weights; export, serve and classify.

    Each step runs a command that a user could type.

    Raises:
        SystemExit: with the exit status of a step that fails.
    """
    for extra in ("train", "export", "serving"):
        require(extra, "the quickstart")
    if args.pretrained is not None:
        _serve_pretrained(args)
    else:
        _train_and_serve(args)


def _train_and_serve(args: argparse.Namespace) -> None:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    _step(["train", "--model", "ResNet20", "--dataset", NAME, "--run", args.run, *settings])
    _step(["evaluate", args.run])
    _step(["export", args.run, "--name", NAME, "--to", args.to])
    with _endpoint(args.to, NAME) as (grpc_url, rest_url, server):
        _print_predictions(args.run, rest_url, "REST")
        _print_predictions(args.run, grpc_url, "gRPC")
        top1, n = _accuracy(rest_url)
        _print_next_steps(args.run, args.to)
        last_line = f"top-1 {100 * top1:.1f} % over REST (n={n})"
        if args.keep_serving:
            _keep_serving(server, (rest_url, grpc_url), last_line)
    if not args.keep_serving:
        print(last_line)


def _serve_pretrained(args: argparse.Namespace) -> None:
    from keras_convnets.export.samples import sample_photographs

    images = args.pretrained or [str(path) for path in sample_photographs()]
    _step(["export", PRETRAINED, "--name", PRETRAINED_NAME, "--to", args.to, "--formats", "saved_model"])
    with _endpoint(args.to, PRETRAINED_NAME) as (grpc_url, rest_url, server):
        for url in (rest_url, grpc_url):
            _step(["predict", *images, "--url", url])
        if not args.pretrained:
            print(
                "\nThe two photographs show a Chinese palace and a flower, which are not among the ten classes of "
                "CIFAR-10.\nClassify your own picture of one: keras-convnets quickstart --pretrained photo.jpg"
            )
        last_line = f"{len(images)} images classified over REST and gRPC"
        if args.keep_serving:
            _keep_serving(server, (rest_url, grpc_url), last_line)
    if not args.keep_serving:
        print(last_line)


def _keep_serving(server: subprocess.Popen, urls: tuple[str, str], last_line: str) -> None:
    """Print the last line while the endpoint runs, and wait until Ctrl-C."""
    print(f"{urls[0]} and {urls[1]} keep running until Ctrl-C.\n{last_line}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.wait()


def _command(arguments: list[str]) -> int:
    """Run a command in this process and return its exit status."""
    from keras_convnets.commands.main import main

    return main(arguments)


@contextlib.contextmanager
def _endpoint(repository: str, name: str) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """Serve the model in a subprocess; yield its gRPC URL, its REST URL and the process."""
    from keras_convnets.export.serving.sockets import free_port

    grpc_port, rest_port = free_port(8500), free_port(8501)
    serve = ["serve", repository, "--model_name", name, "--port", str(grpc_port), "--rest_api_port", str(rest_port)]
    _show(serve)
    server = subprocess.Popen([sys.executable, "-m", "keras_convnets", *serve])
    # SIGTERM raises KeyboardInterrupt, so that the server is stopped in every case.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _wait_until_open(server, (rest_port, grpc_port))
        yield f"grpc://127.0.0.1:{grpc_port}/{name}", f"http://127.0.0.1:{rest_port}/v1/models/{name}", server
    finally:
        _stop(server)
        signal.signal(signal.SIGTERM, before)


def _step(arguments: list[str]) -> None:
    _show(arguments)
    status = _command(arguments)
    if status:
        raise SystemExit(status)


def _show(arguments: list[str]) -> None:
    print(f"\n$ keras-convnets {shlex.join(arguments)}", flush=True)


def _print_predictions(run: str, url: str, protocol: str) -> None:
    """Classify the run's held-out samples at the endpoint and print the predictions with the true classes."""
    samples = str(Path(run) / "samples")
    _show(["predict", samples, "--url", url])
    with tempfile.TemporaryFile("w+") as file:
        arguments = ["predict", samples, "--url", url, "--json"]
        if status := _run_into(file, arguments):
            raise SystemExit(status)
        file.seek(0)
        answers = json.load(file)
    print(f"held-out images over {protocol}:")
    truths = [Path(answer["image"]).parent.name for answer in answers]
    right = sum(answer["classes"][0]["class"] == truth for answer, truth in zip(answers, truths, strict=True))
    for answer, truth in list(zip(answers, truths, strict=True))[:: max(1, len(answers) // SHOWN)][:SHOWN]:
        best = answer["classes"][0]
        verdict = "" if best["class"] == truth else "   <- wrong"
        print(f"  {answer['image']}  truth {truth}  answer {best['class']} ({best['probability']:.1%}){verdict}")
    print(f"  {right} of {len(answers)} are right")


def _run_into(file: IO[str], arguments: list[str]) -> int:
    with contextlib.redirect_stdout(file):
        return _command(arguments)


def _accuracy(url: str) -> tuple[float, int]:
    """Evaluate the endpoint on the whole test split; return (top-1 accuracy, number of images)."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "evaluation.json")
        _step(["evaluate", url, "--dataset", NAME, "--batch_size", "60", "--json", path])
        result = json.loads(Path(path).read_text(encoding="utf-8"))[url]
    return result["top1"], result["n"]


def _wait_until_open(server: subprocess.Popen, ports: tuple[int, ...]) -> None:
    deadline = time.monotonic() + START_SECONDS
    waiting = list(ports)
    while waiting:
        if server.poll() is not None:
            raise SystemExit(server.returncode)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the endpoint did not open port {waiting[0]} within {START_SECONDS:.0f} s")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", waiting[0])) == 0:
                waiting.pop(0)
                continue
        time.sleep(0.1)


def _stop(server: subprocess.Popen) -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _print_next_steps(run: str, repository: str) -> None:
    print(f"""
Look at {run}/plots/learning_curves.png and {run}/plots/confusion_matrix.png. What to type next:
  your own photographs, one sub-folder per class:
    keras-convnets train --model ResNet20 --dataset path/to/folder --run runs/mine --set image_size=64 --set epochs=100
  CIFAR-10 by the paper's recipe (64,000 iterations; a GPU helps):
    keras-convnets train --model ResNet20 --dataset cifar10 --run runs/cifar10
  the same endpoint again, or the same folder under TensorFlow Serving:
    keras-convnets serve {repository}
    docker run -p 8500:8500 -p 8501:8501 -v "{Path(repository).resolve()}:/models" \\
      -e MODEL_NAME={NAME} tensorflow/serving
""")


COMMAND = Command(__doc__, add_flags, run)
