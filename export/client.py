"""A client for an endpoint that serves our models: this package's or TensorFlow Serving, over REST or gRPC."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_convnets.errors import UserError
from keras_convnets.export.credentials import Credentials, Place
from keras_convnets.export.transports import EndpointError, open_transport

DEFAULT_BATCH_SIZE = 32
# Of encoded images a request holds at most so many bytes, or one image: servers bound what they take at once.
BATCH_BYTES = 8 * 1024**2
# Probabilities of one image in two requests may differ by so much: batches of other sizes are summed otherwise.
SAME_PROBABILITY = 1e-4


class Client:
    """Classifies images at an endpoint.

    The REST side needs nothing but Python; the gRPC side needs the package's serving extra. One client may be used
    from several threads.

    Args:
        url: `http://HOST:8501/v1/models/NAME` or `grpc://HOST:8500/NAME`, each optionally with `/versions/V` or
            `/labels/L` behind the name; `https://` and `grpcs://` for TLS, on port 443 where none is given. Before
            `/v1` there may be a prefix, as a proxy has it.
        timeout: seconds that one request may take.
        signature_name: the signature that `predict` calls; None for the endpoint's default.
        headers: what goes with each request, by name, such as {"Authorization": "Bearer ..."}.
        root_certificates: a PEM file of the authorities that are trusted with TLS; by default the system's.
        client_certificate: a PEM file of the client's own certificate, for endpoints that want one.
        client_key: the PEM file of its key; None where the certificate's file holds it.

    Raises:
        UserError: a URL of another form, a header that can't be sent, a file that can't be used, certificates for a URL
            without TLS, or the extra packages for gRPC are missing.

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
        root_certificates: Place = None,
        client_certificate: Place = None,
        client_key: Place = None,
    ):
        self.url = url
        self.signature_name = signature_name
        credentials = Credentials(dict(headers or {}), root_certificates, client_certificate, client_key)
        self._transport = open_transport(url, timeout, credentials)

    def predict(self, images: Sequence[bytes], *, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
        """Return the probabilities of encoded images.

        Args:
            images: files' contents, such as JPEG or PNG.
            batch_size: images in one request; fewer where they would be more than `BATCH_BYTES` together.

        Returns:
            float32 [n, classes]; [0, 0] when there is no image.

        Raises:
            UserError: the endpoint cannot be reached, does not know the model or refuses the images.
            EndpointError: the endpoint failed or did not answer in time.
        """
        return self._probabilities(self.signature_name, "image_bytes", images, batch_size)

    def predict_images(self, images: np.ndarray, *, batch_size: int = DEFAULT_BATCH_SIZE) -> np.ndarray:
        """Return the probabilities of images that are decoded already, through the signature `predict_images`.

        Args:
            images: uint8 [n, height, width, 3], RGB.
            batch_size: images in one request.

        Returns:
            float32 [n, classes]; [0, 0] when there is no image.

        Raises:
            UserError: as `predict`; also for an array of another type or rank.
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
        """Return the most probable classes of encoded images, through the signature `top_k`.

        Args:
            images: files' contents, such as JPEG or PNG.
            batch_size: images in one request.

        Returns:
            For each image the class names with their probabilities, the most probable first.

        Raises:
            UserError: as `predict`.
            EndpointError: as `predict`.
        """
        answers = []
        for batch in _batches(images, batch_size):
            outputs = self._call("top_k", "image_bytes", batch, ("classes", "scores"))
            for names, scores in zip(outputs["classes"], outputs["scores"], strict=True):
                pairs = zip(names, scores, strict=True)
                answers.append([(_text(name), float(score)) for name, score in pairs])
        return answers

    def status(self) -> list[dict[str, Any]]:
        """Return the states of the model's versions, newest first.

        Returns:
            For each version a dict with `version` (int), `state` (such as "AVAILABLE"), `error_code` and
            `error_message`.

        Raises:
            UserError: the endpoint cannot be reached or does not know the model.
            EndpointError: the endpoint failed or did not answer in time.
        """
        return self._transport.status()

    def metadata(self) -> dict[str, Any]:
        """Return the model's name, version and signatures, in the form of the REST interface's metadata.

        Raises:
            UserError: as `status`.
            EndpointError: as `status`.
        """
        return self._transport.metadata()

    def image_size(self) -> tuple[int, int] | None:
        """Return (height, width) of the images that signature `predict_images` takes; None where it does not say."""
        sides = _shape(self._signatures(), "predict_images", "inputs", "images")[1:3]
        return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0 else None

    def class_count(self) -> int | None:
        """Return how many classes `predict` gives the probabilities of; None where the metadata do not say."""
        shape = _shape(self._signatures(), self.signature_name or "serving_default", "outputs", "probabilities")
        return shape[1] if len(shape) == 2 and shape[1] > 0 else None

    def check_classes(self, class_names: Sequence[str], images: Sequence[bytes]) -> bool:
        """Refuse an endpoint that tells of other classes than these, or of another order.

        The number is what the metadata say of `predict`'s signature. Names are what signature `top_k` answers for some
        images: each must be one of these, and its score what `predict` gives in its place.

        Args:
            class_names: the expected names, in the order of the outputs.
            images: some encoded images; the more classes come up in their answers, the more is compared.

        Returns:
            Whether names were compared; False where the endpoint has no `top_k`.

        Raises:
            UserError: if a class differs; also as `predict`.
            EndpointError: as `predict`.
        """
        signatures, count = self._signatures(), self.class_count()
        if count not in (None, len(class_names)):
            raise UserError(
                f"{self.url} gives {count} classes and {len(class_names)} are expected; "
                "compare it with data of the model's classes."
            )
        if "top_k" not in signatures or not images:
            return False
        places: dict[str, list[int]] = {}
        for place, name in enumerate(class_names):
            places.setdefault(name, []).append(place)
        for row, answers in zip(self.predict(images), self.top_k(images), strict=True):
            for name, score in answers:
                values = [float(row[place]) for place in places.get(name, []) if place < len(row)]
                if not any(abs(value - score) <= SAME_PROBABILITY for value in values):
                    what = "in another place" if name in places else "not among those expected"
                    raise UserError(
                        f"{self.url} knows the class {name!r}, which is {what} ({', '.join(class_names[:5])}"
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
        parts = []
        for batch in _batches(images, batch_size):
            outputs = self._call(signature, alias, batch, ("probabilities",))
            parts.append(np.asarray(outputs["probabilities"], dtype=np.float32))
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)

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
        stop, filled = start + 1, 0 if isinstance(images, np.ndarray) else len(images[start])
        while stop < min(len(images), start + batch_size):
            filled += 0 if isinstance(images, np.ndarray) else len(images[stop])
            if filled > BATCH_BYTES:
                break
            stop += 1
        yield images[start:stop]
        start = stop


def _shape(signatures: Mapping[str, Any], signature: str, way: str, alias: str) -> list[int]:
    """Return the sizes of an input's or output's dimensions as the metadata tell them; none where they do not."""
    shape = signatures.get(signature, {}).get(way, {}).get(alias, {}).get("tensor_shape", {})
    return [int(dim["size"]) for dim in shape.get("dim", [])]


def _text(name: str | bytes) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name
