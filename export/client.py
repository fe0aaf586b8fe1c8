"""A client for an endpoint that serves our models: this package's server or TensorFlow Serving, over REST or gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.export.credentials import Credentials, OptionalPath
from keras_convnets.export.transports import EndpointError, open_transport

DEFAULT_BATCH_SIZE = 32
# Maximum bytes of encoded images in one request (one image may be larger), because servers limit request sizes.
BATCH_BYTES = 8 * 1024**2
# Tolerance for the probabilities of one image in two requests: other batch sizes change the order of summation.
SAME_PROBABILITY = 1e-4


class Client:
    """Classifies images at an endpoint.

    REST needs only the standard library; gRPC needs the package's serving extra. A client is thread-safe.

    Args:
        url: `http://HOST:8501/v1/models/NAME` or `grpc://HOST:8500/NAME`, each optionally with `/versions/V` or
            `/labels/L` after the name; `https://` and `grpcs://` for TLS, with default port 443. A path prefix, such as
            a reverse proxy's, may precede `/v1`.
        timeout: of one request, in seconds.
        signature_name: the signature that `predict` calls; None for the endpoint's default.
        headers: headers of each request, by name, such as {"Authorization": "Bearer ..."}.
        root_certificates: a PEM file of the trusted certificate authorities; by default the system's.
        client_certificate: a PEM file with the client's certificate, for endpoints that require one.
        client_key: a PEM file with the client's key; None if the certificate's file contains it.

    Raises:
        UserError: if the URL, a header or a PEM file is invalid, certificates are given for a URL without TLS, or the
            extra packages for gRPC are missing.

    Example:
        >>> client = Client("http://127.0.0.1:8501/v1/models/resnet20")
        >>> client.predict([Path("cat.jpg").read_bytes()]).argmax(-1)
        array([3])
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 60.0,
        signature_name: str | None = None,
        headers: Mapping[str, str] | None = None,
        root_certificates: OptionalPath = None,
        client_certificate: OptionalPath = None,
        client_key: OptionalPath = None,
    ):
        self.url = url
        self.signature_name = signature_name
        credentials = Credentials(dict(headers or {}), root_certificates, client_certificate, client_key)
        self._transport = open_transport(url, timeout, credentials)

    def predict(self, images: Sequence[bytes], *, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
        """Return the probabilities of encoded images.

        Args:
            images: encoded images, such as the contents of JPEG or PNG files.
            batch_size: maximum number of images in one request; a request also has at most `BATCH_BYTES`.

        Returns:
            float32 [n, classes]; [0, 0] if there are no images.

        Raises:
            UserError: if the endpoint cannot be reached, does not serve the model or rejects the images.
            EndpointError: if the endpoint failed or timed out.
        """
        return self._probabilities(self.signature_name, "image_bytes", images, batch_size)

    def predict_images(self, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
        """Return the probabilities of decoded images, by the signature `predict_images`.

        Args:
            images: uint8 [n, height, width, 3], RGB.
            batch_size: maximum number of images in one request.

        Returns:
            float32 [n, classes]; [0, 0] if there are no images.

        Raises:
            UserError: as `predict`; also if the array has another dtype or shape.
            EndpointError: as `predict`.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise UserError(
                f"got an array of {images.dtype} {list(images.shape)}; allowed is uint8 [n, height, width, 3]; decode "
                "the images to RGB first, or send the files' bytes to predict."
            )
        return self._probabilities("predict_images", "images", images, batch_size)

    def top_k(self, images: Sequence[bytes], *, batch_size: int = DEFAULT_BATCH_SIZE) -> list[list[tuple[str, float]]]:
        """Return the most probable classes of encoded images, by the signature `top_k`.

        Args:
            images: encoded images, such as the contents of JPEG or PNG files.
            batch_size: maximum number of images in one request.

        Returns:
            For each image a list of (class name, probability), the most probable first.

        Raises:
            UserError: as `predict`.
            EndpointError: as `predict`.
        """
        results = []
        for batch in _batches(images, batch_size):
            outputs = self._call("top_k", "image_bytes", batch, ("classes", "scores"))
            for names, scores in zip(outputs["classes"], outputs["scores"], strict=True):
                pairs = zip(names, scores, strict=True)
                results.append([(_text(name), float(score)) for name, score in pairs])
        return results

    def status(self) -> list[dict[str, Any]]:
        """Return the states of the model's versions, newest first.

        Returns:
            For each version a dict with `version` (int), `state` (such as "AVAILABLE"), `error_code` and
            `error_message`.

        Raises:
            UserError: if the endpoint cannot be reached or does not serve the model.
            EndpointError: if the endpoint failed or timed out.
        """
        return self._transport.status()

    def metadata(self) -> dict[str, Any]:
        """Return the model's name, version and signatures, in the format of the REST API's metadata.

        Raises:
            UserError: as `status`.
            EndpointError: as `status`.
        """
        return self._transport.metadata()

    def image_size(self) -> tuple[int, int] | None:
        """Return (height, width) of the input of signature `predict_images`, or None if the metadata do not give it."""
        sides = _shape(self._signatures(), "predict_images", "inputs", "images")[1:3]
        return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None

    def class_count(self) -> int | None:
        """Return how many classes `predict` gives the probabilities of; None where the metadata do not say."""
        shape = _shape(self._signatures(), self.signature_name or "serving_default", "outputs", "probabilities")
        return shape[1] if len(shape) == 2 and shape[1] > 0 else None

    def check_classes(self, class_names: Sequence[str], images: Sequence[bytes]) -> bool:
        """Check that the endpoint's model has these classes, in this order.

        The number of classes is compared with the metadata of `predict`'s signature. The class names are compared with
        the results of signature `top_k` for some images: each name must be in `class_names`, and its score must equal
        the output of `predict` at that index.

        Args:
            class_names: the expected names, in the order of the outputs.
            images: some encoded images; only classes among their top-k results are compared.

        Returns:
            Whether names were compared; False if the endpoint has no signature `top_k` or there are no images.

        Raises:
            UserError: if the number, a name or the order of the classes differs; also as `predict`.
            EndpointError: as `predict`.
        """
        signatures, count = self._signatures(), self.class_count()
        if count not in (None, len(class_names)):
            raise UserError(
                f"{self.url} has {count} classes and {len(class_names)} are expected; "
                "compare it with data of the model's classes."
            )
        if "top_k" not in signatures or not images:
            return False
        indices: dict[str, list[int]] = {}
        for index, name in enumerate(class_names):
            indices.setdefault(name, []).append(index)
        for row, top in zip(self.predict(images), self.top_k(images), strict=True):
            for name, score in top:
                values = [float(row[index]) for index in indices.get(name, []) if index < len(row)]
                if not any(abs(value - score) <= SAME_PROBABILITY for value in values):
                    what = "at another index" if name in indices else "not among those expected"
                    raise UserError(
                        f"{self.url} has the class {name!r}, which is {what} ({', '.join(class_names[:5])}"
                        f"{' ...' if len(class_names) > 5 else ''}); compare it with data of the model's classes."
                    )
        return True

    def _signatures(self) -> dict[str, Any]:
        return self.metadata()["metadata"]["signature_def"]["signature_def"]

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _probabilities(self, signature: str | None, alias: str, images: Any, batch_size: int) -> np.ndarray:
        batches = []
        for batch in _batches(images, batch_size):
            outputs = self._call(signature, alias, batch, ("probabilities",))
            batches.append(np.asarray(outputs["probabilities"], dtype=np.float32))
        return np.concatenate(batches) if batches else np.zeros((0, 0), np.float32)

    def _call(self, signature: str | None, alias: str, batch: Any, outputs: Sequence[str]) -> Mapping[str, Any]:
        answer = self._transport.predict(signature, alias, batch, outputs)
        for name in outputs:
            if name not in answer:
                raise UserError(
                    f"signature {signature or 'serving_default'!r} at {self.url} has no output {name!r} but "
                    f"{', '.join(sorted(answer)) or 'none'}; export the model with this package, or give the signature "
                    "that has it."
                )
            if len(answer[name]) != len(batch):
                raise EndpointError(f"{self.url} answered {len(answer[name])} of {len(batch)} images.")
        return answer


def _batches(images: Any, batch_size: int) -> Iterator[Any]:
    if batch_size < 1:
        raise UserError(f"got batch_size={batch_size}; allowed is 1 or more; leave it out for {DEFAULT_BATCH_SIZE}.")
    start = 0
    while start < len(images):
        stop, size = start + 1, 0 if isinstance(images, np.ndarray) else len(images[start])
        while stop < min(len(images), start + batch_size):
            size += 0 if isinstance(images, np.ndarray) else len(images[stop])
            if size > BATCH_BYTES:
                break
            stop += 1
        yield images[start:stop]
        start = stop


def _shape(signatures: Mapping[str, Any], signature: str, direction: str, alias: str) -> list[int]:
    """Return the shape of a signature's input or output, or an empty list if the metadata do not have it.

    Args:
        signatures: the metadata's signature definitions, by name.
        signature: the signature's name.
        direction: "inputs" or "outputs".
        alias: the name of the input or output.
    """
    shape = signatures.get(signature, {}).get(direction, {}).get(alias, {}).get("tensor_shape", {})
    return [int(dim["size"]) for dim in shape.get("dim", [])]


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name
