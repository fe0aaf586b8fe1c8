"""Custom layers, all registered as serialisable under the package name "keras_convnets"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import keras
import numpy as np
from keras import ops

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import Preprocessing
from keras_convnets.numbers import finite_number, whole_number


@keras.saving.register_keras_serializable("keras_convnets")
class ImageNormalization(keras.layers.Layer):
    """A network's first layer: RGB in 0-255, uint8 or float, to what the network was trained on.

    It computes in float32 under every dtype policy, because 0-255 minus a mean loses digits in half precision.

    Args:
        preprocessing: a `Preprocessing`, or the dictionary it turns into.

    Input shape: [batch, H, W, 3]. Output shape: the same, float32.
    """

    def __init__(self, preprocessing: Preprocessing | dict[str, Any], **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(**kwargs)
        self.preprocessing = Preprocessing.of(preprocessing)

    def call(self, images: Any) -> Any:
        """Return the normalised images, float32."""
        x = ops.cast(images, "float32")
        if self.preprocessing.order == "BGR":
            x = ops.flip(x, axis=-1)
        x = self._minus_mean(x)
        if any(value != 1 for value in self.preprocessing.std):
            x = x / ops.convert_to_tensor(np.asarray(self.preprocessing.std, np.float32))
        return x

    def _minus_mean(self, x: Any) -> Any:
        mean_image = self.preprocessing.mean_image
        channels = ops.convert_to_tensor(np.asarray(self.preprocessing.mean, np.float32))
        if mean_image is None or None not in x.shape[1:3]:
            return x - ops.convert_to_tensor(self.preprocessing.mean_for(x.shape[1:3]), "float32")
        # A size that is known only when images come, as in a fully convolutional network.
        height, width = ops.shape(x)[1:3]
        has_size = ops.logical_and(height == mean_image.shape[0], width == mean_image.shape[1])
        return ops.cond(has_size, lambda: x - ops.convert_to_tensor(mean_image), lambda: x - channels)

    def compute_output_shape(self, input_shape: Sequence[Any]) -> Sequence[Any]:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the layer's configuration, the preprocessing as a plain dictionary."""
        config = super().get_config()
        config.pop("dtype")
        return {**config, "preprocessing": self.preprocessing.to_dict()}


