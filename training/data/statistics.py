"""What a data set holds: counts, sizes, colours, and images that occur twice."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.images.decoding import decode_image
from keras_convnets.training.augmentation import pixel_components
from keras_convnets.training.data.dataset import DataSet
from keras_convnets.training.data.folder import NAMES_SHOWN, Survey, listed_name
from keras_convnets.training.data.integrity import EXTREME_RATIO, TINY_SIDE, image_type, outcomes, size_remarks
from keras_convnets.training.data.parallel import parallel_map
from keras_convnets.training.data.splits import ArraySplit, FileSplit, Split

HASH_SIDE = 8
# Number of leading bytes that identify an image's format.
HEAD = 16
GROUPS_SHOWN = 10


def data_statistics(data: DataSet | Survey, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Describe a data set in one pass over its images; those that do not decode are counted and else left out.

    Args:
        data: not yet brought to one size, so that sizes are those of the source; or what a folder holds that training
            refuses.
        progress: called with (images done, images in all).

    Returns:
        Plain data for JSON: "name"; "problems", the reasons why a folder is refused; "splits", for each its
        "images", "broken" and, where images decode, "classes" (name -> count), "empty", "tiny" and "extreme" (names of
        classes without images, of images whose shorter side is below 16 pixels, and of those more than ten times as
        long as wide), "class_counts", "width" and "height" in pixels (each min, median, max), "formats" (name ->
        fraction of the images), "mean" and "std" of the channels RGB in 0-255, "components" (principal components of
        the pixels scaled to 0-1, one a row, that of the largest variance first) and "eigenvalues" (their variances);
        "identical", groups of images with the same pixels; "similar", groups of others whose 8 x 8 average hash is the
        same, which should be inspected. A group is a list of [split, image].
    """
    total, done = sum(split.size for split in data.splits.values()), 0
    seen = {}
    problems = [problem.sentence for problem in data.problems] if isinstance(data, Survey) else []
    facts: dict[str, Any] = {"name": data.name, "problems": problems, "splits": {}}
    for name, split in data.splits.items():
        seen[name] = _Seen()
        start = done

        def advance(count: int, start: int = start) -> None:
            if progress:
                progress(start + count, total)

        facts["splits"][name] = _split_facts(split, data.class_names, seen[name], advance)
        done += split.size
    return facts | _duplicates(data, seen)


@dataclass
class _Seen:
    """The results of one pass over a split's images, with a row for each image that can be decoded."""

    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    formats: Counter = field(default_factory=Counter)
    contents: list[bytes] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)


def _split_facts(
    split: Split, class_names: Sequence[str], seen: _Seen, advance: Callable[[int], None]
) -> dict[str, Any]:
    try:
        components, eigenvalues, mean = pixel_components(_pixels(split, seen, advance))
    except UserError:
        if seen.labels:
            raise
        return {"images": 0, "broken": split.size}
    known = min(seen.labels) >= 0
    counts: list[int] = np.bincount(seen.labels, minlength=len(class_names)).tolist() if known else []
    heights, widths = zip(*seen.sizes, strict=True)
    variances = (components**2 * eigenvalues).sum(axis=1)
    return {
        "images": len(seen.labels),
        "broken": split.size - len(seen.labels),
        "classes": dict(zip(class_names, counts, strict=False)),
        "empty": [name for name, count in zip(class_names, counts, strict=False) if not count],
        **_odd_sizes(split, seen),
        "class_counts": _spread(counts) if counts else None,
        "width": _spread(widths),
        "height": _spread(heights),
        "formats": {kind: count / len(seen.labels) for kind, count in seen.formats.most_common()},
        "mean": (mean * 255).tolist(),
        "std": (np.sqrt(variances) * 255).tolist(),
        "components": components.T.tolist(),
        "eigenvalues": eigenvalues.tolist(),
    }


def _odd_sizes(split: Split, seen: _Seen) -> dict[str, list[str]]:
    """Return the names of images that are very small or very narrow; of data in memory all have one size."""
    odd: dict[str, list[str]] = {"tiny": [], "extreme": []}
    if isinstance(split, ArraySplit):
        return odd
    names = _image_names(split)
    for position, size in zip(seen.positions, seen.sizes, strict=True):
        for kind, _ in size_remarks(*size):
            odd[kind].append(names(position))
    return odd


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": int(min(values)), "median": float(np.median(values)), "max": int(max(values))}


