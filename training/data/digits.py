"""scikit-learn's handwritten digits: 1,797 real scans of 8x8 pixels that come with the library."""

from __future__ import annotations

import numpy as np

from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.splits import ArraySplit, held_out

TEST_IMAGES = 360


def load_digits() -> DataSet:
    """Return the digits as RGB 0-255, 1,437 to train and 360 to test.

    The source counts ink from 0 to 16 in each pixel; here 16 becomes 255. The test images are taken evenly from each
    class in the stored order, so both parts hold every writer's hand. A mirrored digit is another sign: no flips.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    ink = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(ink[..., np.newaxis], 3, axis=-1)
    test, train = held_out(digits.target, TEST_IMAGES)
    return DataSet(
        name="digits",
        class_names=tuple(str(name) for name in digits.target_names),
        flips_keep_labels=False,
        splits={name: ArraySplit(images[at], digits.target[at]) for name, at in (("train", train), ("test", test))},
        image_size=(8, 8),
    )
