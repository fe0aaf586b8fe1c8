"""Where there is no fcntl, networks, weights, prediction and client work."""

from __future__ import annotations

import sys

# What Windows lacks is taken away before anything is imported; folders can't be opened there.
WITHOUT_POSIX = """
import os, signal, socket, sys, warnings

class Missing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name in ("fcntl", "grp", "pwd", "resource", "termios")]:
    del sys.modules[name]
sys.meta_path.insert(0, Missing)
gone = "O_DIRECTORY O_NOFOLLOW O_NONBLOCK fork forkpty getegid geteuid getgid getuid killpg mkfifo statvfs sysconf"
for module, names in ((os, gone), (signal, "SIGHUP SIGKILL SIGUSR1 SIGUSR2"), (socket, "AF_UNIX")):
    for name in names.split():
        delattr(module, name)

def opened(path, *arguments, open=os.open, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return open(path, *arguments, **more)

os.open = opened
warnings.simplefilter("ignore")
import numpy as np
import keras_convnets
from keras_convnets.card import ModelCard, card_of_model
from keras_convnets.prediction import keras_classifier
from keras_convnets.export import Client, model_config
from keras_convnets.export.serving.server import _handlers
from keras_convnets.export.serving.sockets import add_unix_socket
from keras_convnets.files import exclusive_lock, remove_abandoned, atomic_folder
from keras_convnets.images.files import encode_png
from keras_convnets.networks.functional import load_keras

model = keras_convnets.CIFARPlainNet(8, classes=3)
with exclusive_lock(".", "trained in"), atomic_folder("run") as folder:
    model.save(folder / "best.keras")
    model.save_weights(folder / "best.weights.h5")
    card_of_model(model).write(folder)
    remove_abandoned(".")
again = keras_convnets.CIFARPlainNet(8, classes=3, weights="run/best.weights.h5")
classifier = keras_classifier(load_keras("run/best.keras"), ModelCard.read("run"))
image = np.full((32, 32, 3), 9, np.uint8)
(answer,) = classifier.top_k([encode_png(image)], 3)
np.testing.assert_allclose(np.max(again(image[None])), answer[0][1], rtol=1e-4)
with Client("http://127.0.0.1:9/v1/models/digits"):
    pass
model_config.register(".", "digits")
with _handlers(print):
    pass
try:
    add_unix_socket(None, "here")
except ValueError as error:
    print(error)
print(sorted(name for name in os.listdir() if not name.startswith(".")))
"""


def test_networks_weights_prediction_and_client_work_without_posix(run_python, tmp_path, monkeypatch):
    done = run_python("-c", WITHOUT_POSIX, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    refusal, left = done.stdout.splitlines()
    assert refusal == "--grpc_socket_path got 'here'; this system has no UNIX sockets: give --port instead."
    assert left == "['models.config', 'run']"
    from keras_convnets.training import dry_run

    monkeypatch.setitem(sys.modules, "resource", None)
    assert dry_run._memory() is None
