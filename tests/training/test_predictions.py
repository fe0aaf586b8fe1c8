"""Predictions: image ids, .npz and .csv files, and resuming of interrupted evaluations."""

from __future__ import annotations

import csv
import dataclasses
import logging

import keras
import numpy as np
import pytest
from PIL import Image

from keras_convnets import training
from keras_convnets.errors import UserError
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.data.integrity import BrokenImage
from keras_convnets.training.evaluation import Predictions, partial_results

# Difficult class names: equal to other columns, duplicated, or with the suffix that makes column names unique.
NAMES = ("crane (class 2)", "crane", "crane", "x (class 3)", "label", 'a "b", c', "=1+1", "é")


def made(n=20, classes=NAMES, seed=0, **fields):
    rng = np.random.default_rng(seed)
    return Predictions(
        **{
            **{"source": "runs/a", "data": "made", "split": "test", "protocol": "center"},
            "class_names": tuple(classes),
            "ids": tuple(f"{number % 3}/{number}, \"{number}\".jpg" for number in range(n)),
            "labels": rng.integers(0, len(classes), n),
            "probabilities": rng.dirichlet(np.ones(len(classes)), n),
            "left_out": (BrokenImage("test", "0/é.jpg", "empty: 0 bytes"),),
            **fields,
        }
    )  # fmt: skip


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".NPZ"])
def test_a_saved_file_is_loaded_unchanged(tmp_path, suffix):
    saved = made(fingerprint="abc")
    found = Predictions.load(saved.save(tmp_path / "new" / f"file{suffix}"))
    # These attributes are in the .npz file only.
    lost = ("left_out", "fingerprint") if suffix == ".csv" else ()
    for field in dataclasses.fields(Predictions):
        expected = {"left_out": (), "fingerprint": ""}[field.name] if field.name in lost else getattr(saved, field.name)
        np.testing.assert_array_equal(getattr(found, field.name), expected, err_msg=field.name)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"file{suffix}"]


