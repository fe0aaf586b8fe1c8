"""Records of weights that PyTorch's libraries publish for the networks of this package: torchvision's and timm's.

Addresses, the first digits of sha256 and accuracies of torchvision's are as torchvision 0.29 states them;
preprocessing, crops, licences and accuracies of timm's as its configurations and its table of results on ImageNet do
(August 2026).
timm's resnet50, 101 and 152 stride the 3x3 convolution, as torchvision's: the networks called v1_5 here.
"""

from __future__ import annotations

from keras_convnets.images.preprocessing import UNIT_SCALED, Preprocessing
from keras_convnets.weights.record import HUB, IMAGENET_VAL, Accuracy, WeightsRecord

# What both libraries call networks of ours.
ARCHITECTURE_NAMES = {
    **{"resnet18": "ResNet18", "resnet34": "ResNet34", "resnet50": "ResNet50v1_5"},
    **{"resnet101": "ResNet101v1_5", "resnet152": "ResNet152v1_5"},
    **{f"vgg{depth}": f"VGG{depth}" for depth in (11, 13, 16, 19)},
}
# (network, file, shorter side before the crop of 224, top-1, top-5); file names have the first digits of the sha256
_TORCHVISION = (
    ("resnet18", "resnet18-f37072fd.pth", 256, 69.758, 89.078),
    ("resnet34", "resnet34-b627a593.pth", 256, 73.314, 91.420),
    ("resnet50", "resnet50-0676ba61.pth", 256, 76.130, 92.862),
    ("resnet50", "resnet50-11ad3fa6.pth", 232, 80.858, 95.434),
    ("resnet101", "resnet101-63fe2227.pth", 256, 77.374, 93.546),
    ("resnet101", "resnet101-cd907fc2.pth", 232, 81.886, 95.780),
    ("resnet152", "resnet152-394f9c45.pth", 256, 78.312, 94.046),
    ("resnet152", "resnet152-f82ba261.pth", 232, 82.284, 96.002),
    ("vgg11", "vgg11-8a719046.pth", 256, 69.020, 88.628),
    ("vgg13", "vgg13-19584684.pth", 256, 69.928, 89.246),
    ("vgg16", "vgg16-397923af.pth", 256, 71.592, 90.382),
    ("vgg19", "vgg19-dcbb9e9d.pth", 256, 72.376, 90.876),
)
# (network and tag, (input's side, share of the shorter side that it is, top-1, top-5) ...), the training's side first
_TIMM: tuple[tuple[str, *tuple[tuple[int, float, float, float], ...]], ...] = (
    ("resnet18.a1_in1k", (224, 0.95, 71.50, 90.09), (288, 1.0, 73.16, 91.05)),
    ("resnet18.a2_in1k", (224, 0.95, 70.63, 89.49), (288, 1.0, 72.36, 90.62)),
    ("resnet18.a3_in1k", (160, 0.95, 65.67, 86.27), (224, 0.95, 68.25, 88.17)),
    ("resnet18.tv_in1k", (224, 0.875, 69.75, 89.08)),
    ("resnet18.fb_ssl_yfcc100m_ft_in1k", (224, 0.875, 72.64, 91.42)),
    ("resnet18.fb_swsl_ig1b_ft_in1k", (224, 0.875, 73.29, 91.75)),
    ("resnet18.gluon_in1k", (224, 0.875, 70.84, 89.75)),
    ("resnet34.a1_in1k", (224, 0.95, 76.42, 92.90), (288, 1.0, 77.93, 93.76)),
    ("resnet34.a2_in1k", (224, 0.95, 75.52, 92.45), (288, 1.0, 77.15, 93.29)),
    ("resnet34.a3_in1k", (160, 0.95, 70.58, 89.54), (224, 0.95, 73.00, 91.12)),
    ("resnet34.bt_in1k", (224, 0.875, 75.18, 92.17), (288, 0.95, 76.51, 93.34)),
    ("resnet34.ra4_e3600_r224_in1k", (224, 0.9, 77.49, 93.50), (288, 1.0, 78.97, 94.45)),
    ("resnet34.tv_in1k", (224, 0.875, 73.30, 91.42)),
    ("resnet34.gluon_in1k", (224, 0.875, 74.57, 91.99)),
    ("resnet50.a1_in1k", (224, 0.95, 80.38, 94.60), (288, 1.0, 81.24, 95.11)),
    ("resnet50.a1h_in1k", (176, 0.9, 79.26, 94.50), (224, 1.0, 80.65, 95.31)),
    ("resnet50.a2_in1k", (224, 0.95, 79.83, 94.56), (288, 1.0, 80.77, 94.98)),
    ("resnet50.a3_in1k", (160, 0.95, 75.99, 92.49), (224, 0.95, 78.05, 93.78)),
    ("resnet50.b1k_in1k", (224, 0.95, 79.56, 94.62), (288, 1.0, 80.71, 95.43)),
    ("resnet50.b2k_in1k", (224, 0.95, 79.39, 94.58), (288, 1.0, 80.47, 95.31)),
    ("resnet50.c1_in1k", (224, 0.95, 79.77, 94.95), (288, 1.0, 80.93, 95.55)),
    ("resnet50.c2_in1k", (224, 0.95, 79.87, 94.86), (288, 1.0, 80.86, 95.53)),
    ("resnet50.d_in1k", (224, 0.95, 79.90, 94.67), (288, 1.0, 81.01, 95.46)),
    ("resnet50.ram_in1k", (224, 0.875, 79.03, 94.39), (288, 0.95, 79.98, 95.04)),
    ("resnet50.am_in1k", (224, 0.875, 79.00, 94.39)),
    ("resnet50.ra_in1k", (224, 0.875, 78.82, 94.31), (288, 0.95, 79.86, 94.97)),
    ("resnet50.bt_in1k", (224, 0.875, 78.44, 94.27), (288, 0.95, 79.65, 94.91)),
    ("resnet50.tv_in1k", (224, 0.875, 76.16, 92.87)),
    ("resnet50.tv2_in1k", (176, 0.875, 79.43, 94.64), (224, 0.965, 80.85, 95.43)),
    ("resnet50.fb_ssl_yfcc100m_ft_in1k", (224, 0.875, 79.25, 94.83)),
    ("resnet50.fb_swsl_ig1b_ft_in1k", (224, 0.875, 81.15, 95.98)),
    ("resnet50.gluon_in1k", (224, 0.875, 77.58, 93.70)),
    ("resnet101.a1h_in1k", (224, 0.95, 81.95, 95.76), (288, 1.0, 82.80, 96.32)),
    ("resnet101.a1_in1k", (224, 0.95, 81.49, 95.16), (288, 1.0, 82.33, 95.63)),
    ("resnet101.a2_in1k", (224, 0.95, 81.34, 95.20), (288, 1.0, 82.22, 95.74)),
    ("resnet101.a3_in1k", (160, 0.95, 77.93, 93.69), (224, 0.95, 79.84, 94.61)),
    ("resnet101.tv_in1k", (224, 0.875, 77.40, 93.55)),
    ("resnet101.tv2_in1k", (176, 0.875, 79.91, 94.61), (224, 0.965, 81.91, 95.77)),
    ("resnet101.gluon_in1k", (224, 0.875, 79.31, 94.54)),
    ("resnet152.a1h_in1k", (224, 0.95, 82.82, 96.12), (288, 1.0, 83.49, 96.52)),
    ("resnet152.a1_in1k", (224, 0.95, 82.00, 95.29), (288, 1.0, 82.74, 95.73)),
    ("resnet152.a2_in1k", (224, 0.95, 81.76, 95.27), (288, 1.0, 82.61, 95.75)),
    ("resnet152.a3_in1k", (160, 0.95, 78.90, 94.14), (224, 0.95, 80.55, 95.00)),
    ("resnet152.tv_in1k", (224, 0.875, 78.33, 94.05)),
    ("resnet152.tv2_in1k", (176, 0.875, 80.22, 94.65), (224, 0.965, 82.29, 96.00)),
    ("resnet152.gluon_in1k", (224, 0.875, 79.71, 94.72)),
    ("vgg11.tv_in1k", (224, 0.875, 69.05, 88.63)),
    ("vgg13.tv_in1k", (224, 0.875, 69.95, 89.26)),
    ("vgg16.tv_in1k", (224, 0.875, 71.59, 90.40)),
    ("vgg19.tv_in1k", (224, 0.875, 72.40, 90.88)),
)
_SEMI_SUPERVISED = "Facebook AI's semi-supervised ImageNet-1K models, converted by timm"
# By the first part of a tag: (license, how they came about, what they were trained on, how images are resampled)
_TAGS = {
    "tv": ("BSD 3-Clause", "trained by torchvision, converted by timm", "ImageNet 2012", "bilinear"),
    "tv2": ("BSD 3-Clause", "trained by torchvision's second recipe, converted by timm", "ImageNet 2012", "bilinear"),
    "gluon": ("Apache 2.0", "trained in MXNet Gluon, converted by timm", "ImageNet 2012", "bicubic"),
    "fb_ssl": ("CC BY-NC 4.0", _SEMI_SUPERVISED, "YFCC100M without labels, then ImageNet 2012", "bilinear"),
    "fb_swsl": ("CC BY-NC 4.0", _SEMI_SUPERVISED, "IG-1B with hashtags, then ImageNet 2012", "bilinear"),
}
# Of the one network of timm here that was not trained with ImageNet's means.
_CENTRED = Preprocessing(mean=(127.5,) * 3, std=(127.5,) * 3)


