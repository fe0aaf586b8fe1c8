"""Grouped convolution, response and batch normalisation as single TensorFlow ops.

The first two train on every device and convert to single ONNX operators, the third trains faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf


def grouped_convolution(x: tf.Tensor, kernel: tf.Tensor, strides: Sequence[int], padding: str) -> tf.Tensor:
    """Convolve with as many groups as the kernel's depth says: [b, H, W, C] with [k, k, C / groups, filters].

    Keras wraps grouped convolutions in a separate compiled function, which has no ONNX conversion. On a processor
    for which TensorFlow does without oneDNN it computes their outputs but not their gradients, so these are computed
    group by group.
    """
    settings = {"strides": [1, *strides, 1], "padding": padding.upper()}

    @tf.custom_gradient
    def convolved(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        y = tf.nn.conv2d(x, kernel, **settings)
        # Without oneDNN a graph's convolution, bias and ReLU would become one operation that knows no groups. This
        # operation, which costs nothing, keeps them apart.
        y = tf.ensure_shape(y, y.shape)
        return y, lambda of_y: _gradients_by_group(x, kernel, of_y, settings)

    return convolved(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))


def _gradients_by_group(x: tf.Tensor, kernel: tf.Tensor, of_y: tf.Tensor, settings: Mapping) -> tuple:
    groups = x.shape[-1] // kernel.shape[2]
    of_inputs, of_kernels = [], []
    for maps, filters, given in zip(*(tf.split(tensor, groups, -1) for tensor in (x, kernel, of_y)), strict=True):
        of_inputs.append(
            tf.raw_ops.Conv2DBackpropInput(input_sizes=tf.shape(maps), filter=filters, out_backprop=given, **settings)
        )
        of_kernels.append(
            tf.raw_ops.Conv2DBackpropFilter(input=maps, filter_sizes=tf.shape(filters), out_backprop=given, **settings)
        )
    return tf.concat(of_inputs, -1), tf.concat(of_kernels, -1)


def response_normalization(x: tf.Tensor, n: int, k: float, alpha: float, beta: float) -> tf.Tensor:
    """Divide by (k + alpha * sum of squares over n neighbouring maps) ** beta, in float32."""
    y = tf.nn.local_response_normalization(tf.cast(x, tf.float32), depth_radius=n // 2, bias=k, alpha=alpha, beta=beta)
    return tf.cast(y, x.dtype)


def fused_batch_normalization(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalise a batch of maps [b, H, W, C] by its own statistics, which are computed in float32.

    Returns:
        The maps in x's dtype, and the mean and the variance [C] of each channel over its n numbers, float32; the
        variance is the mean of the squared differences from the mean.
    """
    gamma, beta = tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32)
    none = tf.constant([], tf.float32)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=none, variance=none, epsilon=epsilon, is_training=True
    )
    numbers = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
    # The operation divides by n - 1, except where n is 1.
    return y, mean, variance * (tf.maximum(numbers - 1, 1) / numbers)
