"""PredictionService's methods apart from gRPC, from message to message: warm-up calls the same functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tensorflow_serving.apis import classification_pb2, inference_pb2, model_pb2, predict_pb2, regression_pb2

from keras_convnets.export.serving import classify_regress
from keras_convnets.export.serving.admission import costs
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.admission.limits import NO_LIMITS, Limits
from keras_convnets.export.serving.metrics import Metrics
from keras_convnets.export.serving.models.servables import Servable
from keras_convnets.export.serving.rpc import tensor_protos
from keras_convnets.export.serving.signatures import DEFAULT_SIGNATURE
from keras_convnets.export.serving.status import Code, ServingError, invalid_argument

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
# Bytes for writing an integer or a string into a protocol buffer: a Python object, and the value.
_ELEMENT_BYTES = 64


def predict(
    servable: Servable,
    request: predict_pb2.PredictRequest,
    metrics: Metrics | None = None,
    admission: Admission | None = None,
) -> predict_pb2.PredictResponse:
    """Run a signature on a request's tensors.

    Args:
        servable: the version that answers, whichever the request names.
        request: the signature's name, the inputs and the outputs wanted.
        metrics: where the run's time is recorded.
        admission: its limits hold; None for a request that no client sent.

    Returns:
        The outputs asked for, or all, in typed fields.

    Raises:
        ServingError: FAILED_PRECONDITION for an unknown signature, INVALID_ARGUMENT for inputs or outputs that do not
            fit it, and what the engine raises.
    """
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.engine.signatures.get(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    signature.check_input_names(request.inputs)
    admission = admission or Admission(NO_LIMITS)
    inputs = {
        alias: tensor_protos.to_array(request.inputs[alias], info, position, admission.limits)
        for position, (alias, info) in enumerate(signature.inputs.items())
        if alias in request.inputs
    }
    signature.check_outputs(request.output_filter)
    with (metrics or Metrics()).runtime(servable.model, "Predict"):
        outputs = servable.engine.run(name, inputs)
    response = predict_pb2.PredictResponse(model_spec=_model_spec(servable, name))
    outputs = {alias: outputs[alias] for alias in request.output_filter or outputs}
    raw = {alias: array for alias, array in outputs.items() if tensor_protos.is_raw(array)}
    others = {alias: array for alias, array in outputs.items() if alias not in raw}
    with admission.answering(costs.of_answer(raw, 0) + costs.of_answer(others, _ELEMENT_BYTES)):
        for alias, array in outputs.items():
            response.outputs[alias].CopyFrom(tensor_protos.from_array(array))
    return response


def classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    metrics: Metrics | None = None,
    limits: Limits = NO_LIMITS,
) -> classification_pb2.ClassificationResponse:
    """Classify a request's tf.Examples.

    Args:
        servable: the version that answers, whichever the request names.
        request: the signature's name and the examples.
        metrics: where the run's time is recorded.
        limits: how many examples there may be.

    Returns:
        Labels and scores for each example.

    Raises:
        ServingError: INVALID_ARGUMENT for a signature that classifies no examples, or no examples, and what the
            engine raises.
    """
    name = classify_regress.resolve(servable.engine, request.model_spec.signature_name)
    classify_regress.check_classifier(servable.engine, name)
    serialized = classify_regress.serialized_examples(request.input, limits)
    with (metrics or Metrics()).runtime(servable.model, "Classify"):
        found = classify_regress.classify(servable.engine, name, serialized)
    return classification_pb2.ClassificationResponse(
        model_spec=_model_spec(servable, name), result=_classification_result(found)
    )


def regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    metrics: Metrics | None = None,
    limits: Limits = NO_LIMITS,
) -> regression_pb2.RegressionResponse:
    """Compute a number for each of a request's tf.Examples.

    Args:
        servable: the version that answers, whichever the request names.
        request: the signature's name and the examples.
        metrics: where the run's time is recorded.
        limits: how many examples there may be.

    Returns:
        One value for each example.

    Raises:
        ServingError: INVALID_ARGUMENT for a signature that is no regressor, or no examples, and what the engine raises.
    """
    name = classify_regress.resolve(servable.engine, request.model_spec.signature_name)
    classify_regress.check_regressor(servable.engine, name)
    serialized = classify_regress.serialized_examples(request.input, limits)
    with (metrics or Metrics()).runtime(servable.model, "Regress"):
        values = classify_regress.regress(servable.engine, name, serialized)
    return regression_pb2.RegressionResponse(model_spec=_model_spec(servable, name), result=_regression_result(values))


def multi_inference(
    use: Callable[[str, int | None, str | None], contextlib.AbstractContextManager[Servable]],
    request: inference_pb2.MultiInferenceRequest,
    metrics: Metrics | None = None,
    limits: Limits = NO_LIMITS,
) -> inference_pb2.MultiInferenceResponse:
    """Run several classifiers and regressors of one model on the same tf.Examples.

    Args:
        use: finds the version that answers, as `Servables.use` does; it gets the first task's name, version and label.
        request: the tasks and the examples.
        metrics: where the run's time is recorded.
        limits: how many examples there may be.

    Returns:
        One result for each task, in their order.

    Raises:
        ServingError: INVALID_ARGUMENT or UNIMPLEMENTED for tasks that cannot be run together, and what `use` and the
            engine raise.
    """
    with use(*version_asked(request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec())) as servable:
        names = _check_tasks(servable, request.tasks)
        serialized = classify_regress.serialized_examples(request.input, limits)
        response = inference_pb2.MultiInferenceResponse()
        with (metrics or Metrics()).runtime(servable.model, "MultiInference"):
            for task, name in zip(request.tasks, names, strict=True):
                result = response.results.add(model_spec=_model_spec(servable, name))
                if task.method_name == CLASSIFY_METHOD:
                    found = classify_regress.classify(servable.engine, name, serialized)
                    result.classification_result.CopyFrom(_classification_result(found))
                else:
                    values = classify_regress.regress(servable.engine, name, serialized)
                    result.regression_result.CopyFrom(_regression_result(values))
    return response


def version_asked(spec: model_pb2.ModelSpec) -> tuple[str, int | None, str | None]:
    """Return the name, the version and the label that a ModelSpec asks for."""
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None


def _check_tasks(servable: Servable, tasks: Any) -> list[str]:
    """Check the tasks of a MultiInferenceRequest; returns the signature of each."""
    names: list[str] = []
    for task in tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in names:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        if name not in servable.engine.signature_defs:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name == CLASSIFY_METHOD:
            classify_regress.check_classifier(servable.engine, name)
        elif task.method_name == REGRESS_METHOD:
            classify_regress.check_regressor(servable.engine, name)
        else:
            raise ServingError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        names.append(name)
    return names


def _model_spec(servable: Servable, signature_name: str) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=servable.model, signature_name=signature_name)
    spec.version.value = servable.version
    return spec


def _classification_result(found: classify_regress.Classification) -> classification_pb2.ClassificationResult:
    result = classification_pb2.ClassificationResult()
    for row in classify_regress.class_rows(found):
        classes = result.classifications.add().classes
        for label, score in row:
            classes.add(label=label.decode("utf-8", "replace"), score=score)
    return result


def _regression_result(values: Any) -> regression_pb2.RegressionResult:
    result = regression_pb2.RegressionResult()
    for value in values.tolist():
        result.regressions.add(value=value)
    return result
