"""Weights behind operators on constants: folded as ONNX' own reference computes them, in bounds."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from keras_convnets.errors import UserError
from keras_convnets.weights import onnx_constant_folding
from keras_convnets.weights.onnx_constant_folding import fold_constants
from keras_convnets.weights.onnx_reader import read_onnx

STORED = {
    "a": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4, 1),
    "d": np.linspace(-2, 2, 6).reshape(2, 3),
    "axes": np.array([0, 4]),
    "last": np.array([-1]),
    "shape": np.array([0, -1, 4]),
}
CHAINS = [
    (13, [("Squeeze", ["a", "axes"], {}), ("Unsqueeze", ["x0", "last"], {})]),
    (12, [("Squeeze", ["a"], {"axes": [0]}), ("Unsqueeze", ["x0"], {"axes": [1, -1]}), ("Squeeze", ["x1"], {})]),
    (13, [("Reshape", ["a", "shape"], {}), ("Transpose", ["x0"], {"perm": [2, 0, 1]}), ("Transpose", ["x1"], {})]),
    (13, [("Cast", ["d"], {"to": TensorProto.FLOAT}), ("Identity", ["x0"], {}), ("Reshape", ["x1", "last"], {})]),
    (13, [("Cast", ["d"], {"to": TensorProto.INT32}), ("Cast", ["x0"], {"to": TensorProto.FLOAT16})]),
    (13, [("Constant", [], {"value_floats": [1.5, 2.5]}), ("Unsqueeze", ["x0", "last"], {})]),
    (13, [("Constant", [], {"value_int": 7}), ("Cast", ["x0"], {"to": TensorProto.FLOAT})]),
]


def nodes_of(chain):
    return [helper.make_node(kind, given, [f"x{at}"], **how) for at, (kind, given, how) in enumerate(chain)]


@pytest.mark.parametrize("opset, chain", CHAINS, ids=str)
def test_folding_is_the_references(opset, chain):
    nodes, found = nodes_of(chain), dict(STORED)
    fold_constants(nodes, found)
    last = nodes[-1].output[0]
    tensors = [numpy_helper.from_array(array, name) for name, array in STORED.items()]
    result = helper.make_tensor_value_info(last, helper.np_dtype_to_tensor_dtype(found[last].dtype), None)
    graph = helper.make_graph(nodes, "chain", [], [result], tensors)
    (expected,) = ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    ).run(None, {})
    assert found[last].dtype == expected.dtype
    np.testing.assert_array_equal(found[last], expected)


def test_operators_as_old_files_write_them():
    found = dict(STORED)
    fold_constants(nodes_of([("Reshape", ["a"], {"shape": [6, -1]}), ("Cast", ["x0"], {"to": "DOUBLE"})]), found)
    assert found["x1"].shape == (6, 4) and found["x1"].dtype == np.float64


def test_what_depends_on_images_is_not_folded():
    found = dict(STORED)
    fold_constants(
        nodes_of([("Reshape", ["images", "shape"], {}), ("Add", ["d", "d"], {}), ("Cast", ["x0"], {"to": 1})]), found
    )
    assert found.keys() == STORED.keys()


def test_conversions_that_grow_without_end_are_refused_before_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_constant_folding, "LEAST_LIMIT", 1000)
    stored, found = np.zeros(1000, np.uint8), {"small": np.zeros(1000, np.uint8)}
    casts = [helper.make_node("Cast", ["small"], [f"x{at}"], to=TensorProto.FLOAT) for at in range(2)]
    fold_constants(casts[:1], found)
    assert found["x0"].nbytes == 4000
    result = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1000])
    graph = helper.make_graph(casts, "casts", [], [result], [numpy_helper.from_array(stored, "small")])
    onnx.save(helper.make_model(graph), tmp_path / "casts.onnx")
    with pytest.raises(UserError, match=r"casts\.onnx .*conversions make far more bytes than it stores"):
        read_onnx(tmp_path / "casts.onnx")


@pytest.mark.parametrize("node", [
    ("Reshape", ["a", "last", "last"], {}), ("Reshape", ["a", "axes"], {}), ("Squeeze", ["a"], {"axes": [1]}),
    ("Squeeze", ["a"], {"axes": [9]}), ("Transpose", ["a"], {"perm": [0, 0]}), ("Cast", ["a"], {"to": 999}),
    ("Cast", ["a"], {"to": TensorProto.STRING}), ("Cast", ["a"], {}), ("Unsqueeze", ["a"], {"axes": [0] * 99}),
    ("Constant", [], {}),
])  # fmt: skip
def test_what_no_operator_can_do_is_a_sentence(node, tmp_path):
    tensors = [numpy_helper.from_array(array, name) for name, array in STORED.items()]
    result = helper.make_tensor_value_info("x0", TensorProto.FLOAT, None)
    onnx.save(helper.make_model(helper.make_graph(nodes_of([node]), "g", [], [result], tensors)), tmp_path / "g.onnx")
    with pytest.raises(UserError, match=r"g\.onnx holds a tensor that can't be read \(.+\)\.$"):
        read_onnx(tmp_path / "g.onnx")
