"""The HTML report: content, escaping of names from data, and self-containedness."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from keras_convnets.classes import imagenet_classes
from keras_convnets.errors import UserError
from keras_convnets.training.data import ArraySplit, DataSet
from keras_convnets.training.data.integrity import BrokenImage
from keras_convnets.training.evaluation import Evaluation, Predictions, ensemble, report
from keras_convnets.training.evaluation.calibration import reliability
from keras_convnets.training.evaluation.report_page import page as page_module
from keras_convnets.training.evaluation.report_page import pictures
from keras_convnets.training.evaluation.report_page.contact_sheet import most_confident_errors
from keras_convnets.training.evaluation.report_page.html import Html, element

EVIL = ('<script>alert(1)</script>', '" onload="alert(2)', "a & b]]>", "$x^2$", "naïve", "</style><b>")  # fmt: skip


def made(classes=EVIL, n=60, seed=0, source="runs/a", strength=2.5, **fields):
    rng = np.random.default_rng(11)
    labels = rng.integers(0, len(classes), n)
    logits = np.random.default_rng(seed).normal(size=(n, len(classes))) * 2 + strength * np.eye(len(classes))[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ids = tuple(f"{number:05d}" for number in range(n))
    values = {"source": source, "data": "made", "split": "test", "protocol": "center", "class_names": tuple(classes)}
    return Predictions(**{**values, "ids": ids, "labels": labels, "probabilities": probabilities, **fields})


class Page(HTMLParser):
    """A parsed page: its elements with attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.texts = [], []
        self.feed(self.source)
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(2).integers(0, 256, (60, 10, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(60)
    return DataSet("made", EVIL, True, {"test": ArraySplit(images, made().labels)}, (10, 8))


@pytest.fixture(scope="module")
def page(data, tmp_path_factory):
    left_out = (BrokenImage("test", "a/<img src=x onerror=alert(3)>.jpg", "empty: 0 bytes"),)
    several = [made(source="<i>one</i>", left_out=left_out), made(seed=1, source="two")]
    folder = tmp_path_factory.mktemp("new") / "report"
    written = report(several, folder, images=data, ensemble=ensemble(several), command="keras-convnets evaluate <x>")
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    return Page(written)


def test_names_from_data_are_escaped(page):
    assert not {tag for tag, _ in page.elements} & {"script", "i", "iframe", "link", "object"}
    allowed = {"class", "id", "href", "src", "alt", "tabindex", "lang", "charset", "name", "content", "http-equiv"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        if not page.source.startswith("<svg") and tag in ("table", "td", "th", "figure", "img", "p", "a", "h2"):
            assert set(attributes) <= allowed
    for name in EVIL:
        assert name in page.text
    assert "a/<img src=x onerror=alert(3)>.jpg" in page.text and "keras-convnets evaluate <x>" in page.text


def test_no_external_resources(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/")), (tag, value)
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    assert not re.search(r"url\((?!#)", page.source) and "@import" not in page.source


def test_internal_links_and_ids_are_consistent(page):
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    links = [attributes[name][1:] for _, attributes in page.elements for name in ("href", "xlink:href")
             if attributes.get(name, "").startswith("#")]  # fmt: skip
    assert set(links) <= set(names) and "classifier-1" in links
    assert set(re.findall(r"url\(#([^)]+)\)", page.source)) <= set(names)


def test_errors_comparisons_and_images_left_out_are_shown(page):
    figures = Evaluation.of_predictions(made())
    low, high = figures.top1_error_interval
    assert f"{1 - figures.top1:.2%}" in page.text and f"{low:.2%} to {high:.2%}" in page.text
    assert "McNemar" in page.text and "<i>one</i> + two" in page.text and "Contribution of each member" in page.text
    assert "1 of the 61 images do not decode" in page.text and "empty: 0 bytes" in page.text
    assert "expected calibration error" in page.text and "tensorflow" in page.text


def test_most_confident_errors_have_the_right_thumbnails(page, data):
    positions = most_confident_errors(made())
    found = made()
    answers = found.probabilities.argmax(1)
    wrong = np.flatnonzero(answers != found.labels)
    assert set(positions) == set(wrong[np.argsort(-found.probabilities.max(1)[wrong])][:24])
    shown = [attributes["src"] for tag, attributes in page.elements if tag == "img"][: len(positions)]
    for position, source in zip(positions, shown, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
        assert (pixels == data.splits["test"].images[position]).all()


def test_figures_are_deterministic():
    found = reliability(made().probabilities, made().labels)
    assert len({pictures.reliability_picture(found, "before", "a-") for _ in range(2)}) == 1


def test_errors_are_a_table_without_images(tmp_path):
    found = Page(report([made()], tmp_path))
    assert not [tag for tag, _ in found.elements if tag == "img"] and "probability of the true class" in found.text


def test_a_thousand_classes(tmp_path):
    names = imagenet_classes().names
    found = Page(report([made(names, n=400, strength=6)], tmp_path))
    assert "All 1,000 classes" in found.text and "among 4 x 4 classes" in found.text
    assert "Most confused pairs of classes" in found.text and "classes without images" in found.text
    assert len(found.source) < 2_000_000


def test_all_correct_and_all_wrong(tmp_path):
    found = made(("a", "b", "c"), n=3, labels=[0, 1, 2], probabilities=np.eye(3)[[0, 2, 1]])
    right = Page(report([found.at([0])], tmp_path))
    assert "All images are classified correctly." in right.text and "needs at least two images" in right.text
    wrong = Page(report([found.at([1, 2])], tmp_path))
    assert "2 of 2 images are misclassified" in wrong.text


def test_classifiers_on_different_images_are_not_compared():
    text = page_module._comparisons([made(), made(n=20)], None)
    assert "not compared: runs/a and runs/a have predictions for different images" in text


def test_invalid_results_and_folders_are_errors(tmp_path):
    with pytest.raises(UserError, match="needs at least one result"):
        report([], tmp_path)
    figures = Evaluation("d", "test", "center", 2, 1.0, None, ("a", "b"), np.eye(2, dtype=int))
    with pytest.raises(UserError, match="a result has no predictions"):
        report([figures], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        report([made()], tmp_path / "file")


def test_confused_classes_are_adjacent():
    counts = np.diag([9] * 6)
    counts[0, 5], counts[5, 2], counts[3, 1] = 5, 4, 3
    order = pictures.confusion_order(counts).tolist()
    assert sorted(order) == list(range(6))
    assert {order.index(0), order.index(5), order.index(2)} == set(range(3))
    assert abs(order.index(3) - order.index(1)) == 1
    assert pictures.most_confused(counts, 2) == [(0, 5, 5), (5, 2, 4)]
    assert set(pictures.most_confused_classes(counts)) == {0, 5, 2, 3, 1}
    assert pictures.most_confused(np.eye(3, dtype=int), 5) == []


def test_elements_escape_text():
    assert element("p", "<b>", Html("<br>"), None, 3, class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<br>3</p>'
    assert element("img", src="x") == '<img src="x">'
