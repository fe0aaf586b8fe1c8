"""The building blocks of residual and plain networks: He et al. 2015, sections 3.2, 3.3 and figure 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from keras import layers

from keras_convnets.errors import UserError
from keras_convnets.networks.application import he_normal
from keras_convnets.networks.layers import BatchNormalization, ShortcutA

Shortcut = Literal["A", "B", "C"]


@dataclass(frozen=True)
class Units:
    """The blocks of one network, their defaults bound once.

    Attributes:
        shortcut: "A": identity everywhere, zero channels where the dimensions grow; "B": a projection where they grow,
            identity elsewhere; "C": projections everywhere (section 4.1); None: a plain network, no shortcuts.
        stride_on_3x3: a bottleneck's stride on its 3x3 convolution instead of its first 1x1, which is not the paper's.
    """

    shortcut: Shortcut | None
    stride_on_3x3: bool = False

    def __post_init__(self) -> None:
        known = get_args(Shortcut)
        if self.shortcut is not None and self.shortcut not in known:
            raise UserError(f"shortcut is {self.shortcut!r}; it must be one of {', '.join(known)}.")

    def conv(self, x: Any, filters: int, kernel: int, stride: int, name: str) -> Any:
        """Add a convolution without bias and its batch normalisation; at stride 2 with symmetric padding."""
        if stride > 1 and kernel > 1:
            # TensorFlow's "same" pads only right and below at stride 2, which is another network.
            x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
        x = layers.Conv2D(
            filters,
            kernel,
            strides=stride,
            padding="same" if stride == 1 else "valid",
            use_bias=False,
            kernel_initializer=he_normal(),
            name=f"{name}_conv",
        )(x)
        return BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)

    def basic(self, x: Any, filters: int, stride: int, name: str) -> Any:
        """Add two 3x3 layers and the shortcut around them."""
        y = self.conv(x, filters, 3, stride, f"{name}_1")
        y = layers.Activation("relu", name=f"{name}_1_relu")(y)
        y = self.conv(y, filters, 3, 1, f"{name}_2")
        return self._joined(x, y, filters, stride, name)

    def bottleneck(self, x: Any, filters: int, stride: int, name: str) -> Any:
        """Add 1x1, 3x3 and 1x1 layers, the last with 4 * filters, and the shortcut around them."""
        first, second = (1, stride) if self.stride_on_3x3 else (stride, 1)
        y = self.conv(x, filters, 1, first, f"{name}_1")
        y = layers.Activation("relu", name=f"{name}_1_relu")(y)
        y = self.conv(y, filters, 3, second, f"{name}_2")
        y = layers.Activation("relu", name=f"{name}_2_relu")(y)
        y = self.conv(y, 4 * filters, 1, 1, f"{name}_3")
        return self._joined(x, y, 4 * filters, stride, name)

    def _joined(self, x: Any, y: Any, filters: int, stride: int, name: str) -> Any:
        if self.shortcut is not None:
            grows = stride > 1 or x.shape[-1] != filters
            if self.shortcut == "C" or (self.shortcut == "B" and grows):
                x = self.conv(x, filters, 1, stride, f"{name}_0")
            elif grows:
                x = ShortcutA(filters, stride, name=f"{name}_0_shortcut")(x)
            y = layers.Add(name=f"{name}_add")([x, y])
        return layers.Activation("relu", name=f"{name}_out")(y)
