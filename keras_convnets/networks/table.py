"""All networks in one table: plain data that imports no Keras.

To add a network, write its builder in its family's file and its row here; a new family also needs its `Family` and an
import for type checkers here. No other file lists networks.

The parameter counts are of the trainable weights (convolutions, gamma and beta, fully connected layers), the
multiply-adds are of convolutions and fully connected layers without biases, both at the default input size and
class count; tests derive them again from the papers' tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from keras_convnets.networks.architecture import Architecture, Convention, Family, PublishedError

if TYPE_CHECKING:
    # What editors and type checkers know as keras_convnets.NAME; at run time the names resolve on first use.
    from keras_convnets.networks.alexnet import *  # noqa: F403
    from keras_convnets.networks.googlenet import *  # noqa: F403
    from keras_convnets.networks.resnet import *  # noqa: F403
    from keras_convnets.networks.resnet_cifar import *  # noqa: F403
    from keras_convnets.networks.vgg import *  # noqa: F403

_RESNET_PAPER = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385"
_BLOCK = (r"(conv\d)_block\d+_out", "{}_x")
_CONV1 = (r"(conv1)_relu", "{}")
# PyTorch's libraries train all networks on RGB scaled to 0-1, less the means of ImageNet, by its standard deviations.
_PYTORCH = {kind: Convention("UNIT_SCALED") for kind in (".safetensors", ".pth")}
_ALEXNET = Family(
    module="alexnet",
    paper="Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012",
    section="3, figure 2",
    input_shape=(224, 224, 3),
    classes=1000,
    errors_on="ImageNet 2012 val",
    recipe="alexnet",
    stages=((r"(conv\d)", "{}"),),
    # Caffe's AlexNet takes crops of 227; the paper's 224 needs padding.
    conventions={".onnx": Convention("BGR_MEANS", input_shape=(227, 227, 3))},
)
_VGG = Family(
    module="vgg",
    paper="Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014, "
    "arXiv:1409.1556",
    section="2, table 1",
    input_shape=(224, 224, 3),
    classes=1000,
    errors_on="ImageNet 2012 val",
    recipe="vgg",
    stages=((r"(block\d)_conv\d", "{}"),),
    conventions={**_PYTORCH, ".onnx": Convention("UNIT_SCALED"), ".h5": Convention("CAFFE_MEANS")},
)
_GOOGLENET = Family(
    module="googlenet",
    paper="Szegedy et al.: Going Deeper with Convolutions, 2014, arXiv:1409.4842",
    section="5, table 1",
    input_shape=(224, 224, 3),
    classes=1000,
    errors_on="ImageNet 2012 val",
    recipe="googlenet",
    stages=((r"(conv\d)", "{}"), (r"(inception_\d[a-e])", "{}")),
    conventions={".onnx": Convention("BGR_MEANS")},
)
_RESNET = Family(
    module="resnet",
    paper=_RESNET_PAPER,
    section="4.1, table 1",
    input_shape=(224, 224, 3),
    classes=1000,
    errors_on="ImageNet 2012 val",
    recipe="resnet_imagenet",
    stages=(_CONV1, _BLOCK),
    conventions={**_PYTORCH, ".onnx": Convention("UNIT_SCALED"), ".h5": Convention("CAFFE_MEANS")},
)
_RESNET_CIFAR = Family(
    module="resnet_cifar",
    paper=_RESNET_PAPER,
    section="4.2",
    input_shape=(32, 32, 3),
    classes=10,
    errors_on="CIFAR-10 test",
    recipe="resnet_cifar",
    # The second are those of the deepest, nested networks.
    stages=(_CONV1, _BLOCK, (r"(conv\d)_blocks\d+_\d+", "{}_x")),
    any_depth=("CIFARResNet", "CIFARPlainNet"),
    conventions=_PYTORCH,
)

_TEN_CROP, _ONE_VIEW, _WHOLE = "ten crops", "one crop", "single view of the 32x32 image"
_SCALES = "fully convolutional at scales 224, 256, 384, 480, 640"
_IN_RESNET_PAPER = "He et al. 2015, table 3"
# (family, network, depth, parameters, multiply-adds, (protocol, top-1 error, top-5 error, source, note) ...)
_ROWS = (
    (_ALEXNET, "AlexNet", 8, 60_965_224, 724_406_816, (_TEN_CROP, 40.7, 18.2, "Table 2", "1 CNN")),
    (_ALEXNET, "AlexNetOneTower", 8, 62_378_344, 1_135_256_096),
    (
        *(_ALEXNET, "AlexNetSixConvs", 9, 61_555_304, 745_640_480),
        (_TEN_CROP, 39.0, 16.6, "Table 2", "1 CNN*: pre-trained on ImageNet 2011"),
    ),
    (_VGG, "VGG11", 11, 132_863_336, 7_609_090_048),
    (_VGG, "VGG13", 13, 133_047_848, 11_308_466_176),
    (_VGG, "VGG16", 16, 138_357_544, 15_470_264_320, (_TEN_CROP, 28.07, 9.33, _IN_RESNET_PAPER, "")),
    (_VGG, "VGG19", 19, 143_667_240, 19_632_062_464),
    (
        *(_GOOGLENET, "GoogLeNet", 22, 6_998_552, 1_582_671_872),
        (_ONE_VIEW, None, 10.07, "Table 3", ""),
        (_TEN_CROP, None, 9.15, "Table 3", ""),
        ("144 crops", None, 7.89, "Table 3", ""),
    ),
    (_RESNET, "ResNet18", 18, 11_689_512, 1_814_073_344, (_TEN_CROP, 27.88, None, "Table 2", "shortcut A")),
    (
        *(_RESNET, "ResNet34", 34, 21_797_672, 3_663_761_408),
        (_TEN_CROP, 24.52, 7.46, "Table 3", "shortcut B"),
        (_TEN_CROP, 25.03, 7.76, "Table 3", "shortcut A"),
        (_TEN_CROP, 24.19, 7.40, "Table 3", "shortcut C"),
        (_SCALES, 21.84, 5.71, "Table 4", "shortcut B"),
        (_SCALES, 21.53, 5.60, "Table 4", "shortcut C"),
    ),
    (
        *(_RESNET, "ResNet50", 50, 25_557_032, 3_857_973_248),
        (_TEN_CROP, 22.85, 6.71, "Table 3", ""),
        (_SCALES, 20.74, 5.25, "Table 4", ""),
    ),
    (
        *(_RESNET, "ResNet101", 101, 44_549_160, 7_570_194_432),
        (_TEN_CROP, 21.75, 6.05, "Table 3", ""),
        (_SCALES, 19.87, 4.60, "Table 4", ""),
    ),
    (
        *(_RESNET, "ResNet152", 152, 60_192_808, 11_282_415_616),
        (_TEN_CROP, 21.43, 5.71, "Table 3", ""),
        (_SCALES, 19.38, 4.49, "Table 4", ""),
    ),
    (_RESNET, "PlainNet18", 18, 11_515_688, 1_794_805_760, (_TEN_CROP, 27.94, None, "Table 2", "")),
    (_RESNET, "PlainNet34", 34, 21_623_848, 3_644_493_824, (_TEN_CROP, 28.54, 10.02, "Table 3", "")),
    # Not the paper's: the stride on the 3x3 convolution.
    (_RESNET, "ResNet50v1_5", 50, 25_557_032, 4_089_184_256),
    (_RESNET, "ResNet101v1_5", 101, 44_549_160, 7_801_405_440),
    (_RESNET, "ResNet152v1_5", 152, 60_192_808, 11_513_626_624),
    (_RESNET_CIFAR, "ResNet20", 20, 269_722, 40_551_040, (_WHOLE, 8.75, None, "Table 6", "")),
    (_RESNET_CIFAR, "ResNet32", 32, 464_154, 68_862_592, (_WHOLE, 7.51, None, "Table 6", "")),
    (_RESNET_CIFAR, "ResNet44", 44, 658_586, 97_174_144, (_WHOLE, 7.17, None, "Table 6", "")),
    (_RESNET_CIFAR, "ResNet56", 56, 853_018, 125_485_696, (_WHOLE, 6.97, None, "Table 6", "")),
    (
        *(_RESNET_CIFAR, "ResNet110", 110, 1_727_962, 252_887_680),
        (_WHOLE, 6.43, None, "Table 6", "best of 5 runs; 6.61 +- 0.16"),
    ),
    (_RESNET_CIFAR, "ResNet1202", 1202, 19_421_274, 2_829_238_912, (_WHOLE, 7.93, None, "Table 6", "")),
    (_RESNET_CIFAR, "PlainNet20", 20, 269_722, 40_551_040),
    (_RESNET_CIFAR, "PlainNet32", 32, 464_154, 68_862_592),
    (_RESNET_CIFAR, "PlainNet44", 44, 658_586, 97_174_144),
    (_RESNET_CIFAR, "PlainNet56", 56, 853_018, 125_485_696),
    (_RESNET_CIFAR, "PlainNet110", 110, 1_727_962, 252_887_680),
)


def _architecture(
    family: Family,
    name: str,
    depth: int,
    parameters: int,
    multiply_adds: int,
    *errors: tuple[str, float | None, float | None, str, str],
) -> Architecture:
    published = tuple(
        PublishedError(family.errors_on, top1, protocol, source, note, top5)
        for protocol, top1, top5, source, note in errors
    )
    return Architecture(name, family, depth, parameters, multiply_adds, published)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({row[1]: _architecture(*row) for row in _ROWS})
FAMILIES: tuple[Family, ...] = tuple({row.family: None for row in ARCHITECTURES.values()})
