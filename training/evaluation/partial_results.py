"""Partial results of an evaluation, written to disk so that an interrupted evaluation can be resumed."""

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

# The folder of partial results has the name of the predictions file with this suffix.
SUFFIX = ".parts"
KEY = "key.json"
# Seconds between writes: an upper bound of the work lost by an interruption.
WRITE_INTERVAL = 10.0
log = logging.getLogger("keras_convnets")


def fingerprint_of(weights: str, split: Split, *settings: str) -> str:
    """Return the sha256 that identifies an evaluation, as 64 hexadecimal digits.

    Args:
        weights: a string that identifies the weights.
        split: the images; their order matters.
        settings: everything else that the predictions depend on, such as the protocol.
    """
    ids = hashlib.sha256("\n".join(split.ids()).encode()).hexdigest()
    text = json.dumps([__version__, weights, split.fingerprint(), ids, *settings])
    return hashlib.sha256(text.encode()).hexdigest()


def load_finished(file: Path, fingerprint: str) -> Predictions | None:
    """Return the predictions in a .npz file if it has this fingerprint; otherwise None."""
    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    try:
        found = Predictions.load(file)
    except UserError:
        found = None
    if found is not None and found.fingerprint == fingerprint:
        log.info("%s already holds these predictions and is not computed again.", printable(file))
        return found
    log.warning("%s holds predictions of different weights, data or protocol and is overwritten.", printable(file))
    return None


class PartialResults:
    """Probabilities of the first images of a split, written to a folder while they are computed.

    Args:
        folder: a folder used for nothing else.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._pending: list[np.ndarray] = []
        self._written, self._last = 0, time.monotonic()

    def read(self) -> list[np.ndarray]:
        """Return the stored arrays in order, float32 [b, classes] each.

        Damaged files, and all files that do not continue the sequence of images, are deleted.
        """
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
        """Add the probabilities of the next images, [b, classes]."""
        self._pending.append(np.asarray(rows, np.float32))
        if time.monotonic() - self._last >= WRITE_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Write the probabilities added since the last write."""
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
def open_partial_results(file: Path, fingerprint: str) -> Iterator[PartialResults]:
    """Open the partial results of an evaluation; a context manager.

    The folder is deleted on success and kept after an exception. Partial results with a different fingerprint are
    deleted with a warning.

    Args:
        file: the predictions file; the folder is next to it, with the suffix ".parts".
        fingerprint: as `fingerprint_of` returns it.

    Raises:
        UserError: if another process writes to the folder.
    """
    folder = file.with_name(file.name + SUFFIX)
    with wrap_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, "evaluated into"):
        if (folder / KEY).exists() and read_json(folder / KEY, "key of partial results") != fingerprint:
            log.warning(
                "%s holds partial results of different weights, data or protocol; they are deleted and the evaluation "
                "starts from the first image.",
                printable(folder),
            )
            for path in folder.glob("*.npy"):
                path.unlink()
        write_json(folder / KEY, fingerprint)
        partial = PartialResults(folder)
        try:
            yield partial
        except BaseException:
            partial.flush()
            if any(folder.glob("*.npy")):
                log.warning("partial results are kept in %s; run the same command to resume.", printable(folder))
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


def collect(
    predict: Callable[[Split], Iterator[np.ndarray]],
    split: Split,
    progress: Callable[[int, int], None] | None = None,
    partial: PartialResults | None = None,
) -> np.ndarray:
    """Return the probabilities of all images of a split, float32 [n, classes], resuming from partial results.

    Args:
        predict: yields the probabilities of the images of a split in their order, in batches [b, classes].
        split: the images.
        progress: called with (number of finished images, number of images).
        partial: partial results to resume from and to write to; None to keep none.
    """
    found = partial.read() if partial else []
    done = sum(map(len, found))
    if progress and done:
        progress(done, split.size)
    rest = split if not done else split.subset(range(done, split.size))
    for rows in predict(rest) if rest.size else ():
        found.append(np.asarray(rows))
        done += len(rows)
        if partial:
            partial.add(rows)
        if progress:
            progress(done, split.size)
    check_count(done, split.size)
    return np.concatenate(found)
