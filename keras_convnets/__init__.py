"""The classic convolutional networks as Keras applications, to the papers' letter.

Importing this package imports neither Keras nor a backend: builders resolve on first use.

Example:
    >>> import keras_convnets
    >>> model = keras_convnets.ResNet20(classes=10)
    >>> keras_convnets.list_models("VGG*")
    ['VGG11', 'VGG13', 'VGG16', 'VGG19']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import wrapt

from keras_convnets.networks.registry import ARCHITECTURES, get_model, list_models
from keras_convnets.version import __version__

if TYPE_CHECKING:
    from keras_convnets.card import ModelCard as ModelCard
    from keras_convnets.classes import decode_predictions as decode_predictions
    from keras_convnets.classes import imagenet_classes as imagenet_classes
    from keras_convnets.images.preprocessing import Preprocessing as Preprocessing
    from keras_convnets.images.preprocessing import preprocess_input as preprocess_input
    from keras_convnets.networks.alexnet import AlexNet as AlexNet
    from keras_convnets.networks.alexnet import AlexNetOneTower as AlexNetOneTower
    from keras_convnets.networks.alexnet import AlexNetSixConvs as AlexNetSixConvs
    from keras_convnets.networks.features import Stage as Stage
    from keras_convnets.networks.features import features as features
    from keras_convnets.networks.features import fully_convolutional as fully_convolutional
    from keras_convnets.networks.features import stages as stages
    from keras_convnets.networks.googlenet import GoogLeNet as GoogLeNet
    from keras_convnets.networks.googlenet import without_auxiliary as without_auxiliary
    from keras_convnets.networks.profile import ModelInfo as ModelInfo
    from keras_convnets.networks.profile import model_info as model_info
    from keras_convnets.networks.resnet import PlainNet18 as PlainNet18
    from keras_convnets.networks.resnet import PlainNet34 as PlainNet34
    from keras_convnets.networks.resnet import ResNet18 as ResNet18
    from keras_convnets.networks.resnet import ResNet34 as ResNet34
    from keras_convnets.networks.resnet import ResNet50 as ResNet50
    from keras_convnets.networks.resnet import ResNet50v1_5 as ResNet50v1_5
    from keras_convnets.networks.resnet import ResNet101 as ResNet101
    from keras_convnets.networks.resnet import ResNet101v1_5 as ResNet101v1_5
    from keras_convnets.networks.resnet import ResNet152 as ResNet152
    from keras_convnets.networks.resnet import ResNet152v1_5 as ResNet152v1_5
    from keras_convnets.networks.resnet_cifar import CIFARPlainNet as CIFARPlainNet
    from keras_convnets.networks.resnet_cifar import CIFARResNet as CIFARResNet
    from keras_convnets.networks.resnet_cifar import PlainNet20 as PlainNet20
    from keras_convnets.networks.resnet_cifar import PlainNet32 as PlainNet32
    from keras_convnets.networks.resnet_cifar import PlainNet44 as PlainNet44
    from keras_convnets.networks.resnet_cifar import PlainNet56 as PlainNet56
    from keras_convnets.networks.resnet_cifar import PlainNet110 as PlainNet110
    from keras_convnets.networks.resnet_cifar import ResNet20 as ResNet20
    from keras_convnets.networks.resnet_cifar import ResNet32 as ResNet32
    from keras_convnets.networks.resnet_cifar import ResNet44 as ResNet44
    from keras_convnets.networks.resnet_cifar import ResNet56 as ResNet56
    from keras_convnets.networks.resnet_cifar import ResNet110 as ResNet110
    from keras_convnets.networks.resnet_cifar import ResNet1202 as ResNet1202
    from keras_convnets.networks.vgg import VGG11 as VGG11
    from keras_convnets.networks.vgg import VGG13 as VGG13
    from keras_convnets.networks.vgg import VGG16 as VGG16
    from keras_convnets.networks.vgg import VGG19 as VGG19
    from keras_convnets.weights.pretrained import WeightsRecord as WeightsRecord
    from keras_convnets.weights.pretrained import get_record as get_record
    from keras_convnets.weights.pretrained import list_weights as list_weights

# Where each public name lives; a module here is imported when one of its names is first used.
_HOMES = {
    "CIFARPlainNet": "keras_convnets.networks.resnet_cifar",
    "CIFARResNet": "keras_convnets.networks.resnet_cifar",
    "ModelCard": "keras_convnets.card",
    "ModelInfo": "keras_convnets.networks.profile",
    "Preprocessing": "keras_convnets.images.preprocessing",
    "Stage": "keras_convnets.networks.features",
    "WeightsRecord": "keras_convnets.weights.pretrained",
    "decode_predictions": "keras_convnets.classes",
    "features": "keras_convnets.networks.features",
    "fully_convolutional": "keras_convnets.networks.features",
    "get_record": "keras_convnets.weights.pretrained",
    "imagenet_classes": "keras_convnets.classes",
    "list_weights": "keras_convnets.weights.pretrained",
    "model_info": "keras_convnets.networks.profile",
    "preprocess_input": "keras_convnets.images.preprocessing",
    "stages": "keras_convnets.networks.features",
    "without_auxiliary": "keras_convnets.networks.googlenet",
    **{architecture.name: architecture.module for architecture in ARCHITECTURES.values()},
}

__all__ = ["__version__", "get_model", "list_models", *_HOMES]

# keras.saving.load_model finds custom layers and models only where they are registered. They are registered when Keras
# itself is imported, before or after this package, so that importing this package need not import Keras.
for _module in ("keras_convnets.networks.layers", "keras_convnets.networks.functional"):
    wrapt.register_post_import_hook(lambda keras, module=_module: importlib.import_module(module), "keras")


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
