"""One step of training: the loss, L2 in the gradient as the papers' solvers had it, and the update on all devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_convnets.training.recipes import Recipe
from keras_convnets.training.weight_averages import Averages


def local_strategy() -> tf.distribute.Strategy:
    """Return MirroredStrategy over all local GPUs, or all logical CPU devices where there is no GPU.

    The reduction is chosen here: TensorFlow's own choice names its collectives by a counter that every strategy starts
    at zero, so that a second training in the same process fails on several devices.
    """
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    reduction = tf.distribute.NcclAllReduce() if gpus else tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy([device.name for device in devices], cross_device_ops=reduction)


def make_optimizer(recipe: Recipe) -> keras.optimizers.Optimizer:
    """Return the SGD with momentum of a recipe, with loss scaling where it computes in float16."""
    sgd = keras.optimizers.SGD(float(recipe.base_learning_rate()), momentum=recipe.momentum, nesterov=recipe.nesterov)
    # Gradients of float16 fall below what it can hold; bfloat16 has float32's range.
    return keras.optimizers.LossScaleOptimizer(sgd) if recipe.precision == "mixed_float16" else sgd


def make_step(
    network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe,
    strategy: tf.distribute.Strategy,
    *,
    loss_weights: Mapping[str, float] | None = None,
    multipliers: Mapping[str, float] | None = None,
    only: str | None = None,
    averages: Averages | None = None,
) -> Callable:
    """Return the compiled training step: (images, labels) of all replicas -> (loss, number right), both summed.

    The loss is the mean cross-entropy over the global batch. Weight decay is L2 in the gradient, as the papers'
    solvers had it; Keras' own argument is decoupled weight decay, a weaker regulariser at the same value.

    Args:
        network: gives logits [b, classes], or a dictionary of them by the names of the layers.
        optimizer: a Keras optimizer, which sums the gradients over the replicas.
        recipe: batch size, weight decay and its scope, label smoothing, clipping.
        strategy: what the variables were created under.
        loss_weights: of each classifier, by the name of the layer that gives its logits.
        multipliers: of the learning rate, by a weight's path; 1 where none is given.
        only: the name of a layer: its weights alone are trained, and nothing before it is differentiated.
        averages: running averages of the network's weights, which each step updates; None: none.
    """
    variables = network.trainable_variables if only is None else network.get_layer(only).trainable_variables
    decays = [recipe.weight_decay_scope == "all" or variable.name == "kernel" for variable in variables]
    factors = [(multipliers or {}).get(variable.path, 1.0) for variable in variables]
    weights = loss_weights or {"predictions": 1.0}
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    # Each replica adds its part of the decay, because the gradients are summed.
    part = 1.0 / strategy.num_replicas_in_sync

    def finished(gradients: list[tf.Tensor], scale: Any) -> list[tf.Tensor]:
        """Return scaled gradients with the decay, clipped, and multiplied: momentum is linear, as the rate is."""
        decayed = [
            gradient + part * scale * recipe.weight_decay * variable if with_decay else gradient
            for gradient, variable, with_decay in zip(gradients, variables, decays, strict=True)
        ]
        clipped = _clipped(decayed, recipe.clip_norm, scale)
        parts = [part if factor == 1.0 else part * factor for part, factor in zip(clipped, factors, strict=True)]
        return _skipped_together(parts) if scaled else parts

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            named = logits if isinstance(logits, dict) else {"predictions": logits}
            loss = sum(weights[name] * tf.reduce_sum(_losses(value, labels, recipe)) for name, value in named.items())
            loss = loss / recipe.batch_size
            scale = tf.cast(optimizer.dynamic_scale, tf.float32) if scaled else 1.0
            objective = loss * scale
        optimizer.apply(finished(tape.gradient(objective, variables), scale), variables)
        if averages is not None:
            averages.update()
        answers = tf.argmax(named["predictions"], axis=-1)
        return loss, tf.reduce_sum(tf.cast(answers == labels, tf.float32))

    return _on_all_replicas(replica_step, strategy)


def _on_all_replicas(replica_step: Callable, strategy: tf.distribute.Strategy) -> Callable:
    @tf.function(jit_compile=False)
    def step(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        loss, right = strategy.run(replica_step, (images, labels))
        return strategy.reduce("SUM", loss, axis=None), strategy.reduce("SUM", right, axis=None)

    return step


def _skipped_together(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return one replica's gradients, not finite where those of any other are not.

    Keras' loss scaling skips a step whose gradients overflow and asks the first replica alone whether they do.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return gradients
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    nothing = context.all_reduce("SUM", tf.where(finite, 0.0, float("nan")))
    return [gradients[0] + nothing, *gradients[1:]]


def _clipped(gradients: list[tf.Tensor], norm: float | None, scale: Any) -> list[tf.Tensor]:
    """Return one replica's gradients, shortened where those of all replicas together are longer than the norm."""
    if norm is None:
        return gradients
    whole = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
    factor = tf.minimum(1.0, norm * scale / tf.linalg.global_norm(whole))
    return [gradient * factor for gradient in gradients]


def _losses(logits: tf.Tensor, labels: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Return the cross-entropy of each image, its target smoothed as the recipe says (Szegedy et al. 2015b, sec. 7)."""
    logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not recipe.label_smoothing:
        return losses
    uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
    return (1 - recipe.label_smoothing) * losses + recipe.label_smoothing * uniform
