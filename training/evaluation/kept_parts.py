"""The finished parts of an evaluation, kept in files until it ends: an interrupted one resumes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.files import atomic_file, exclusive_lock, read_json, wrap_write_errors, write_json
from keras_convnets.training.data import Split
from keras_convnets.training.data.splits import check_count
from keras_convnets.training.evaluation.predictions import Predictions
from keras_convnets.version import __version__

# What the folder of parts is called after the file that they become.
ENDING = ".parts"
KEY = "key.json"
# A part is written so often: what an interruption costs, in seconds.
SECONDS = 10.0
log = logging.getLogger("keras_convnets")


def fingerprint_of(weights: str, split: Split, *facts: str) -> str:
    """Return 64 hexadecimal digits that change with the weights, the images, their order, and facts such as a protocol.

    Args:
        weights: a text that changes with the weights.
        split: the images.
        facts: what else the answers depend on.
    """
    ids = hashlib.sha256("\n".join(split.ids()).encode()).hexdigest()
    text = json.dumps([__version__, weights, split.fingerprint(), ids, *facts])
    return hashlib.sha256(text.encode()).hexdigest()


def finished(file: Path, fingerprint: str) -> Predictions | None:
    """Return what a file of predictions holds where it is what would be computed again; None where it is not."""
    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    try:
        found = Predictions.load(file)
    except UserError:
        found = None
    if found is not None and found.fingerprint == fingerprint:
        log.info("%s holds these predictions already.", printable(file))
        return found
    log.warning("%s holds the predictions of other weights, data or protocols; it is replaced.", printable(file))
    return None


class KeptParts:
    """Answers that are written to a folder while they come.

    Args:
        folder: theirs alone.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._pending: list[np.ndarray] = []
        self._written, self._last = 0, time.monotonic()

    def read(self) -> list[np.ndarray]:
        """Return the parts that are there, float32 [b, classes] each, in order; what follows a damaged one goes."""
        parts: list[np.ndarray] = []
        for path in sorted(self._folder.glob("*.npy")):
            rows = _rows(path) if path.stem == f"{self._written:09d}" else None
            if rows is None or (parts and rows.shape[1] != parts[0].shape[1]):
                path.unlink()
                continue
            parts.append(rows)
            self._written += len(rows)
        return parts

    def add(self, rows: np.ndarray) -> None:
        """Take in the answers for the next images, [b, classes]."""
        self._pending.append(np.asarray(rows, np.float32))
        if time.monotonic() - self._last >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part."""
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        with atomic_file(self._folder / f"{self._written:09d}.npy") as temporary:
            np.save(temporary, rows)
        self._written += len(rows)
        self._pending, self._last = [], time.monotonic()


def _rows(path: Path) -> np.ndarray | None:
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return rows if rows.ndim == 2 and rows.dtype == np.float32 and len(rows) else None


@contextlib.contextmanager
def kept_parts(file: Path, fingerprint: str) -> Iterator[KeptParts]:
    """Give the parts of a file that is yet to be written; their folder is kept until all is done.

    Parts of other weights, data or protocols are deleted, which a warning says.

    Args:
        file: the file of predictions; the parts lie beside it, in a folder of its name and ".parts".
        fingerprint: as `fingerprint_of` gives it.

    Raises:
        UserError: if another process writes them.
    """
    folder = file.with_name(file.name + ENDING)
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, "evaluated into"):
        if (folder / KEY).exists() and read_json(folder / KEY, "key of kept parts") != fingerprint:
            log.warning(
                "%s holds parts of an evaluation with other weights, data or protocol; this one starts anew.",
                printable(folder),
            )
            for path in folder.glob("*.npy"):
                path.unlink()
        write_json(folder / KEY, fingerprint)
        parts = KeptParts(folder)
        try:
            yield parts
        except BaseException:
            parts.flush()
            if any(folder.glob("*.npy")):
                log.warning("what is evaluated is kept in %s; the same command resumes.", printable(folder))
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def collected(
    answers_of: Callable[[Split], Iterator[np.ndarray]],
    split: Split,
    progress: Callable[[int, int], None] | None = None,
    parts: KeptParts | None = None,
) -> np.ndarray:
    """Return the answers for every image of a split, float32 [n, classes]; those that are kept are not asked for again.

    Args:
        answers_of: gives the answers for the images of a split in their order, in parts [b, classes].
        split: the images.
        progress: called with (images done, images in all).
        parts: where answers are kept, if anywhere.
    """
    found = parts.read() if parts else []
    done = sum(map(len, found))
    if progress and done:
        progress(done, split.size)
    rest = split if not done else split.subset(range(done, split.size))
    for rows in answers_of(rest) if rest.size else ():
        found.append(np.asarray(rows))
        done += len(rows)
        if parts:
            parts.add(rows)
        if progress:
            progress(done, split.size)
    check_count(done, split.size)
    return np.concatenate(found)
