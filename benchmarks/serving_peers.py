"""The same network behind other Python servers, each as its own first example has it; for serving_throughput.py.

python benchmarks/serving_peers.py fastapi|litserve|bentoml FOLDER PORT

All answer POST /predict with TensorFlow Serving's body, one image a request, from FOLDER/network.keras.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

VARIABLE = "SERVING_PEERS_NETWORK"


def classifier(path: str):
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_convnets  # noqa: F401  (registers the networks' own layers)
    from keras_convnets._tf_ops import center_view, decode_image

    model = keras.saving.load_model(path, compile=False)

    def classify(bodies: list[dict]) -> list[list[float]]:
        encoded = [base64.b64decode(body["instances"][0]["b64"]) for body in bodies]
        views = [center_view(decode_image(data), 256, (224, 224)) for data in encoded]
        answers = model.predict(np.stack([view.numpy() for view in views]).astype("float32"), verbose=0)
        return tf.convert_to_tensor(answers).numpy().tolist()

    return classify


def fastapi(path: str, port: int) -> None:
    import uvicorn
    from fastapi import FastAPI

    app, classify = FastAPI(), classifier(path)

    @app.post("/predict")
    def predict(body: dict) -> dict:
        return {"predictions": classify([body])}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def litserve(path: str, port: int) -> None:
    import litserve as ls

    os.environ[VARIABLE] = path
    server = ls.LitServer(LitNetwork(max_batch_size=16, batch_timeout=0.01), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False)


def bentoml(path: str, port: int) -> None:
    command = [sys.executable, "-m", "bentoml", "serve", "serving_peers:Network", "--port", str(port)]
    folder = os.path.dirname(os.path.abspath(__file__))
    subprocess.run(command, env=os.environ | {VARIABLE: path}, cwd=folder, check=True)


# LitServe starts its workers as processes that import this module anew.
if "litserve" in sys.argv[1:2] and importlib.util.find_spec("litserve"):
    import litserve as _litserve

    class LitNetwork(_litserve.LitAPI):
        """The network as LitServe has it."""

        def setup(self, device):
            """Load it, in the worker."""
            self.classify = classifier(os.environ[VARIABLE])

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
            self.classify = classifier(os.environ[VARIABLE])

        @_bentoml.api
        def predict(self, instances: list) -> dict:
            """Answer one request."""
            return {"predictions": self.classify([{"instances": instances}])}


if __name__ == "__main__":
    name, folder, port = sys.argv[1:]
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}[name](
        os.path.join(folder, "network.keras"), int(port)
    )
