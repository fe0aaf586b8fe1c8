"""How PyTorch's libraries name the layers of our networks: one table a library, for reading and for writing.

A state dictionary has entries such as "layer1.0.conv1.weight": the module "layer1.0.conv1" and what it holds. Here are
the modules alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from keras_convnets.errors import unknown_name


@dataclass(frozen=True)
class Naming:
    """How one library names the layers of a network.

    Attributes:
        rules: (pattern of the whole name of our layer, the module's name by the numbers that the pattern found).
        vgg: what our fully connected layers of VGG are called, or None if the library has no VGG of this kind.
        linear: modules that the library stores as convolutions where our layers are fully connected.
        zeros_on_both_sides: whether shortcuts of option A add half of the zero channels before the others and half
            behind them, as some libraries do; ours add all of them behind.
    """

    rules: tuple[tuple[str, Callable[..., str]], ...] = ()
    vgg: Mapping[str, str] | None = None
    linear: tuple[str, ...] = ()
    zeros_on_both_sides: bool = False


def _torchvision(classifier: str) -> tuple[tuple[str, Callable[..., str]], ...]:
    """Return the rules of torchvision's resnet.py, with a classifier of another name in some of its descendants."""
    block = r"conv(\d)_block(\d+)"

    def inside(stage: int, number: int) -> str:
        return f"layer{stage - 1}.{number - 1}"

    return (
        (r"conv1_conv", lambda: "conv1"),
        (r"conv1_bn", lambda: "bn1"),
        (rf"{block}_0_conv", lambda stage, number: f"{inside(stage, number)}.downsample.0"),
        (rf"{block}_0_bn", lambda stage, number: f"{inside(stage, number)}.downsample.1"),
        (rf"{block}_(\d)_conv", lambda stage, number, part: f"{inside(stage, number)}.conv{part}"),
        (rf"{block}_(\d)_bn", lambda stage, number, part: f"{inside(stage, number)}.bn{part}"),
        (r"predictions", lambda: classifier),
    )


def _transformers() -> tuple[tuple[str, Callable[..., str]], ...]:
    """Return the rules of modeling_resnet.py of Hugging Face's transformers."""
    block = r"conv(\d)_block(\d+)"

    def inside(stage: int, number: int) -> str:
        return f"resnet.encoder.stages.{stage - 2}.layers.{number - 1}"

    return (
        (r"conv1_conv", lambda: "resnet.embedder.embedder.convolution"),
        (r"conv1_bn", lambda: "resnet.embedder.embedder.normalization"),
        (rf"{block}_0_conv", lambda stage, number: f"{inside(stage, number)}.shortcut.convolution"),
        (rf"{block}_0_bn", lambda stage, number: f"{inside(stage, number)}.shortcut.normalization"),
        (
            rf"{block}_(\d)_conv",
            lambda stage, number, part: f"{inside(stage, number)}.layer.{part - 1}.convolution",
        ),
        (
            rf"{block}_(\d)_bn",
            lambda stage, number, part: f"{inside(stage, number)}.layer.{part - 1}.normalization",
        ),
        (r"predictions", lambda: "classifier.1"),
    )


OURS, TORCHVISION = "keras_convnets", "torchvision"
NAMINGS: Mapping[str, Naming] = MappingProxyType(
    {
        TORCHVISION: Naming(
            rules=_torchvision("fc"),
            vgg={"fc1": "classifier.0", "fc2": "classifier.3", "predictions": "classifier.6"},
        ),
        "timm": Naming(
            vgg={"fc1": "pre_logits.fc1", "fc2": "pre_logits.fc2", "predictions": "head.fc"},
            linear=("pre_logits.fc1", "pre_logits.fc2"),
        ),
        "transformers": Naming(rules=_transformers()),
        # The repository that the CIFAR networks of others come from; its shortcuts pad channels on both sides.
        "pytorch_resnet_cifar10": Naming(rules=_torchvision("linear"), zeros_on_both_sides=True),
        OURS: Naming(),
    }
)


# What files can be written with; the other namings are read alone.
WRITTEN_NAMINGS = (TORCHVISION, OURS)


def check_naming(naming: str) -> None:
    """Check the name of a naming that files can be written with.

    Raises:
        UserError: if there is none of that name.
    """
    if naming not in WRITTEN_NAMINGS:
        raise unknown_name("naming", naming, WRITTEN_NAMINGS)


def module_names(layers: Sequence[str], naming: str = TORCHVISION) -> dict[str, str]:
    """Return what a library calls the layers of a network, by our names; layers that it does not have are left out.

    Args:
        layers: names of the layers that have weights, in the order of the network.
        naming: a key of `NAMINGS`.

    Raises:
        UserError: if there is no such naming.

    Example:
        >>> module_names(["conv2_block1_1_conv", "predictions"])
        {'conv2_block1_1_conv': 'layer1.0.conv1', 'predictions': 'fc'}
    """
    if naming not in NAMINGS:
        raise unknown_name("naming", naming, NAMINGS, "give one of these")
    if naming == OURS:
        return {layer: layer for layer in layers}
    known = NAMINGS[naming]
    convolutions = [layer for layer in layers if re.fullmatch(r"block\d_conv\d", layer)]
    if convolutions:
        return {**_in_sequence(convolutions), **(known.vgg or {})} if known.vgg else {}
    found = {}
    for layer in layers:
        for pattern, module in known.rules:
            if match := re.fullmatch(pattern, layer):
                found[layer] = module(*map(int, match.groups()))
                break
    return found


def _in_sequence(convolutions: Sequence[str]) -> dict[str, str]:
    """Return the names of VGG's convolutions: places in one sequence of convolution, ReLU and pooling layers."""
    names, place, block = {}, 0, convolutions[0].partition("_")[0]
    for layer in convolutions:
        if layer.partition("_")[0] != block:
            block, place = layer.partition("_")[0], place + 1
        names[layer] = f"features.{place}"
        place += 2
    return names
