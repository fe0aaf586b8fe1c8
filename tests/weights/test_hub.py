"""Weights from a hub that runs here and answers as the Hugging Face Hub does: found, checked, described, cached."""

from __future__ import annotations

import hashlib
import http.server
import json
import logging
import threading

import numpy as np
import pytest
from reference import as_numpy
from test_state_dicts import modules, state_dict, written

import keras_convnets
from keras_convnets.card import card_of_model
from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import UNIT_SCALED
from keras_convnets.weights import hub
from keras_convnets.weights.downloads import DownloadError

constants = pytest.importorskip("huggingface_hub.constants", reason="the extra hub is not installed")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "f" * 40
TIMM = {
    "architecture": "resnet18",
    "num_classes": 7,
    "num_features": 512,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "num_classes": 7,
        "input_size": [3, 32, 32],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.5],
        "first_conv": "conv1",
        "classifier": "fc",
    },
}
README = """---
license: apache-2.0
library_name: timm
model-index:
- name: resnet18
  results:
  - task: {type: image-classification}
    dataset: {name: seven classes, type: images}
    metrics:
    - {type: accuracy, value: 0.875}
---
# A network
"""


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name: {revision: (commit, {file: content})}; `private` ones ask for the token "secret"."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.gated, self.asked = {}, set(), set(), []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, name, revision="main", commit=COMMIT, **files):
        found = {key.replace("_dot_", "."): value for key, value in files.items()}
        self.repositories.setdefault(name, {}).update({revision: (commit, found), commit: (commit, found)})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        parts = self.path.strip("/").split("/")
        name, revision, file = "/".join(parts[:2]), "/".join(parts[3:-1]), parts[-1]
        repository = self.server.repositories.get(name)
        allowed = name not in self.server.private or self.headers.get("Authorization") == "Bearer secret"
        if name in self.server.gated:
            return self.refuse(403, "GatedRepo")
        if repository is None or not allowed or parts[2:3] != ["resolve"]:
            return self.refuse(401 if repository is None or not allowed else 404, "RepoNotFound")
        if revision not in repository:
            return self.refuse(404, "RevisionNotFound")
        commit, files = repository[revision]
        if file not in files:
            return self.refuse(404, "EntryNotFound", commit)
        content = files[file]
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def refuse(self, status, code, commit=""):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(monkeypatch, tmp_path, caplog):
    """A hub, with an empty cache of huggingface_hub, and no token."""
    caplog.set_level(logging.INFO, logger="keras_convnets")
    server = Hub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def resnet18(folder):
    """The bytes of a ResNet-18 of seven classes, as timm names it."""
    named = modules((2, 2, 2, 2), (64, 128, 256, 512), size=7, classes=7)
    return written(folder / "hub.safetensors", state_dict(named)).read_bytes()


@pytest.fixture(scope="module")
def resnet20(folder):
    return written(folder / "hub20.safetensors", state_dict(modules())).read_bytes()


def as_json(plain):
    return json.dumps(plain).encode()


def test_a_network_of_timm(served, resnet18, caplog, monkeypatch):
    """Weights, preprocessing, view, classes, licence and accuracy are the repository's, and the commit is kept."""
    served.add(
        *("someone/flowers",),
        config_dot_json=as_json(TIMM),
        model_dot_safetensors=resnet18,
        README_dot_md=README.encode(),
    )
    model = keras_convnets.ResNet18(weights="hf://someone/flowers", classes=7)
    record = model.published_weights.record
    assert model.input_shape == (None, 32, 32, 3)
    assert record.preprocessing.mean == pytest.approx((127.5, 102, 76.5))
    assert record.preprocessing.std == pytest.approx((51, 63.75, 127.5))
    assert (record.license, record.revision, record.resize, record.kernel) == ("apache-2.0", COMMIT, 40, "bicubic")
    assert record.sha256 == hashlib.sha256(resnet18).hexdigest() and record.size == len(resnet18)
    (accuracy,) = record.accuracies
    assert (accuracy.data, accuracy.top1, accuracy.n) == ("seven classes", 87.5, None)
    card = card_of_model(model)
    assert card.view.to_dict() == {"name": "center", "resize": 40, "crop": [32, 32], "kernel": "bicubic"}
    assert card.class_names == tuple("0123456")
    assert card.weights["source"] == "hf://someone/flowers" and card.weights["revision"] == COMMIT
    assert "assumed" not in caplog.text
    assert COMMIT in caplog.text
    np.testing.assert_array_equal(as_numpy(model.get_layer("predictions").bias), state_dict_of(resnet18)["fc.bias"])
    # Once more without a hub.
    served.repositories.clear()
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    path, again = hub.find("ResNet18", "hf://someone/flowers")
    assert again == record and path.read_bytes() == resnet18


