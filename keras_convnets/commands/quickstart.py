"""The main job in one go, by the commands a user would type: train, evaluate, export, serve, predict."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = "digits"
SETTINGS = ("epochs=40", "batch_size=64", "holdout=0.1")
START_SECONDS = 120.0
# Answers that are printed, evenly over the classes; all are counted.
SHOWN = 20


def quickstart(command: Callable[[list[str]], int], *, run: str, repository: str, keep_serving: bool) -> None:
    """Train ResNet-20 on scikit-learn's handwritten digits and take it all the way to an endpoint.

    Args:
        command: the command line's `main`: arguments to exit status.
        run: the run directory; a run that was stopped goes on.
        repository: where the model is exported to.
        keep_serving: leave the endpoint up until Ctrl-C.

    Raises:
        SystemExit: with a step's exit status, if it fails.
    """
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    _step(command, ["train", "--model", "ResNet20", "--dataset", NAME, "--run", run, *settings])
    _step(command, ["evaluate", run])
    _step(command, ["export", run, "--name", NAME, "--to", repository])
    with _endpoint(repository) as (grpc_url, rest_url, server):
        _ask(command, run, rest_url, "REST")
        _ask(command, run, grpc_url, "gRPC")
        top1, n = _measure(command, rest_url)
        _say_what_next(run, repository)
        last_line = f"top-1 {100 * top1:.1f} % over REST (n={n})"
        if keep_serving:
            print(f"{rest_url} and {grpc_url} stay up until Ctrl-C.\n{last_line}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
    if not keep_serving:
        print(last_line)


@contextlib.contextmanager
def _endpoint(repository: str) -> Iterator[tuple[str, str, subprocess.Popen]]:
    """Serve the model in a process of its own; give its gRPC and REST URLs and the process."""
    grpc_port, rest_port = _free_port(8500), _free_port(8501)
    serve = ["serve", repository, "--model_name", NAME, "--port", str(grpc_port), "--rest_api_port", str(rest_port)]
    _show(serve)
    server = subprocess.Popen([sys.executable, "-m", "keras_convnets", *serve])
    # However this process is asked to end, the server ends with it.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _wait_until_open(server, (rest_port, grpc_port))
        yield f"grpc://127.0.0.1:{grpc_port}/{NAME}", f"http://127.0.0.1:{rest_port}/v1/models/{NAME}", server
    finally:
        _stop(server)
        signal.signal(signal.SIGTERM, before)


def _step(command: Callable[[list[str]], int], arguments: list[str]) -> None:
    _show(arguments)
    status = command(arguments)
    if status:
        raise SystemExit(status)


def _show(arguments: list[str]) -> None:
    print(f"\n$ keras-convnets {shlex.join(arguments)}", flush=True)


def _ask(command: Callable[[list[str]], int], run: str, url: str, protocol: str) -> None:
    """Classify the run's held-out samples over the wire and print the answers beside the truth."""
    samples = str(Path(run) / "samples")
    _show(["predict", samples, "--url", url])
    with tempfile.TemporaryFile("w+") as file:
        arguments = ["predict", samples, "--url", url, "--json"]
        if status := _into(file, command, arguments):
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


def _into(file, command: Callable[[list[str]], int], arguments: list[str]) -> int:
    with contextlib.redirect_stdout(file):
        return command(arguments)


def _measure(command: Callable[[list[str]], int], url: str) -> tuple[float, int]:
    """Evaluate the endpoint on the whole test split."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "evaluation.json")
        _step(command, ["evaluate", url, "--dataset", NAME, "--batch_size", "60", "--json", path])
        result = json.loads(Path(path).read_text(encoding="utf-8"))[url]
    return result["top1"], result["n"]


def _free_port(wanted: int) -> int:
    """Return the wanted port, or another where that one is in use."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    return wanted


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


def _say_what_next(run: str, repository: str) -> None:
    print(f"""
Look at {run}/plots/learning_curves.png and {run}/plots/confusion_matrix.png. What to type next:
  your own photographs, one sub-folder a class:
    keras-convnets train --model ResNet20 --dataset path/to/folder --run runs/mine --set image_size=64 --set epochs=100
  CIFAR-10 by the paper's recipe (64,000 iterations; a GPU helps):
    keras-convnets train --model ResNet20 --dataset cifar10 --run runs/cifar10
  the same endpoint again, or the same folder under TensorFlow Serving:
    keras-convnets serve {repository}
    docker run -p 8500:8500 -p 8501:8501 -v "{Path(repository).resolve()}:/models" \\
      -e MODEL_NAME={NAME} tensorflow/serving
""")
