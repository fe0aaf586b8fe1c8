"""What a base64 image in a JSON body costs the endpoint before the network: beside decoding its base64 alone.

    python benchmarks/json_bodies.py

From the body's bytes to the tensor of encoded images: the estimate of its memory, parsing and decoding; beside it, the
same by Python's json and base64. Medians of several rounds in turn; appended to results/json_bodies.csv. Aim: at most
what `base64.b64decode` takes for the same image.
"""

from __future__ import annotations

import base64
import json
import os
import time

import numpy as np
from reporting import append_row

from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.rest import json_tensors
from keras_convnets.export.serving.signatures import TensorInfo

ROUNDS, REPEATS = 15, 100
INPUTS = {"image_bytes": TensorInfo("image_bytes", "string", (None,))}


def microseconds(work) -> float:
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    return (time.perf_counter() - began) / REPEATS * 1e6


def main() -> None:
    for size in (10_000, 100_000, 1_000_000):
        text = base64.b64encode(os.urandom(size)).decode()
        body = json.dumps({"instances": [{"b64": text}]}).encode()

        def ours(body: bytes = body) -> None:
            costs.of_whole_json(body)
            document, name = json_tensors.parse_request(body)
            json_tensors.decode_inputs(document, INPUTS, name)

        def library(body: bytes = body) -> None:
            base64.b64decode(json.loads(body)["instances"][0]["b64"])

        def decoding(text: str = text) -> None:
            base64.b64decode(text)

        rows = np.array([[microseconds(work) for work in (ours, library, decoding)] for _ in range(ROUNDS)])
        ratios = rows[:, 0] / rows[:, 2]
        whole, plain, alone = np.median(rows, axis=0).tolist()
        print(
            f"{size:>9,} bytes: {whole:7.0f} us, {np.median(ratios):.2f} of base64.b64decode alone ({min(ratios):.2f} "
            f"to {max(ratios):.2f}, {ROUNDS} rounds); json and base64 of the library {plain:7.0f} us"
        )
        figures = {"ours_us": whole, "library_us": plain, "base64_us": alone, "median": float(np.median(ratios))}
        append_row(
            "json_bodies",
            {"bytes": size, "rounds": ROUNDS, **figures, "lowest": float(min(ratios)), "highest": float(max(ratios))},
        )


if __name__ == "__main__":
    main()
