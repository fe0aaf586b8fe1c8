"""What the REST interface can be asked for: a function and a row of the table for each verb."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from keras_convnets.export.serving import classify_regress
from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.rest import json_answers, json_examples, json_tensors
from keras_convnets.export.serving.signatures import DEFAULT_SIGNATURE
from keras_convnets.export.serving.status import Code, invalid_argument

# Bytes for writing a number as JSON: a float, its text and the parsed number.
_ELEMENT_BYTES = 160


@dataclasses.dataclass(frozen=True)
class Asked:
    """The model that a request asks for.

    Attributes:
        model: its name, percent-decoded; "" when the URL names none.
        version: the version number, or None.
        label: the version label, percent-decoded, or None.
    """

    model: str
    version: int | None = None
    label: str | None = None


@dataclasses.dataclass(frozen=True)
class Service:
    """The dependencies of the verbs: the models, the admission of responses, and the metrics."""

    servables: Servables
    admission: Admission
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class Verb:
    """Something that the REST interface can be asked for.

    Attributes:
        answer: gets what was asked for and, of a POST request, the body's JSON text; returns the answer's.
        runs_model: whether a run of the model answers it: a POST request `<model>:<verb>` that passes admission. The
            others are GET requests `<model>/<verb>`.
        is_slow: whether it is answered in a thread, so that it holds up no other.
    """

    answer: Callable[[Service, Asked, bytes], bytes]
    runs_model: bool = True
    is_slow: bool = True


def predict(service: Service, asked: Asked, body: bytes) -> bytes:
    """Run a signature on the tensors in a body."""
    document, signature_name = json_tensors.parse_request(body)
    with service.servables.use(asked.model, asked.version, asked.label) as servable:
        name = signature_name or DEFAULT_SIGNATURE
        signature = servable.engine.signatures.get(name)
        if signature is None:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        limits = service.admission.limits
        inputs, format = json_tensors.decode_inputs(document, signature.inputs, signature_name, limits)
        del document, body
        signature.check_input_names(inputs)
        with service.metrics.runtime(asked.model, "Predict"):
            outputs = servable.engine.run(name, inputs)
    with service.admission.answering(costs.of_answer(outputs, _ELEMENT_BYTES)):
        return json_answers.encode_outputs(outputs, format)


def classify(service: Service, asked: Asked, body: bytes) -> bytes:
    """Return labels and scores for the tf.Examples in a body."""
    signature_name, serialized = json_examples.parse_request(body, service.admission.limits)
    with service.servables.use(asked.model, asked.version, asked.label) as servable:
        name = classify_regress.resolve(servable.engine, signature_name)
        classify_regress.check_classifier(servable.engine, name)
        with service.metrics.runtime(asked.model, "Classify"):
            found = classify_regress.classify(servable.engine, name, serialized)
        arrays = {name: array for name, array in zip(("classes", "scores"), found, strict=True) if array is not None}
        with service.admission.answering(costs.of_answer(arrays, _ELEMENT_BYTES)):
            return json_examples.encode_classification(found)


def regress(service: Service, asked: Asked, body: bytes) -> bytes:
    """Return a number for each of the tf.Examples in a body."""
    signature_name, serialized = json_examples.parse_request(body, service.admission.limits)
    with service.servables.use(asked.model, asked.version, asked.label) as servable:
        name = classify_regress.resolve(servable.engine, signature_name)
        classify_regress.check_regressor(servable.engine, name)
        with service.metrics.runtime(asked.model, "Regress"):
            values = classify_regress.regress(servable.engine, name, serialized)
        return json_examples.encode_regression(values)


def metadata(service: Service, asked: Asked, body: bytes) -> bytes:
    """Return the SavedModel's signatures, verbatim."""
    from google.protobuf import json_format

    _check_named(asked)
    with service.servables.use(asked.model, asked.version, asked.label) as servable:
        signatures = {
            name: json_format.MessageToDict(
                proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            for name, proto in servable.engine.signature_defs.items()
        }
    spec = {"name": asked.model, "signature_name": "", "version": str(servable.version)}
    return json_bytes({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})


def status(service: Service, asked: Asked, body: bytes) -> bytes:
    """Return the states of a model's versions, newest first; a label is ignored."""
    _check_named(asked)
    entries = []
    for entry in service.servables.status(asked.model, asked.version):
        code, message = (Code.OK, "") if entry.error is None else (entry.error.code, entry.error.message)
        result = {"error_code": code.name, "error_message": message}
        entries.append({"version": str(entry.version), "state": entry.state.name, "status": result})
    return json_bytes({"model_version_status": entries})


# By their names in URLs; a GET request without one returns the status.
STATUS = "status"
VERBS = {
    "predict": Verb(predict),
    "classify": Verb(classify),
    "regress": Verb(regress),
    "metadata": Verb(metadata, runs_model=False),
    STATUS: Verb(status, runs_model=False, is_slow=False),
}


def json_bytes(value: Any) -> bytes:
    """Write a value as JSON. Names and messages may hold bytes that are not UTF-8; they leave as they came."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _check_named(asked: Asked) -> None:
    if not asked.model:
        raise invalid_argument("Missing model name in request.")
