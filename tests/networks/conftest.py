"""Fixtures of several test modules of networks."""

from __future__ import annotations

import pytest
from network_checks import randomise, smallest, unsaturate

from keras_convnets import (
    get_model,
)


@pytest.fixture(scope="module")
def small(request):
    """An ImageNet network at its smallest size with three classes.

    pytest runs the tests of one network together, so that only one is in memory.
    """
    name = request.param
    model = get_model(name, input_shape=(smallest(name), smallest(name), 3), classes=3)
    randomise(model)
    unsaturate(model)
    return name, model