def state_dict_of(content):
    from safetensors.numpy import load

    return load(content)


def test_a_table_of_results_says_what_the_repository_does_not(served, resnet18):
    """Accuracies of timm's own networks are those of its table; what a repository says wins elsewhere."""
    config = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"crop_pct": 0.9}}
    served.add("timm/resnet18.a1_in1k", config_dot_json=as_json(config), model_dot_safetensors=resnet18)
    _, record = hub.find("ResNet18", "timm/resnet18.a1_in1k")
    listed = keras_convnets.get_record("ResNet18", "timm/resnet18.a1_in1k")
    assert record.accuracies == listed.accuracies and record.preprocessing == UNIT_SCALED
    assert (record.resize, listed.resize) == (248, 235)
    assert record.revision == COMMIT and not listed.revision
    assert str(record) == "ResNet18:timm/resnet18.a1_in1k"
    assert len(record.class_names) == 1000


def test_a_record_of_the_list_is_taken_as_its_name_is(served, resnet18):
    served.add("timm/resnet18.a1_in1k", config_dot_json=as_json(TIMM), model_dot_safetensors=resnet18)
    listed = keras_convnets.get_record("ResNet18", "timm/resnet18.a1_in1k")
    model = keras_convnets.ResNet18(weights=listed, classes=7)
    assert model.published_weights.record.revision == COMMIT
    # The record that was loaded names its commit: it gives this one again when the repository has gone on.
    served.add("timm/resnet18.a1_in1k", commit=OTHER_COMMIT, config_dot_json=as_json(TIMM))
    again = keras_convnets.ResNet18(weights=model.published_weights.record, classes=7)
    assert again.published_weights.record.revision == COMMIT


def test_revisions(served, resnet18):
    files = {"config_dot_json": as_json(TIMM), "model_dot_safetensors": resnet18}
    served.add("someone/flowers", **files)
    served.add("someone/flowers", revision="v2", commit=OTHER_COMMIT, **files)
    for address, commit in (("hf://someone/flowers", COMMIT), ("hf://someone/flowers@v2", OTHER_COMMIT)):
        assert hub.find("ResNet18", address)[1].revision == commit
    assert hub.find("ResNet18", f"hf://someone/flowers@{COMMIT}")[1].revision == COMMIT
    with pytest.raises(UserError, match=r"hf://someone/flowers@v3 has no such revision"):
        hub.find("ResNet18", "hf://someone/flowers@v3")


def test_what_a_repository_does_not_say_is_named(served, resnet18, caplog):
    served.add("someone/bare", config_dot_json=as_json({"architecture": "resnet18"}), model_dot_safetensors=resnet18)
    _, record = hub.find("ResNet18", "hf://someone/bare")
    for what in ("normalised", "size", "cropped"):
        assert f"{what}" in caplog.text
    assert caplog.text.count("assumed") == 3
    assert record.preprocessing == UNIT_SCALED and record.license == "not stated" and record.accuracies == ()


def test_a_repository_without_configuration(served, resnet20):
    """Its file is taken as a file of one's own."""
    served.add("someone/bare", model_dot_safetensors=resnet20)
    path, record = hub.find("ResNet20", "hf://someone/bare")
    assert record is None and path.read_bytes() == resnet20
    assert keras_convnets.ResNet20(weights="hf://someone/bare").published_weights.record is None


def test_a_network_of_transformers(served, resnet18):
    """Preprocessing is in a file of its own there; ResNet-50 strides the 3x3 convolution unless it says otherwise."""
    config = {
        "model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3],
        "downsample_in_bottleneck": False, "id2label": {"1": "dog", "0": "cat"},
    }  # fmt: skip
    other = {
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": {"shortest_edge": 96},
        "crop_pct": 0.75, "resample": 3,
    }  # fmt: skip
    files = {"preprocessor_config_dot_json": as_json(other), "model_dot_safetensors": resnet18}
    served.add("microsoft/resnet-50", config_dot_json=as_json(config), **files)
    _, record = hub.find("ResNet50v1_5", "hf://microsoft/resnet-50")
    assert record.class_names == ("cat", "dog") and record.class_ids == ()
    assert record.preprocessing.std == (63.75,) * 3
    assert (record.input_shape, record.resize, record.kernel) == ((96, 96, 3), 128, "bicubic")
    strided = {**config, "downsample_in_bottleneck": True}
    served.add("microsoft/strided", config_dot_json=as_json(strided), **files)
    with pytest.raises(UserError, match="strides elsewhere"):
        hub.find("ResNet50v1_5", "hf://microsoft/strided")


