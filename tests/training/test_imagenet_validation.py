"""ImageNet's flat validation folder: all ground-truth formats give the same labels."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from keras_convnets.classes import imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.training import load_dataset
from keras_convnets.training.data import imagenet_validation

# Labels of the first ten images: the development kit's ILSVRC2012_IDs, WordNet ids, and five of Caffe's indices.
DEVKIT = [490, 361, 171, 822, 297, 482, 13, 704, 599, 164]
WNIDS = "n01751748 n09193705 n02105855 n04263257 n03125729 n01735189 n02346627 n02776631 n03794056 n02328150".split()
CAFFE = [65, 970, 230, 809, 516]
NAMES = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 11)]


@pytest.fixture
def folder(tmp_path):
    """Ten small photographs in `imagenet/val`."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).save(buffer, "JPEG")
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "imagenet" / "val" / f"{name}.JPEG").write_bytes(buffer.getvalue())
    return tmp_path / "imagenet"


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def indices():
    return [imagenet_classes().ids.index(wnid) for wnid in WNIDS]


def caffe(folder):
    write(folder / "val.txt", [f"{name}.JPEG {label}" for name, label in zip(NAMES, indices(), strict=True)][::-1])


def kaggle(folder):
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 " for name, wnid in zip(NAMES, WNIDS, strict=True)]
    write(folder / "LOC_val_solution.csv", ["ImageId,PredictionString", *rows[::-1]])


