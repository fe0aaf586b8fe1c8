"""SavedModels that tests serve, and requests to them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from endpoints import call, post
from tensorflow_serving.apis import (
    predict_pb2,
)

from keras_convnets.export.serving.signatures import Signature, TensorInfo

LABELS = ["red", "green", "blue"]


class Colours(tf.Module):
    """Classifies an image by its channels' means; `version` marks which version answered."""

    def __init__(self, version=1.0):
        super().__init__()
        self.version = tf.Variable(version)

    def _probabilities(self, images):
        return tf.nn.softmax(tf.reduce_mean(tf.cast(images, tf.float32), [1, 2]) / 255.0)

    def _decode(self, image_bytes):
        decode = lambda one: tf.io.decode_image(one, channels=3, expand_animations=False)  # noqa: E731
        return tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec([None, None, 3], tf.uint8))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        return {"probabilities": self._probabilities(self._decode(image_bytes))}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def top_k(self, image_bytes):
        scores, indices = tf.math.top_k(self._probabilities(self._decode(image_bytes)), 2)
        return {"classes": tf.gather(tf.constant(LABELS), indices), "scores": scores}

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def predict_images(self, images):
        return {"probabilities": self._probabilities(images)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def which(self, x):
        return {"version": x * 0.0 + self.version}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="steps")])
    def slow(self, steps):
        """Adds 0.001 for each step, one after the other; a step takes about a microsecond or two."""
        total = tf.while_loop(lambda i, t: i < steps[0], lambda i, t: (i + 1, t + 0.001), [0, 0.0])[1]
        return {"total": total[None]}


def save_colours(path, version=1.0):
    module = Colours(version)
    names = {"serving_default": "serve", "top_k": "top_k", "predict_images": "predict_images"}
    names |= {"which": "which", "slow": "slow"}
    tf.saved_model.save(module, str(path), {key: getattr(module, name) for key, name in names.items()})


def save_tf1(path):
    """A TF1-style SavedModel: a graph with a variable and a table of no object."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        half = v1.get_variable("half", initializer=0.5, use_resource=False)
        y = tf.add(tf.multiply(x, half), 2.0, name="y")
        session.run(v1.global_variables_initializer())
        build = v1.saved_model.utils.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": build(x)}, {"y": build(y)}, "tensorflow/serving/predict")
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()


def png(colour, size=4):
    image = np.zeros((size, size, 3), np.uint8)
    image[..., LABELS.index(colour)] = 255
    return tf.io.encode_png(image).numpy()


def predict(server, body, model="many", where=""):
    return post(server, f"/v1/models/{model}{where}:predict", body)


def same(server, text, key="instances", signature="same"):
    """Send the text of a value through an identity signature and return the answer's text."""
    body = f'{{"signature_name": "{signature}", "{key}": {text}}}'
    status, _, answer = call(server, "POST", "/v1/models/many:predict", body)
    assert status == 200, answer
    return answer.decode()


ROW = {"a": [1.0, 2.0], "b": 5, "s": "one"}


class Noted:
    """An engine with one signature that returns its input, or the result of `answer` for it."""

    def __init__(self, answer=None):
        self._answer = answer or (lambda x: x)
        self.ran = 0
        self.signature_defs = {}
        info = TensorInfo("x", "float", (None,))
        self.signatures = {"serving_default": Signature("serving_default", {"x": info}, {"y": info})}

    def run(self, name, inputs):
        self.ran += 1
        return {"y": self._answer(inputs["x"])}


def predict_request(model="many", signature="", **arrays):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for alias, value in arrays.items():
        tensor = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        request.inputs[alias].CopyFrom(tensor)
    return request