def _pixels(split: Split, seen: _Seen, advance: Callable[[int], None]) -> Iterator[np.ndarray]:
    """Give each image as a batch of one, uint8 [1, H, W, 3], and note what else is asked of it."""

    def load(encoded: tf.Tensor, label: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image = decode_image(encoded)
        grey = tf.reduce_mean(tf.cast(image, tf.float32), axis=-1, keepdims=True)
        small = tf.image.resize(grey, [HASH_SIDE, HASH_SIDE], "area")
        return image, tf.strings.substr(encoded, 0, HEAD), label, position, small > tf.reduce_mean(small)

    in_memory = isinstance(split, ArraySplit)
    images = parallel_map(split.encoded_in_order(), load)
    for count, element in enumerate(outcomes(images.prefetch(4)), 1):
        advance(count)
        if element is None:
            continue
        image, head, label, position, bits = (tensor.numpy() for tensor in element)
        seen.positions.append(int(position))
        seen.labels.append(int(label))
        seen.sizes.append(image.shape[:2])
        seen.formats["in memory" if in_memory else image_type(head)] += 1
        content = hashlib.sha256(repr(image.shape).encode())
        content.update(np.ascontiguousarray(image).data)
        seen.contents.append(content.digest())
        seen.hashes.append(np.packbits(bits).tobytes())
        yield image[np.newaxis]


def _duplicates(data: DataSet | Survey, seen: dict[str, _Seen]) -> dict[str, Any]:
    by_content, by_hash = defaultdict(list), defaultdict(list)
    names = {name: _image_names(split) for name, split in data.splits.items()}
    for split, rows in seen.items():
        for position, content, short in zip(rows.positions, rows.contents, rows.hashes, strict=True):
            # Of images with the same pixels one stands for all among the similar ones.
            if content not in by_content:
                by_hash[short].append((split, position))
            by_content[content].append((split, position))

    def named(groups: dict[bytes, list[tuple[str, int]]]) -> list[list[list[str]]]:
        several = [group for group in groups.values() if len(group) > 1]
        return [[[split, names[split](at)] for split, at in group] for group in several]

    return {"identical": named(by_content), "similar": named(by_hash)}


def _image_names(split: Split) -> Callable[[int], str]:
    """Return what names an image by its position: a file's path from the folder that holds all classes."""
    if not isinstance(split, FileSplit):
        return lambda position: f"image {position}"
    root = Path(os.path.commonpath([os.path.dirname(path.parent) for path in split.paths]))
    return lambda position: listed_name(split.paths[position], root)


def statistics_text(facts: dict[str, Any]) -> str:
    """Return what `data_statistics` found as lines for a terminal."""
    lines = [printable(facts["name"]), *(f"refused in training: {printable(text)}" for text in facts["problems"])]
    for name, split in facts["splits"].items():
        broken = f", {split['broken']} more can't be read" if split["broken"] else ""
        lines.append(f"{name}: {split['images']:,} images{broken}")
        if not split["images"]:
            continue
        if split["class_counts"]:
            lines.append(f"  classes      {len(split['classes'])}, images of each: {_shown(split['class_counts'])}")
            if len(split["classes"]) <= GROUPS_SHOWN:
                lines += [f"    {printable(label)}: {count:,}" for label, count in split["classes"].items()]
        lines += _odd_lines(split)
        lines.append(f"  width        {_shown(split['width'])}")
        lines.append(f"  height       {_shown(split['height'])}")
        lines.append(
            f"  formats      {', '.join(f'{kind} {fraction:.1%}' for kind, fraction in split['formats'].items())}"
        )
        lines.append(f"  mean RGB     {_numbers(split['mean'], 2)}")
        lines.append(f"  std RGB      {_numbers(split['std'], 2)}")
        for vector, variance in zip(split["components"], split["eigenvalues"], strict=True):
            lines.append(f"  component    {_numbers(vector, 4)}  variance {variance:.5f}")
    for kind, meaning in (("identical", "the same pixels"), ("similar", "the same 8x8 average hash: look at them")):
        lines += _group_lines(kind, meaning, facts[kind])
    return "\n".join(lines)


def _odd_lines(split: dict[str, Any]) -> list[str]:
    meanings = {
        "empty": "no images of",
        "tiny": f"shorter side below {TINY_SIDE} pixels",
        "extreme": f"more than {EXTREME_RATIO} times as long as wide",
    }
    lines = []
    for kind, meaning in meanings.items():
        names = [printable(name) for name in split[kind]]
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        lines += [f"  {kind:<12} {len(names)} ({meaning}): {', '.join(names[:NAMES_SHOWN])}{more}"] if names else []
    return lines


def _group_lines(kind: str, meaning: str, groups: list[list[list[str]]]) -> list[str]:
    between = sum(len({split for split, _ in group}) > 1 for group in groups)
    lines = [f"{kind}: {len(groups)} groups, {between} of them over several splits ({meaning})"]
    lines += [f"  {' = '.join(f'{split} {image}' for split, image in group)}" for group in groups[:GROUPS_SHOWN]]
    return lines + ([f"  and {len(groups) - GROUPS_SHOWN} more; --json has all"] if len(groups) > GROUPS_SHOWN else [])


def _shown(spread: dict[str, float]) -> str:
    return f"min {spread['min']:,}  median {spread['median']:,g}  max {spread['max']:,}"


def _numbers(values: Sequence[float], digits: int) -> str:
    return "  ".join(f"{value:.{digits}f}" for value in values)