def test_the_csv_file_has_class_names_and_probabilities(tmp_path):
    saved = made()
    with open(saved.save(tmp_path / "file.csv"), encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == list(saved.ids) and [int(row["label"]) for row in rows] == list(saved.labels)
    assert [row["label_name"] for row in rows] == [NAMES[label] for label in saved.labels]
    best = np.argsort(-saved.probabilities, axis=1)
    for place in range(5):
        assert [row[f"top{place + 1}_name"] for row in rows] == [NAMES[index] for index in best[:, place]]
        found = np.array([row[f"top{place + 1}_probability"] for row in rows], np.float32)
        np.testing.assert_array_equal(found, np.take_along_axis(saved.probabilities, best, axis=1)[:, place])
    columns = ["crane (class 2) (class 0)", "crane", "crane (class 2)", "x (class 3) (class 3)", "label (class 4)"]
    assert list(rows[0])[-8:] == [*columns, *NAMES[5:]]
    found = np.array([[row[name] for name in list(row)[-8:]] for row in rows], np.float32)
    np.testing.assert_array_equal(found, saved.probabilities)


def test_pandas_reads_the_csv_file(tmp_path):
    pandas = pytest.importorskip("pandas")
    saved = made()
    table = pandas.read_csv(saved.save(tmp_path / "file.csv"))
    assert table["id"].tolist() == list(saved.ids) and table["label"].dtype == np.int64
    np.testing.assert_array_equal(table.iloc[:, -8:].to_numpy(np.float32), saved.probabilities)


def test_two_classes_have_only_two_top_k_columns(tmp_path):
    saved = made(classes=("ants", "bees"))
    path = saved.save(tmp_path / "file.csv")
    assert path.read_text().startswith(
        "id,label,label_name,top1_name,top1_probability,top2_name,top2_probability,source,data,split,protocol,ants,bees"
    )
    np.testing.assert_array_equal(Predictions.load(path).probabilities, saved.probabilities)
    assert saved.top(5).shape == (20, 2)


@pytest.mark.parametrize("name, content, sentence", [
    ("file.txt", b"", "must end in .npz or .csv"),
    ("none.npz", None, "none.npz does not exist"),
    ("file.npz", b"PK no more", "is not a file of predictions"),
    ("file.csv", b"a,b\n1,2\n", "is not a file of predictions .the first columns are not id, label"),
    ("file.csv", b"", "is not a file of predictions"),
    ("file.csv", b"id,label,label_name,top1_name,top1_probability,source,data,split,protocol,a,b\n0,0\n", "line 2 has"),
    ("file.csv", b"id,label,label_name,top1_name,top1_probability,source,data,split,protocol,a,b\n", "0 ids"),
])  # fmt: skip
def test_invalid_files_are_errors(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        Predictions.load(tmp_path / name)


def test_object_arrays_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "file.npz", source=np.array([print], object))
    with pytest.raises(UserError, match="is not a file of predictions"):
        Predictions.load(tmp_path / "file.npz")


@pytest.mark.parametrize("fields, sentence", [
    ({"labels": [0, 8]}, "image b .* has the label 8; labels are 0 to 7"),
    ({"labels": [0]}, r"2 ids, labels of shape \(1,\)"),
    ({"probabilities": np.full((2, 8), np.nan)}, "image a .* not finite"),
    ({"probabilities": np.full((2, 8), -1)}, "image a .* negative"),
    ({"probabilities": np.ones((2, 7))}, r"\(2, 7\) with 8 class names"),
])  # fmt: skip
def test_invalid_values_are_errors(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        made(**{"n": 2, "ids": ("a", "b"), "labels": [0, 1], **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name / "more").mkdir(parents=True)
            for number in range(12):
                place = "more/" if number % 2 else ""
                Image.new("RGB", (8, 8), (number, 9, 9)).save(root / split / name / f"{place}{number:02d}.png")
    (root / "val" / "bee" / "00.png").write_bytes(b"")
    return root


def brightness(images):
    red = images[:, 0, 0, :1] / 255
    return np.concatenate([1 - red, red], axis=1)


def test_ids_of_image_files_are_their_paths_relative_to_the_split(folder):
    data = training.load_dataset(folder)
    ids = data.split("val").ids()
    assert len(set(ids)) == 24 and ids[0] == "ant/00.png" and "bee/more/01.png" in ids
    decodable, _ = data.without_broken()
    sized = decodable.at_size(8, 8)
    for split in (sized.split("val"), decodable.at_size(8, 8, memory_limit=0).split("val")):
        assert split.ids() == [name for name in ids if name != "bee/00.png"]
        assert split.subset([3, 1]).ids() == split.ids([3, 1]) == [split.ids()[3], split.ids()[1]]


def test_ids_of_images_without_file_names_are_their_stored_positions():
    split = ArraySplit(np.zeros((9, 2, 2, 3), np.uint8), np.zeros(9, int))
    assert split.subset([2, 5, 8]).subset([1, 2]).ids() == ["00005", "00008"]
    assert training.load_dataset("digits").with_holdout(0.5).split("holdout").ids([0, 1]) != ["00000", "00001"]


def test_an_evaluation_has_the_predictions_and_the_images_left_out(folder):
    data = training.load_dataset(folder)
    data = dataclasses.replace(data, splits={"val": data.split("val")}).at_size(8, 8)
    result = training.evaluate(brightness, data, source="brightness")
    found = result.predictions
    assert found.ids == tuple(data.split("val").ids()) and len(found) == result.n == 23
    assert [("ant", "bee")[label] for label in found.labels] == [name.partition("/")[0] for name in found.ids]
    reds = np.array([int(name[-6:-4]) for name in found.ids]) / 255
    np.testing.assert_allclose(found.probabilities[:, 1], reds, rtol=1e-6)
    ((split, file, reason),) = found.left_out
    assert split == "val" and file.endswith("bee/00.png") and reason == "empty: 0 bytes"
    assert (found.source, found.key) == ("brightness", f"{folder.name}/val/center")
    again = training.Evaluation.of_predictions(found)
    assert again.to_dict() == {**result.to_dict(), "of": None}


def test_predictions_at_positions():
    saved = made()
    part = saved.at([4, 1])
    assert part.ids == (saved.ids[4], saved.ids[1]) and (part.labels == saved.labels[[4, 1]]).all()
    assert (part.probabilities == saved.probabilities[[4, 1]]).all()
    assert DataSet("d", ("a", "b"), True, {}, None).left_out == ()


@pytest.fixture
def counting(monkeypatch):
    """A data set of 50 images, a predictor that can be made to fail, and how many images it has seen."""
    monkeypatch.setattr(partial_results, "WRITE_INTERVAL", 0)  # write after every batch
    images = np.arange(50, dtype=np.uint8).repeat(12).reshape(50, 2, 2, 3)
    data = DataSet("made", ("ant", "bee"), True, {"test": ArraySplit(images, np.arange(50) % 2)}, (2, 2))
    seen = []

    def predict(images, stop_at=None):
        if stop_at is not None and images.max() >= stop_at:
            raise KeyboardInterrupt
        seen.extend(images[:, 0, 0, 0].tolist())
        return brightness(images)

    return data, predict, seen


def left_behind(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("suffix", ["npz", "csv"])
@pytest.mark.parametrize("batch_size, later", [(8, 8), (8, 5), (7, 50)])
def test_an_interrupted_evaluation_resumes_without_counting_twice(counting, tmp_path, suffix, batch_size, later):
    data, predict, seen = counting
    file, told = tmp_path / f"a.{suffix}", []
    with pytest.raises(KeyboardInterrupt):
        training.evaluate(
            lambda images: predict(images, stop_at=30), data, batch_size=batch_size, predictions=file, weights="w"
        )
    done = len(seen)
    assert done == 30 // batch_size * batch_size and left_behind(tmp_path) == [f"a.{suffix}.parts"]
    result = training.evaluate(
        *(predict, data), batch_size=later, predictions=file, weights="w", progress=lambda *at: told.append(at)
    )
    assert seen == list(range(50)) and told[0] == (done, 50) and told[-1] == (50, 50)
    assert left_behind(tmp_path) == [file.name] and result.n == 50
    whole = training.evaluate(brightness, data).predictions
    for found in (result.predictions, Predictions.load(file)):
        assert found.ids == whole.ids and (found.labels == whole.labels).all()
        np.testing.assert_array_equal(found.probabilities, whole.probabilities)


def test_partial_results_of_a_different_evaluation_are_deleted(counting, tmp_path, caplog):
    data, predict, seen = counting
    file = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt):
        training.evaluate(
            lambda images: predict(images, stop_at=30), data, batch_size=8, predictions=file, weights="other"
        )
    seen.clear()
    training.evaluate(predict, data, predictions=file, weights="w")
    assert seen == list(range(50)) and "starts from the first image" in caplog.text
    mixed = dataclasses.replace(data, splits={"test": data.splits["test"].subset(np.arange(50)[::-1])})
    caplog.clear()
    found = training.evaluate(predict, mixed, predictions=file, weights="w").predictions
    assert "is overwritten" in caplog.text and found.ids[0] == "00049" and len(seen) == 100


def test_finished_predictions_are_not_computed_again(counting, tmp_path, caplog):
    data, predict, seen = counting
    caplog.set_level(logging.INFO, "keras_convnets")
    first = training.evaluate(predict, data, predictions=tmp_path / "a.npz", weights="w")
    again = training.evaluate(predict, data, predictions=tmp_path / "a.npz", weights="w")
    assert len(seen) == 50 and again.to_dict() == first.to_dict() and "already holds these predictions" in caplog.text
    training.evaluate(predict, data, predictions=tmp_path / "a.npz")
    assert len(seen) == 100  # computed again, because the weights are unknown


def test_damaged_partial_results_are_computed_again(counting, tmp_path):
    data, predict, seen = counting
    file = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt):
        training.evaluate(lambda images: predict(images, stop_at=40), data, batch_size=8, predictions=file, weights="w")
    parts = sorted((tmp_path / "a.npz.parts").glob("*.npy"))
    assert [part.name for part in parts] == [f"{at:09d}.npy" for at in (0, 8, 16, 24, 32)]
    parts[2].write_bytes(parts[2].read_bytes()[:100])
    seen.clear()
    training.evaluate(predict, data, batch_size=8, predictions=file, weights="w")
    assert seen == list(range(16, 50)) and left_behind(tmp_path) == ["a.npz"]


def test_an_error_leaves_no_files(counting, tmp_path):
    data, *_ = counting
    with pytest.raises(UserError, match="the model has 3 classes"):
        training.evaluate(lambda images: np.ones((len(images), 3)), data, predictions=tmp_path / "a.npz", weights="w")
    with pytest.raises(UserError, match="must end in .npz or .csv"):
        training.evaluate(brightness, data, predictions=tmp_path / "a.txt")
    assert left_behind(tmp_path) == []


def test_two_simultaneous_evaluations_to_one_file_are_an_error(tmp_path):
    with (
        partial_results.open_partial_results(tmp_path / "a.npz", "key"),
        pytest.raises(UserError, match="being evaluated into"),
    ):
        with partial_results.open_partial_results(tmp_path / "a.npz", "key"):
            pass


def test_the_fingerprint_depends_on_the_weights_of_a_keras_model(tmp_path, counting):
    data, *_ = counting
    model = keras.Sequential([keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])
    first = training.evaluate(model, data, predictions=tmp_path / "a.npz").predictions.fingerprint
    assert first and training.evaluate(model, data, predictions=tmp_path / "a.npz").predictions.fingerprint == first
    model.layers[-1].kernel.assign_add(np.ones((12, 2)))
    assert training.evaluate(model, data, predictions=tmp_path / "a.npz").predictions.fingerprint != first
