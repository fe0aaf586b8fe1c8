"""Layers in NumPy and float64 for the tests that compare networks with their papers, and random weights for networks.

Written from the papers' definitions, not from the package: nothing here imports it. Maps are [batch, H, W, C].
"""

import math

import keras
import numpy as np


def as_numpy(x):
    return keras.ops.convert_to_numpy(x)


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def convolve(x, kernel, bias=0.0, stride=1, pad=None):
    """Cross-correlation. `pad`: pixels on every side, or ((top, bottom), (left, right)); by default k//2."""
    size = kernel.shape[0]
    pad = size // 2 if pad is None else pad
    rows, columns = ((pad, pad), (pad, pad)) if isinstance(pad, int) else pad
    x = np.pad(x, ((0, 0), rows, columns, (0, 0)))
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    total = np.zeros((len(x), height, width, kernel.shape[3])) + bias
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + stride * (height - 1) + 1, stride)
            columns = slice(column, column + stride * (width - 1) + 1, stride)
            total += x[:, rows, columns] @ kernel[row, column]
    return total


def two_towers(x, kernel, bias, **arguments):
    """AlexNet's figure 2: the first half of the filters sees the first half of the maps, the second the second."""
    maps, filters = x.shape[3] // 2, kernel.shape[3] // 2
    first = convolve(x[..., :maps], kernel[..., :filters], bias[:filters], **arguments)
    second = convolve(x[..., maps:], kernel[..., filters:], bias[filters:], **arguments)
    return np.concatenate([first, second], axis=3)


def pool(x, size, stride, reduce=np.max, round_up=False, pad=0):
    """Reduce windows, each clipped at the image's border: what lies outside counts for nothing.

    `pad` windows begin that many pixels outside; `round_up` keeps a last window that only begins inside.
    """
    rounded = math.ceil if round_up else math.floor
    starts = [range(-pad, -pad + stride * (rounded((n + 2 * pad - size) / stride) + 1), stride) for n in x.shape[1:3]]
    windows = [
        [reduce(x[:, max(row, 0) : row + size, max(column, 0) : column + size], axis=(1, 2)) for column in starts[1]]
        for row in starts[0]
    ]
    return np.moveaxis(np.array(windows), 2, 0)


def response_normalization(a, n=5, k=2.0, alpha=1e-4, beta=0.75):
    """Krizhevsky et al. 2012, section 3.3, map by map."""
    b, maps = np.empty_like(a), a.shape[-1]
    for i in range(maps):
        neighbours = range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1)
        b[..., i] = a[..., i] / (k + alpha * sum(a[..., j] ** 2 for j in neighbours)) ** beta
    return b


class Weights:
    """A network's weights by layer name in float64; it remembers which of them were asked for."""

    def __init__(self, model):
        self.groups = {
            layer.name: [as_numpy(weight).astype(np.float64) for weight in layer.weights]
            for layer in model.layers
            if layer.weights
        }
        self.asked = set()

    def __call__(self, name):
        self.asked.add(name)
        return self.groups[name]

    @property
    def left(self):
        return self.groups.keys() - self.asked


def randomise(model, seed=0, bias=0.3):
    """Give every weight a random value, biases and statistics included, so that each of them shows in the output.

    Kernels as He et al. initialise them, so that the maps neither vanish nor overflow; the last normalisation of a
    residual block is scaled down, or the sums of 50 blocks would drown what the earlier statistics do.
    """
    rng = np.random.default_rng(seed)
    names = {layer.name for layer in model.layers}
    blocks = sum(isinstance(layer, keras.layers.Add) for layer in model.layers)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Bottlenecks end with their third layer, basic blocks with their second.
            block = layer.name.removesuffix("_bn")[:-2]
            last = f"{block}_3_bn" if f"{block}_3_bn" in names else f"{block}_2_bn"
            scale = min(1.0, 4.0 / blocks) if blocks and layer.name == last else 1.0
            size = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.7, 1.3, size) * scale)
            layer.beta.assign(rng.normal(0, 0.3, size) * scale)
            layer.moving_mean.assign(rng.normal(0, 0.3, size))
            layer.moving_variance.assign(rng.uniform(0.5, 3.0, size))
        elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
            fan_in = math.prod(layer.kernel.shape[:-1])
            layer.kernel.assign(rng.normal(0, math.sqrt(2 / fan_in), layer.kernel.shape))
            if layer.use_bias:
                layer.bias.assign(rng.normal(0, bias, layer.bias.shape))


def relative_difference(result, reference):
    """The largest difference as a part of the largest value; it must not be a comparison of dead maps."""
    assert result.shape == reference.shape
    assert np.isfinite(reference).all() and (np.abs(reference) > 0).mean() > 0.05
    return np.abs(result - reference).max() / np.abs(reference).max()
