"""What the commands import at start-up."""

from __future__ import annotations

import pytest

CODE = """
import sys
from keras_convnets.commands.startup import OPTIONAL_IN_KERAS, load_tensorflow
load_tensorflow()
assert "keras" in sys.modules and not set(OPTIONAL_IN_KERAS) & set(sys.modules)
import matplotlib, sklearn.datasets
"""


def test_optional_imports_of_keras_are_skipped_and_work_afterwards(run_python, tmp_path):
    process = run_python("-c", CODE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]


@pytest.mark.parametrize(("given", "expected"), [({}, "True"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "False")])
def test_training_uses_onednn_unless_the_user_decided(run_python, tmp_path, monkeypatch, given, expected):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    code = """
from keras_convnets.commands.startup import load_tensorflow
load_tensorflow(training=True)
from tensorflow.python.util import _pywrap_util_port
print(_pywrap_util_port.IsMklEnabled())
"""
    process = run_python("-c", code, cwd=tmp_path, env=given)
    assert process.stdout.split() == [expected], process.stderr[-2000:]
