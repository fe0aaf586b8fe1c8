"""What a folder's files are good for: each that training would skip, or use otherwise than one may think."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_convnets.files import write_text
from keras_convnets.images.decoding import decode_image
from keras_convnets.training.data.folder import QUARANTINE, Survey, listed_name, survey
from keras_convnets.training.data.integrity import outcomes, remarks
from keras_convnets.training.data.parallel import parallel_map
from keras_convnets.training.data.splits import FileSplit, file_kind

SKIPPED, USED, NOT_READ, REFUSED = "skipped", "used", "not read", "refused"


@dataclass(frozen=True)
class Finding:
    """What is to be said of one file or folder.

    Attributes:
        path: relative to the folder, with slashes; what is no visible character as `printable` writes it.
        kind: such as "truncated" or "CMYK".
        fate: what training does with the file: "skipped" or "used"; "not read" of what lies beside the splits or the
            classes; "refused" where training refuses the whole folder.
        detail: why it is skipped or refused, or as what it is used.
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
        return self._of(SKIPPED)

    @property
    def refused(self) -> tuple[Finding, ...]:
        """Those for which training refuses the folder."""
        return self._of(REFUSED)

    def _of(self, fate: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.fate == fate)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        counts = {"files": self.files, "skipped": len(self.skipped), "refused": len(self.refused)}
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
    """Decode every image of a folder with the ops that training uses, in parallel, and report defects and anomalies.

    JPEG data carry no checksum: damage that libjpeg decodes to something, with a warning of its own at most, is found
    neither here nor by training. Data that end early are found. What has the folder refused is among the findings.

    Args:
        folder: as `load_dataset` takes it; a list `quarantine.txt` in it is not regarded.
        progress: called with (files done, files in all).

    Raises:
        UserError: if a folder can't be read.
    """
    folder = Path(folder)
    found = survey(folder)
    paths = sorted((path for split in found.splits.values() for path in split.paths), key=os.fsencode)
    encoded = FileSplit(paths, np.zeros(len(paths), np.int64)).encoded_in_order()
    decoded = parallel_map(encoded, lambda data, label, position: tf.size(decode_image(data)))
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
    findings += _layout_findings(folder, found)
    looked_at = len(paths) + len(found.others)
    return Verification(folder, looked_at, tuple(sorted(findings, key=lambda finding: finding.path)))


def _layout_findings(folder: Path, found: Survey) -> list[Finding]:
    """Return the findings on file locations, and on files that are not decoded."""
    converted = "{} files are not read; data prepare converts those that Pillow reads"
    found_at = [
        *((path, "other type", SKIPPED, converted.format(path.suffix.lower())) for path in found.others),
        *((path, "beside", NOT_READ, "it lies beside the splits or the classes") for path in found.beside),
        *((path, "empty class", USED, "this split holds no images of it") for path in found.empty),
        *((problem.path, problem.kind, REFUSED, problem.sentence) for problem in found.problems),
    ]
    return [Finding(listed_name(path, folder), kind, fate, detail) for path, kind, fate, detail in found_at]
