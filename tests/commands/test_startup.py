"""What the commands import at start-up."""

from __future__ import annotations

CODE = """
import sys
from keras_convnets.commands.startup import UNUSED_BY_KERAS, load_tensorflow
load_tensorflow()
assert "keras" in sys.modules and not set(UNUSED_BY_KERAS) & set(sys.modules)
import matplotlib, sklearn.datasets
"""


def test_what_keras_alone_would_import_is_left_and_can_still_be_used(run_python, tmp_path):
    process = run_python("-c", CODE, cwd=tmp_path)
    assert process.returncode == 0, process.stderr[-2000:]