@pytest.mark.parametrize(
    ("architecture", "config", "pattern"),
    [
        ("ResNet18", {"architecture": "resnet18d"}, r"holds resnet18d, which is none of.*resnet18, "),
        ("ResNet18", {"architecture": "seresnet18"}, r"holds seresnet18, which is none"),
        ("ResNet18", {"model_type": "vit"}, r"holds vit, which is none"),
        ("ResNet50", {"architecture": "resnet50"}, r"holds resnet50, which is ResNet50v1_5 here and not ResNet50;"),
        ("VGG16", {"architecture": "vgg16_bn"}, r"holds vgg16_bn, which is none"),
        ("ResNet18", [1], r"config\.json is not a configuration"),
        ("ResNet18", {"architecture": "resnet18", "mean": [1], "std": [2]}, r"config\.json is not a configuration"),
        ("ResNet18", {"architecture": "resnet18", "input_size": 3}, r"config\.json is not a configuration"),
    ],
)
def test_other_networks_are_refused_before_their_weights_are_downloaded(served, architecture, config, pattern):
    served.add("someone/other", config_dot_json=as_json(config), model_dot_safetensors=b"none")
    with pytest.raises(UserError, match=pattern) as raised:
        hub.find(architecture, "hf://someone/other")
    assert "\n" not in str(raised.value)
    assert not any("safetensors" in path for _, path, _ in served.asked)


def test_a_name_of_timm_for_another_network_asks_no_hub(served):
    with pytest.raises(UserError, match="ResNet50v1_5 here and not ResNet50"):
        keras_convnets.ResNet50(weights="timm/resnet50.a1_in1k")
    assert served.asked == []


def test_what_can_not_be_had(served, resnet18, monkeypatch):
    with pytest.raises(UserError, match=r"no repository hf://someone/nothing"):
        hub.find("ResNet18", "hf://someone/nothing")
    served.add("someone/config", config_dot_json=as_json(TIMM))
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        hub.find("ResNet18", "hf://someone/config")
    served.add("someone/gated", config_dot_json=as_json(TIMM))
    served.gated.add("someone/gated")
    with pytest.raises(UserError, match=r"accepted its terms"):
        hub.find("ResNet18", "hf://someone/gated")
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    with pytest.raises(
        DownloadError, match=r"KERAS_CONVNETS_OFFLINE or HF_HUB_OFFLINE is set.*hf download someone/new"
    ):
        hub.find("ResNet18", "hf://someone/new")
    for address in ("hf://", "hf://one", "hf://a/b/c", "hf://a/b@"):
        with pytest.raises(UserError, match="an address is hf://OWNER/NAME"):
            keras_convnets.ResNet18(weights=address)


def test_a_private_repository_takes_a_token(served, resnet18, monkeypatch):
    served.add("someone/own", config_dot_json=as_json(TIMM), model_dot_safetensors=resnet18)
    served.private.add("someone/own")
    with pytest.raises(UserError, match=r"log in if it is private"):
        hub.find("ResNet18", "hf://someone/own")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert hub.find("ResNet18", "hf://someone/own")[1].revision == COMMIT


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr("keras_convnets.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'keras-convnets\[hub\]'"):
        keras_convnets.ResNet18(weights="hf://someone/flowers")


def test_the_environments_of_the_hub_are_honoured(served, resnet18, run_python, tmp_path):
    """A mirror, a cache folder and the hub's own offline mode, in processes of their own; the command line."""
    served.add("someone/flowers", config_dot_json=as_json(TIMM), model_dot_safetensors=resnet18)
    environment = {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = "import sys; from keras_convnets.weights import hub; print(hub.find('ResNet18', sys.argv[1])[0])"
    ask = ("-c", script, "hf://someone/flowers")
    done = run_python(*ask, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "home"))
    count = len(served.asked)
    done = run_python(*ask, cwd=tmp_path, env={**environment, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0 and len(served.asked) == count
    done = run_python("-c", script, "hf://someone/new", cwd=tmp_path, env={**environment, "HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE is set" in done.stderr
