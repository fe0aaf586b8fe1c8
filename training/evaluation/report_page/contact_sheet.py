"""The contact sheet: thumbnails of the misclassified images with the highest confidence."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from keras_convnets.images.decoding import decode_image
from keras_convnets.training.data import Split
from keras_convnets.training.data.integrity import outcomes
from keras_convnets.training.evaluation.predictions import Predictions
from keras_convnets.training.evaluation.report_page.html import Html, element, name, table

MOST_IMAGES = 24
# Longer side of a thumbnail, in pixels. Images of at most half of it are stored as PNG and enlarged without smoothing.
SIDE = 192
# JPEG quality of the thumbnails.
QUALITY = 82


def most_confident_errors(found: Predictions, most: int = MOST_IMAGES) -> np.ndarray:
    """Return the positions of the misclassified images with the highest predicted probabilities, highest first."""
    answers = found.probabilities.argmax(axis=1)
    confidence = np.where(answers == found.labels, -1, found.probabilities.max(axis=1))
    order = np.argsort(-confidence, kind="stable")[:most]
    return order[confidence[order] >= 0]


def contact_sheet(found: Predictions, images: Split | None) -> Html:
    """Return the most confident errors with predicted and true class: with thumbnails, or as a table without images.

    Args:
        found: the predictions.
        images: a split with the images, which are looked up by their ids; None if they are not available.
    """
    positions = most_confident_errors(found)
    pictures = thumbnails(images, [found.ids[position] for position in positions])
    if not pictures:
        heads = ("image", "predicted class", "probability", "true class", "probability of the true class")
        return table(heads, (_row(found, position) for position in positions), texts=(0, 1, 3))
    return element("div", *(_cell(found, position, pictures) for position in positions), class_="sheet")


def _row(found: Predictions, position: int) -> list[str]:
    row, truth = found.probabilities[position], found.labels[position]
    answer = row.argmax()
    return [
        *(name(found.ids[position]), name(found.class_names[answer]), f"{row[answer]:.1%}"),
        *(name(found.class_names[truth]), f"{row[truth]:.1%}"),
    ]


def _cell(found: Predictions, position: int, pictures: dict[str, Html]) -> Html:
    identity, answer, confidence, truth, truth_probability = _row(found, position)
    caption = element(
        "figcaption",
        *("predicted: ", element("b", answer), f" {confidence}", element("br")),
        *(f"true: {truth} {truth_probability}", element("br")),
        element("span", identity, class_="soft"),
    )
    picture = pictures.get(found.ids[position]) or element("div", "image not available", class_="none")
    return element("figure", picture, caption)


def thumbnails(images: Split | None, ids: Sequence[str]) -> dict[str, Html]:
    """Return <img> elements with embedded thumbnails by image id; missing and undecodable images are left out."""
    if images is None:
        return {}
    known = {identity: position for position, identity in enumerate(images.ids())}
    wanted = sorted({known[identity] for identity in ids if identity in known})
    if not wanted:
        return {}
    chosen = images.originals.subset(np.array(wanted))
    decoded = outcomes(chosen.encoded_in_order().map(lambda encoded, label, position: decode_image(encoded)))
    pairs = zip(chosen.ids(), decoded, strict=True)
    return {identity: _thumbnail(pixels.numpy()) for identity, pixels in pairs if pixels is not None}


def _thumbnail(pixels: np.ndarray) -> Html:
    image = Image.fromarray(pixels)
    is_small = max(image.size) <= SIDE // 2
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    form = "PNG" if is_small else "JPEG"
    image.save(stream, form, **({} if is_small else {"quality": QUALITY}))
    data = base64.b64encode(stream.getvalue()).decode()
    source = f"data:image/{form.lower()};base64,{data}"
    return element("img", src=source, alt="", **({"class_": "small"} if is_small else {}))