def crop_text(resize: int, side: int, kernel: str) -> str:
    """Return in words how images were seen, such as "shorter side to 235, bicubic, centre crop 224"."""
    return f"shorter side to {resize}, {kernel}, centre crop {side}"


def _torchvision(network: str, file: str, resize: int, top1: float, top5: float) -> WeightsRecord:
    version = 1 if resize == 256 else 2
    protocol, source = crop_text(resize, 224, "bilinear"), "torchvision's table"
    return WeightsRecord(
        architecture=ARCHITECTURE_NAMES[network],
        name=f"imagenet1k_v{version}",
        file=file,
        locations=(f"https://download.pytorch.org/models/{file}",),
        size=None,
        sha256=file.removesuffix(".pth").rpartition("-")[2],
        preprocessing=UNIT_SCALED,
        accuracies=(Accuracy(IMAGENET_VAL, 50_000, top1, top5, protocol, source),),
        license="BSD 3-Clause",
        obtained=f"trained by torchvision{'' if version == 1 else ', second recipe'}",
        format="pth",
        resize=resize,
    )


def _timm(name: str, *results: tuple[int, float, float, float]) -> WeightsRecord:
    network, _, tag = name.partition(".")
    known = next((facts for first, facts in _TAGS.items() if tag.startswith(f"{first}_")), None)
    license, obtained, data, kernel = known or (
        *("Apache 2.0", f"trained with timm, recipe {tag.partition('_')[0]}"),
        *("ImageNet 2012", "bicubic"),
    )
    side, share = results[0][:2]
    return WeightsRecord(
        architecture=ARCHITECTURE_NAMES[network],
        name=f"timm/{name}",
        file="model.safetensors",
        locations=(f"{HUB}timm/{name}",),
        size=None,
        sha256="",
        preprocessing=_CENTRED if tag.startswith("ra4_") else UNIT_SCALED,
        accuracies=tuple(
            Accuracy(IMAGENET_VAL, 50_000, top1, top5, crop_text(int(size / share), size, kernel), "timm's table")
            for size, share, top1, top5 in results
        ),
        license=license,
        obtained=obtained,
        format="safetensors",
        input_shape=(side, side, 3),
        resize=int(side / share),
        kernel=kernel,
        data=data,
    )


PYTORCH_RECORDS = (*(_torchvision(*row) for row in _TORCHVISION), *(_timm(*row) for row in _TIMM))