@keras.saving.register_keras_serializable("keras_convnets")
class ShortcutA(keras.layers.Layer):
    """Option A, the shortcut without parameters: every `stride`-th pixel, and zero channels after the existing ones.

    He et al. 2015, section 3.3: "The shortcut still performs identity mapping, with extra zero entries padded for
    increasing dimensions", "performed with a stride of 2".

    Args:
        filters: number of channels that come out; at least as many as come in.
        stride: of the subsampling, in both directions.

    Input shape: [batch, H, W, C]. Output shape: [batch, ceil(H / stride), ceil(W / stride), filters].
    """

    def __init__(self, filters: int, stride: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.stride = stride

    def build(self, input_shape: Sequence[Any]) -> None:
        """Refuse to lose channels."""
        if input_shape[-1] > self.filters:
            raise UserError(
                f"ShortcutA gets {input_shape[-1]} channels and filters={self.filters}; it drops none: "
                "give at least as many filters as channels."
            )

    def call(self, x: Any) -> Any:
        """Return the subsampled and padded feature map."""
        # A mean of one pixel is that pixel; a strided slice and its gradient run on one core.
        x = ops.average_pool(x, 1, self.stride, "valid", "channels_last") if self.stride > 1 else x
        return ops.pad(x, [[0, 0], [0, 0], [0, 0], [0, self.filters - x.shape[-1]]])

    def compute_output_shape(self, input_shape: Sequence[Any]) -> tuple[int | None, ...]:
        """Return [batch, ceil(H / stride), ceil(W / stride), filters]."""
        height, width = (None if side is None else -(-side // self.stride) for side in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the layer's configuration."""
        return {**super().get_config(), "filters": self.filters, "stride": self.stride}


@keras.saving.register_keras_serializable("keras_convnets")
class GroupedConv2D(keras.layers.Conv2D):
    """A `Conv2D` whose groups train on CPU and GPU and convert to one ONNX `Conv`.

    With TensorFlow it is one plain convolution op; on other backends it is Keras' own layer. The filters of a group see
    the input maps of that group only: AlexNet's two towers (Krizhevsky et al. 2012, section 3.5) are `groups=2`.

    Args: those of `keras.layers.Conv2D`; channels last, no dilation.

    Example:
        >>> GroupedConv2D(256, 5, padding="same", groups=2)
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution without bias and activation."""
        if keras.backend.backend() != "tensorflow" or self.dilation_rate != (1, 1):
            return super().convolution_op(inputs, kernel)
        from keras_convnets.networks import layer_ops

        return layer_ops.grouped_convolution(inputs, kernel, self.strides, self.padding)


class LRNConstants(TypedDict, total=False):
    """Constants of `LRN`; those left out are its defaults."""

    n: int
    k: float
    alpha: float
    beta: float


@keras.saving.register_keras_serializable("keras_convnets")
class LRN(keras.layers.Layer):
    """Local response normalisation across neighbouring maps (Krizhevsky et al. 2012, section 3.3).

    b[i] = a[i] / (k + alpha * sum of a[j]^2 over j from max(0, i - n/2) to min(N - 1, i + n/2)) ^ beta

    The sum is not divided by n; Caffe's is, so its alpha is n times the one here.

    Args:
        n: number of neighbouring maps, odd.
        k: added to the sum.
        alpha: of the sum.
        beta: the exponent.

    Input shape: [batch, H, W, C]. Output shape: the same.
    """

    def __init__(self, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        maps = whole_number(n)
        if maps is None or maps < 1 or maps % 2 == 0:
            raise UserError(f"LRN n is {n!r}; it must be an odd number of maps, such as 5.")
        self.n, self.k = maps, _finite("k", k)
        self.alpha, self.beta = _finite("alpha", alpha), _finite("beta", beta)

    def call(self, x: Any) -> Any:
        """Return the normalised maps."""
        if keras.backend.backend() == "tensorflow":
            from keras_convnets.networks import layer_ops

            return layer_ops.response_normalization(x, self.n, self.k, self.alpha, self.beta)
        maps, radius = x.shape[-1], self.n // 2
        squares = ops.pad(ops.square(ops.cast(x, "float32")), [[0, 0], [0, 0], [0, 0], [radius, radius]])
        total = sum(squares[..., shift : shift + maps] for shift in range(self.n))
        return ops.cast(ops.cast(x, "float32") / (self.k + self.alpha * total) ** self.beta, x.dtype)

    def compute_output_shape(self, input_shape: Sequence[Any]) -> Sequence[Any]:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the layer's configuration."""
        return {**super().get_config(), "n": self.n, "k": self.k, "alpha": self.alpha, "beta": self.beta}


def _finite(constant: str, value: Any) -> float:
    number = finite_number(value)
    if number is None:
        raise UserError(f"LRN {constant} is {value!r}; it must be a finite number.")
    return number


@keras.saving.register_keras_serializable("keras_convnets")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, which trains with TensorFlow's fused operation; inference and other backends are Keras' own.

    Keras composes the normalisation of a training batch out of a dozen operations, which took a third of a step of
    ResNet-20 on a CPU. The numbers are the same, that of the moving variance included: Keras averages the batch's
    variance as it is, the fused operation gives it multiplied by n / (n - 1).

    Args: those of `keras.layers.BatchNormalization`.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the normalised maps; in training the moving statistics are updated."""
        if not (training and self.trainable and mask is None and self._can_fuse(inputs)):
            return super().call(inputs, training=training, mask=mask)
        from keras_convnets.networks import layer_ops

        y, mean, variance = layer_ops.fused_batch_normalization(inputs, self.gamma, self.beta, self.epsilon)
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))
        return y

    def _can_fuse(self, inputs: Any) -> bool:
        maps_last = len(inputs.shape) == 4 and self.axis in (-1, 3)
        plain = self.scale and self.center and not self.synchronized and not getattr(self, "renorm", False)
        # Of float64 Keras computes in float64, which the fused operation can't.
        known = keras.backend.standardize_dtype(inputs.dtype) in ("float32", "float16", "bfloat16")
        return keras.backend.backend() == "tensorflow" and maps_last and plain and known
