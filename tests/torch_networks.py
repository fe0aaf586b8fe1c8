"""Networks in PyTorch with the module names of torchvision, timm's VGG and the usual CIFAR repositories, written from
the papers' tables: the state dictionaries of the tests come from them, and what is exported goes into them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

BLOCKS = {
    "ResNet18": (1, (2, 2, 2, 2)),
    "ResNet34": (1, (3, 4, 6, 3)),
    "ResNet50v1_5": (4, (3, 4, 6, 3)),
    "ResNet101v1_5": (4, (3, 4, 23, 3)),
    "ResNet152v1_5": (4, (3, 8, 36, 3)),
    # The stride on the first convolution of a block, as in the paper; torchvision has no such networks.
    "ResNet50": (4, (3, 4, 6, 3)),
}
CONVOLUTIONS = {"VGG11": (1, 1, 2, 2, 2), "VGG13": (2,) * 5, "VGG16": (2, 2, 3, 3, 3), "VGG19": (2, 2, 4, 4, 4)}


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, **more) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, **more)


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with `expansion` 4.

    Args:
        inputs: channels.
        width: channels inside.
        stride: of the block.
        expansion: outputs per width.
        shortcut: "B" for projections where shapes differ; "A" for zeros behind the channels, "A both" on both sides.
        first: whether the first convolution has the stride and not the 3x3 of a bottleneck.
    """

    def __init__(self, inputs: int, width: int, stride: int, expansion: int, shortcut: str, first: bool = False):
        super().__init__()
        outputs = width * expansion
        if expansion == 1:
            self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)
        else:
            self.conv1, self.bn1 = _conv(inputs, width, 1, stride if first else 1), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = _conv(width, width, 3, 1 if first else stride), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.changes, self.shortcut, self.added = stride != 1 or inputs != outputs, shortcut, outputs - inputs
        if self.changes and shortcut == "B":
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(functional.relu(y)))
        if not self.changes:
            return functional.relu(x + y)
        if self.shortcut == "B":
            return functional.relu(self.downsample(x) + y)
        front = self.added // 2 if self.shortcut == "A both" else 0
        return functional.relu(functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, front, self.added - front)) + y)


class ResNet(nn.Module):
    """ResNet of ImageNet: torchvision's module names."""

    def __init__(self, name: str, classes: int = 1000):
        super().__init__()
        expansion, blocks = BLOCKS[name]
        self.conv1, self.bn1 = _conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(blocks):
            width, layers = 64 << stage, []
            for number in range(count):
                stride = 2 if stage and not number else 1
                layers.append(Block(inputs, width, stride, expansion, "B", first=name == "ResNet50"))
                inputs = width * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class CIFARResNet(nn.Module):
    """ResNet of CIFAR-10, with the classifier's name and the shortcuts of a repository."""

    def __init__(self, depth: int, shortcut: str = "A", classifier: str = "fc", classes: int = 10):
        super().__init__()
        self.conv1, self.bn1, self.classifier = _conv(3, 16, 3), nn.BatchNorm2d(16), classifier
        inputs = 16
        for stage in range(3):
            layers = []
            for number in range((depth - 2) // 6):
                layers.append(Block(inputs, 16 << stage, 2 if stage and not number else 1, 1, shortcut))
                inputs = 16 << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        setattr(self, classifier, nn.Linear(64, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.classifier)(x.mean((2, 3)))


class VGG(nn.Module):
    """VGG with torchvision's module names, or timm's, whose first two fully connected layers are convolutions."""

    def __init__(self, name: str, timm: bool = False, classes: int = 1000):
        super().__init__()
        layers, inputs = [], 3
        for block, count in enumerate(CONVOLUTIONS[name]):
            width = min(64 << block, 512)
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, 1, 1), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features, self.timm = nn.Sequential(*layers), timm
        if timm:
            self.pre_logits, self.head = nn.Module(), nn.Module()
            self.pre_logits.fc1, self.pre_logits.fc2 = nn.Conv2d(512, 4096, 7), nn.Conv2d(4096, 4096, 1)
            self.head.fc = nn.Linear(4096, classes)
        else:
            relu, dropout = nn.ReLU, nn.Dropout
            self.classifier = nn.Sequential(
                *(nn.Linear(512 * 49, 4096), relu(), dropout(), nn.Linear(4096, 4096), relu(), dropout()),
                nn.Linear(4096, classes),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        if not self.timm:
            return self.classifier(x.flatten(1))
        x = functional.relu(self.pre_logits.fc2(functional.relu(self.pre_logits.fc1(x))))
        return self.head.fc(x.flatten(1))


def randomized(network: nn.Module, seed: int) -> nn.Module:
    """Return a network in inference mode with random statistics and biases too; outputs keep a usual size."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
    # Without this, the sums of fifty blocks grow until they are the same for all images.
    for block in network.modules():
        if isinstance(block, Block):
            nn.init.uniform_(block.bn3.weight if hasattr(block, "bn3") else block.bn2.weight, 0.1, 0.3)
    return network.eval()