def devkit(folder):
    write(folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", map(str, DEVKIT))


def synsets(folder):
    write(folder / "imagenet_2012_validation_synset_labels.txt", WNIDS)


def annotations(folder):
    for name, wnid in zip(NAMES, WNIDS, strict=True):
        item = f"<object>\n\t\t<name>{wnid}</name>\n</object>"
        write(folder / f"Annotations/CLS-LOC/val/{name}.xml", [f"<annotation>{item}{item}</annotation>"])


def in_names(folder):
    for name, wnid in zip(NAMES, WNIDS, strict=True):
        os.rename(folder / "val" / f"{name}.JPEG", folder / "val" / f"{name}_{wnid}.JPEG")


@pytest.mark.parametrize("place", ["imagenet", "imagenet/val"])
@pytest.mark.parametrize("truth", [caffe, kaggle, devkit, synsets, annotations, in_names, lambda folder: None])
def test_all_ground_truth_formats_give_the_same_labels(folder, truth, place):
    truth(folder)
    if truth is annotations and place.endswith("val"):
        for path in (folder / "Annotations/CLS-LOC/val").iterdir():
            os.rename(path, folder / "val" / path.name)
    data = load_dataset(folder.parent / place)
    split = data.splits["validation"]
    assert list(data.splits) == ["validation"] and data.evaluation_split == "validation"
    assert data.class_names == imagenet_classes().ids
    assert [data.class_names[label] for label in split.labels] == WNIDS
    assert split.labels.tolist()[:5] == CAFFE
    assert [path.name.partition(".")[0][:23] for path in split.paths] == NAMES


def test_tensorflow_datasets_has_the_same_class_order():
    """This file has the class names of `imagenet2012`, `imagenet_v2` etc.; `imagenet_resized` has a different order."""
    names = imagenet_validation._installed_lines("datasets/imagenet2012/labels.txt")
    assert tuple(names) == imagenet_classes().ids
    own = imagenet_validation._installed_lines(imagenet_validation.TFDS_IDS)
    assert sorted(own) == names != own and (own[0], own[-1]) == ("n02119789", "n03255030")


def test_labels_of_a_subset_of_the_images(folder):
    devkit(folder)
    for name in NAMES[::2]:
        (folder / "val" / f"{name}.JPEG").unlink()
    (folder / "val" / f"{NAMES[9]}.JPEG").write_bytes(b"broken")
    data = load_dataset(folder)
    assert data.splits["validation"].labels.tolist() == indices()[1::2]
    decodable, left_out = data.without_broken(0.5)
    assert decodable.splits["validation"].labels.tolist() == indices()[1:9:2]
    assert [os.path.basename(image.file) for image in left_out] == [f"{NAMES[9]}.JPEG"]


def test_kaggles_layout_is_read_from_its_root_and_from_the_images(folder, monkeypatch):
    monkeypatch.setattr(imagenet_validation, "_installed_lines", lambda name: [])
    root = folder.parent / "kaggle"
    images = root / "ILSVRC/Data/CLS-LOC"
    images.mkdir(parents=True)
    os.rename(folder / "val", images / "val")
    kaggle(root)
    for place in (root, root / "ILSVRC", images / "val"):
        assert load_dataset(place).splits["validation"].labels.tolist() == indices()


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("form", ["meta.mat", "map_clsloc.txt"])
def test_the_development_kits_class_order_is_read(folder, form, right):
    """A kit with a wrong order is an error, because all labels would be wrong."""
    ids = imagenet_validation._installed_lines(imagenet_validation.TFDS_IDS)
    ids = ids if right else ids[1:] + ids[:1]
    devkit(folder)
    place = folder / "ILSVRC2012_devkit_t12/data" / form
    if form == "meta.mat":
        matlab = pytest.importorskip("scipy.io")
        synsets = np.zeros((1002, 1), [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
        for row, (number, wnid) in enumerate([*enumerate(ids, 1), (1001, "n00001740"), (1002, "n00001930")]):
            synsets[row, 0] = (number, wnid, 0)
        matlab.savemat(place, {"synsets": synsets})
    else:
        write(place, [f"{wnid} {number} some_name" for number, wnid in enumerate(ids, 1)])
    if right:
        assert load_dataset(folder).splits["validation"].labels.tolist() == indices()
    else:
        with pytest.raises(UserError, match="agrees with ImageNet's labels for 0 of 10 images"):
            load_dataset(folder)


def test_development_kit_ids_as_indices_are_an_error(folder):
    write(folder / "val.txt", [f"{name}.JPEG {number - 1}" for name, number in zip(NAMES, DEVKIT, strict=True)])
    with pytest.raises(
        UserError, match=r"val.txt agrees .* 0 of 10 images, .* in a different order; it must contain WordNet ids"
    ):
        load_dataset(folder)


@pytest.mark.parametrize("truth, lines, sentence", [
    ("val.txt", [f"{NAMES[0]}.JPEG 1000"], r"line 1 of .*val.txt .* image and its class \(a WordNet id, or 0 to 999\)"),
    ("val.txt", [f"{NAMES[0]}.JPEG 65", "nothing"], r"line 2 of .*val.txt is 'nothing'"),
    ("val.txt", [f"{NAMES[0]}.JPEG 65"], r"val.txt has no label for ILSVRC2012_val_00000002.JPEG"),
    ("ILSVRC2012_validation_ground_truth.txt", ["490", "0"], r"line 2 of .* is '0'; it must be a class \(1 to"),
    ("ILSVRC2012_validation_ground_truth.txt", map(str, DEVKIT[:9]), r"has no label for ILSVRC2012_val_00000010.JPEG"),
    ("val/ILSVRC2012_val_00000001.xml", ["<name>n00000001</name>"], r"names n00000001; the annotation"),
    ("val/ILSVRC2012_val_00000001.xml", [f"<name>{WNIDS[0]}</name>"], r"00000002.xml can't be read"),
])  # fmt: skip
def test_invalid_ground_truth_is_an_error(folder, truth, lines, sentence):
    write(folder / truth, lines)
    with pytest.raises(UserError, match=sentence):
        load_dataset(folder)


def test_missing_ground_truth_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(imagenet_validation, "_installed_lines", lambda name: [])
    with pytest.raises(UserError, match=r"no ground truth for the images in .*val; put ILSVRC2012_validation_gr"):
        load_dataset(folder)
    devkit(folder)
    with pytest.raises(UserError, match=r"by ILSVRC2012_ID, which .* does not define .*; put .* meta.mat into"):
        load_dataset(folder)


def test_other_folders_are_not_detected(tmp_path, photograph_folder):
    assert not imagenet_validation.holds_validation(photograph_folder)
    assert not imagenet_validation.holds_validation(tmp_path / "nowhere")
