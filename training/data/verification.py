"""What a folder's files are good for: each that training would skip, or use otherwise than one may think."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from PIL import Image

from keras_convnets._tf_ops import decode_image
from keras_convnets.display import printable
from keras_convnets.files import write_text
from keras_convnets.training.data.broken import outcomes, remarks
from keras_convnets.training.data.folder import QUARANTINE, SUFFIXES, list_folder, listed_name
from keras_convnets.training.data.splits import FileSplit, file_kind

SKIPPED, USED = "skipped", "used"


@dataclass(frozen=True)
class Finding:
    """What is to be said of one file.

    Attributes:
        path: relative to the folder, with slashes; what is no visible character as `printable` writes it.
        kind: such as "truncated" or "CMYK".
        fate: what training does with the file: "skipped" or "used".
        detail: why it is skipped, or as what it is used.
    """

    path: str
    kind: str
    fate: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """What was found in a folder.

    Attributes:
        folder: the folder.
        files: how many files were looked at.
        findings: one for each thing to be said, sorted by path; a sound file has none.
    """

    folder: Path
    files: int
    findings: tuple[Finding, ...]

    @property
    def skipped(self) -> tuple[Finding, ...]:
        """Those of files that training skips, one a file."""
        return tuple(finding for finding in self.findings if finding.fate == SKIPPED)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        counts = {"files": self.files, "skipped": len(self.skipped)}
        return {"folder": str(self.folder), **counts, "findings": [vars(finding) for finding in self.findings]}

    def write_quarantine(self, path: str | os.PathLike | None = None) -> Path:
        """Write the list of the files that are skipped, one a line: path, a tab, the reason.

        Args:
            path: of the list; by default `quarantine.txt` in the folder, where `load_dataset` looks for it.

        Returns:
            The path.
        """
        target = Path(path) if path else self.folder / QUARANTINE
        write_text(target, "".join(f"{item.path}\t{item.kind}: {item.detail}\n" for item in self.skipped))
        return target


def verify_folder(folder: str | os.PathLike, progress: Callable[[int, int], None] | None = None) -> Verification:
    """Decode every image of a folder with the ops that training uses, in parallel, and say what is wrong or unusual.

    JPEG data carry no checksum: damage that libjpeg decodes to something, with a warning of its own at most, is found
    neither here nor by training. Data that end early are found.

    Args:
        folder: as `load_dataset` takes it; a list `quarantine.txt` in it is not regarded.
        progress: called with (files done, files in all).

    Raises:
        UserError: if the folder has no classes or a class no images.
    """
    folder = Path(folder)
    paths = sorted(path for split in list_folder(folder).values() for path in split.paths)
    encoded = FileSplit(paths, [0] * len(paths)).encoded_in_order()
    decoded = encoded.map(
        lambda data, label, position: tf.size(decode_image(data)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    findings = []
    for position, size in enumerate(outcomes(decoded)):
        path = paths[position]
        name = listed_name(path, folder)
        if size is None:
            kind, reason = file_kind(path)
            findings.append(Finding(name, kind, SKIPPED, reason))
        else:
            findings += [Finding(name, kind, USED, seen) for kind, seen in remarks(path.read_bytes(), path.suffix)]
        if progress:
            progress(position + 1, len(paths))
    others = _other_images({path.parent for path in paths})
    findings += [
        Finding(listed_name(path, folder), "other type", SKIPPED, f"{printable(path.suffix)} files are not read")
        for path in others
    ]
    return Verification(folder, len(paths) + len(others), tuple(sorted(findings, key=lambda finding: finding.path)))


def _other_images(folders: set[Path]) -> list[Path]:
    """Return the files of class folders that are images by their names, but of a type that is not read."""
    known = set(Image.registered_extensions()) - set(SUFFIXES)
    return [path for folder in folders for path in folder.iterdir() if path.suffix.lower() in known]
