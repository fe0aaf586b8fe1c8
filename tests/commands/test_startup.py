"""What the commands import at start-up."""

from __future__ import annotations

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
