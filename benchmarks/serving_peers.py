"""The same network served by other Python servers, each as in its own first example; for serving_throughput.py.

python benchmarks/serving_peers.py fastapi|litserve|bentoml FOLDER PORT

All answer POST /predict with TensorFlow Serving's body, one image a request: FastAPI with Keras' `predict` on
FOLDER/network.keras, the other two with ONNX Runtime on FOLDER/1/model.onnx, in batches of up to 16.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

VARIABLE = "SERVING_PEERS_NETWORK"


def keras_classifier(folder: str):
    """Return what a FastAPI example does: Keras' `predict` on one image at a time."""
    import keras
    import numpy as np

    import keras_convnets  # noqa: F401  (registers the networks' own layers)

    model = keras.saving.load_model(os.path.join(folder, "network.keras"), compile=False)
    return lambda bodies: model.predict(np.stack([view(body) for body in bodies]), verbose=0).tolist()


def onnx_classifier(folder: str):
    """Return what a batch costs in ONNX Runtime, the way the servers that are made for batches use it."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(os.path.join(folder, "1", "model.onnx"), providers=["CPUExecutionProvider"])

    def classify(bodies: list[dict]) -> list[list[float]]:
        (answers,) = session.run(["probabilities"], {"images": np.stack([view(body) for body in bodies])})
        return answers.tolist()

    return classify


def view(body: dict):
    """Return the centre of an image as Pillow gives it, float32 [224, 224, 3]."""
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(body["instances"][0]["b64"]))).convert("RGB")
    scale = 256 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    return np.asarray(image, np.float32)


def fastapi(folder: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    app, classify = FastAPI(), keras_classifier(folder)

    @app.post("/predict")
    def predict(body: dict) -> dict:
        return {"predictions": classify([body])}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def litserve(folder: str, port: int) -> None:
    import litserve as ls

    os.environ[VARIABLE] = folder
    server = ls.LitServer(LitNetwork(max_batch_size=16, batch_timeout=0.01), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False)


def bentoml(folder: str, port: int) -> None:
    command = [sys.executable, "-m", "bentoml", "serve", "serving_peers:Network", "--port", str(port)]
    here = os.path.dirname(os.path.abspath(__file__))
    subprocess.run(command, env=os.environ | {VARIABLE: folder}, cwd=here, check=True)


# LitServe starts its workers as processes that import this module again.
if "litserve" in sys.argv[1:2] and importlib.util.find_spec("litserve"):
    import litserve as _litserve

    class LitNetwork(_litserve.LitAPI):
        """The network as LitServe has it."""

        def setup(self, device):
            """Load it, in the worker."""
            self.classify = onnx_classifier(os.environ[VARIABLE])

        def decode_request(self, request):
            """Leave the body as it is."""
            return request

        def batch(self, inputs):
            """Leave the images apart: they have different sizes."""
            return inputs

        def predict(self, bodies):
            """Answer a batch."""
            return self.classify(bodies)

        def unbatch(self, output):
            """Return the answers one by one."""
            return output

        def encode_response(self, output):
            """Answer as TensorFlow Serving does."""
            return {"predictions": [output]}


# BentoML imports this module by its name.
if __name__ == "serving_peers" and VARIABLE in os.environ:
    import bentoml as _bentoml

    @_bentoml.service
    class Network:
        """What `bentoml serve` imports."""

        def __init__(self):
            self.classify = onnx_classifier(os.environ[VARIABLE])

        @_bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=60_000)
        def predict(self, instances: list) -> list:
            """Answer the instances of several requests."""
            return self.classify([{"instances": [instance]} for instance in instances])


if __name__ == "__main__":
    name, folder, port = sys.argv[1:]
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}[name](folder, int(port))
