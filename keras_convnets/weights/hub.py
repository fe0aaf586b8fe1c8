"""Weights in repositories of the Hugging Face Hub: `timm/NAME` or `hf://OWNER/NAME[@REVISION]`.

huggingface_hub finds them, with its cache, tokens, mirrors (`HF_ENDPOINT`) and offline mode (`HF_HUB_OFFLINE`). What
the repository's config.json, preprocessor_config.json and README.md say of the weights goes into their record.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.extras import require
from keras_convnets.files import sha256
from keras_convnets.images.preprocessing import UNIT_SCALED, Preprocessing
from keras_convnets.images.view import KERNELS
from keras_convnets.weights.downloads import OFFLINE, DownloadError
from keras_convnets.weights.keras_reader import refusing
from keras_convnets.weights.pytorch_records import ARCHITECTURE_NAMES, PYTORCH_RECORDS
from keras_convnets.weights.record import HUB, Accuracy, WeightsRecord

WEIGHTS = "model.safetensors"
CONFIG, PREPROCESSOR, README = "config.json", "preprocessor_config.json", "README.md"
_ADDRESS = re.compile(r"(?:hf://)?(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# What the ResNets of Hugging Face's transformers are, by their layer_type and depths.
_TRANSFORMERS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
# Pillow's numbers of the ways to resample, which preprocessor_config.json has.
_RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}
log = logging.getLogger("keras_convnets")


def is_address(text: str) -> bool:
    """Whether a text names a repository of the hub: it begins with "hf://", or is "timm/NAME"."""
    return text.startswith(HUB) or re.fullmatch(r"timm/[\w.-]+(@[\w./-]+)?", text) is not None


def find(architecture: str, address: str) -> tuple[Path, WeightsRecord | None]:
    """Return the weights file of a repository, downloaded on first use, and its record.

    Args:
        architecture: the builder's name, such as "ResNet50v1_5".
        address: such as "timm/resnet50.tv_in1k" or "hf://microsoft/resnet-50@main".

    Returns:
        The path of the file in the hub's cache; and its record with the commit as `revision`, or None if the repository
        has no configuration: the file then speaks for itself, as any other.

    Raises:
        MissingExtra: if huggingface_hub is not installed.
        UserError: if the address is none, there is no such repository, revision or weights file, it can't be read
            with the token in use, or it holds another network.
        DownloadError: if the hub can't be reached, or is not to be, and the file is not in its cache.
    """
    require("hub", f"weights={address!r}")
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise UserError(f"weights is {address!r}; an address is hf://OWNER/NAME or hf://OWNER/NAME@REVISION.")
    repository, revision = found["repository"], found["revision"]
    known = next((record for record in PYTORCH_RECORDS if record.name == repository), None)
    if known is not None:
        _check_network(architecture, address, {"architecture": repository.partition("/")[2].partition(".")[0]})
    stated = _stated(repository, revision)
    if not stated.config and known is None:
        return _fetched(repository, revision, WEIGHTS), None
    _check_network(architecture, address, stated.config)
    record = _record(architecture, address, None if revision else known, stated)
    path = _fetched(repository, stated.commit or revision, WEIGHTS)
    # .../snapshots/COMMIT/model.safetensors
    commit = path.parent.name
    return path, dataclasses.replace(record, revision=commit, size=path.stat().st_size, sha256=sha256(path))


@dataclasses.dataclass(frozen=True)
class _Stated:
    """What a repository says beside its weights: the commit, and its files' contents; empty where it lacks them."""

    commit: str | None
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    readme: str


def _stated(repository: str, revision: str | None) -> _Stated:
    path = _fetched(repository, revision, CONFIG, needed=False)
    if path is None:
        return _Stated(None, {}, {}, "")
    # .../snapshots/COMMIT/config.json: all files are taken from this commit.
    commit = path.parent.name
    config = _json(path)
    preprocessor = _fetched(repository, commit, PREPROCESSOR, needed=False) if "model_type" in config else None
    readme = _fetched(repository, commit, README, needed=False)
    text = "" if readme is None else readme.read_text(encoding="utf-8", errors="replace")
    # timm's configurations have what concerns the weights in a part of its own, older ones in no part.
    return _Stated(
        commit,
        {**config, **(config.get("pretrained_cfg") or {})},
        {} if preprocessor is None else _json(preprocessor),
        text,
    )


def _fetched(repository: str, revision: str | None, file: str, needed: bool = True) -> Any:
    """Return the path of a repository's file; None if it has none and it is not needed."""
    from huggingface_hub import constants, errors, hf_hub_download

    address = f"{HUB}{repository}{f'@{revision}' if revision else ''}"
    offline = os.environ.get(OFFLINE, "").lower() not in ("", "0", "false") or constants.HF_HUB_OFFLINE
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=offline))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{address} can be read by those only who accepted its terms on its page; accept them, then log in "
            "(hf auth login, or HF_TOKEN)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no repository {address} that can be read; correct the name, or log in if it is private "
            "(hf auth login, or HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{address} has no such revision; give a branch, tag or commit of it.") from error
    except errors.LocalEntryNotFoundError as error:
        # A repository that is not reached must not be taken for one that has no configuration.
        if not needed and (offline or file != CONFIG):
            return None
        raise DownloadError(_unreachable(address, file, offline)) from error
    except errors.EntryNotFoundError as error:
        if not needed:
            return None
        raise UserError(
            f"{address} has no {file}, the only weights file that is read from a hub; download another and give its "
            "path."
        ) from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise DownloadError(f"{file} of {address} can't be downloaded ({reason}); try again later.") from error


def _unreachable(address: str, file: str, offline: bool) -> str:
    why = f"{OFFLINE} or HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
    return (
        f"{file} of {address} is not in the cache of huggingface_hub, and {why}; download it where the hub can be "
        f"reached (hf download {address.removeprefix(HUB).partition('@')[0]}), or give the path of a file."
    )


def _json(path: Path) -> dict[str, Any]:
    with refusing(path, "a configuration in JSON"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("it is no dictionary")
        return found


def _check_network(architecture: str, address: str, config: Mapping[str, Any]) -> None:
    """Refuse a repository that says it holds another network."""
    theirs = config.get("architecture")
    if config.get("model_type") == "resnet":
        theirs = _TRANSFORMERS.get((config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))))
        if config.get("downsample_in_first_stage") or config.get("downsample_in_bottleneck"):
            theirs = "another ResNet, which strides elsewhere"
    elif "model_type" in config:
        theirs = config["model_type"]
    if theirs is None:
        return
    ours, shown = ARCHITECTURE_NAMES.get(str(theirs)), printable(str(theirs), 100)
    if ours is None:
        raise UserError(
            f"{address} holds {shown}, which is none of the networks of this package; of timm and transformers it has "
            f"{', '.join(ARCHITECTURE_NAMES)}."
        )
    if ours != architecture:
        raise UserError(f"{address} holds {shown}, which is {ours} here and not {architecture}; build {ours} with it.")


def _record(architecture: str, address: str, known: WeightsRecord | None, stated: _Stated) -> WeightsRecord:
    """Return the record of a repository's weights: as it says itself, else as the table of timm does, else assumed."""
    name = address.removeprefix(HUB).partition("@")[0]
    base = known or WeightsRecord(
        architecture=architecture,
        name=address.partition("@")[0],
        file=WEIGHTS,
        locations=(HUB + name,),
        size=None,
        sha256="",
        preprocessing=UNIT_SCALED,
        accuracies=(),
        license="not stated",
        obtained=f"published as {name}",
        format="safetensors",
        data="not stated",
    )
    with refusing(Path(address) / CONFIG, "a configuration of weights"):
        facts = {**_view_facts(stated, address, known is None), **_class_facts(stated.config)}
    card = _card(stated.readme)
    license = stated.config.get("license") or card.license
    facts |= {"license": printable(str(license), 100)} if license else {}
    facts |= {} if known else {"accuracies": _accuracies(card)}
    return dataclasses.replace(base, **facts)


def _view_facts(stated: _Stated, address: str, warn: bool) -> dict[str, Any]:
    """Return what a repository says of preprocessing and view, as fields of a record; logs what is assumed."""
    config, other = stated.config, stated.preprocessor
    facts: dict[str, Any] = {}
    mean, std = (config.get(key) or other.get(f"image_{key}") for key in ("mean", "std"))
    if mean and std:
        facts["preprocessing"] = Preprocessing(mean=_scaled(mean), std=_scaled(std))
    elif warn:
        log.warning("%s does not say what its images were normalised with: ImageNet's means are assumed", address)
    size = other.get("size")
    side = (size.get("shortest_edge") or size.get("height")) if isinstance(size, Mapping) else size
    shape = config.get("input_size") or ((3, side, side) if side else None)
    if shape:
        channels, height, width = map(int, shape)
        facts["input_shape"] = (height, width, channels)
    elif warn:
        log.warning("%s does not say the size of its images: 224 by 224 is assumed", address)
    share = config.get("crop_pct") or other.get("crop_pct")
    if share:
        facts["resize"] = int(min(facts.get("input_shape", (224, 224))[:2]) / float(share))
    elif warn:
        log.warning(
            "%s does not say how its images were cropped: the centre of a shorter side of 256 is assumed", address
        )
    kernel = config.get("interpolation") or _RESAMPLING.get(other.get("resample", -1))
    return {**facts, "kernel": kernel} if kernel in KERNELS else facts


def _scaled(values: Any) -> tuple[float, float, float]:
    """Return three numbers in 0-1 as they are in 0-255."""
    first, second, third = (255 * float(value) for value in values)
    return first, second, third


def _class_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of classes that are not the 1,000 of ImageNet."""
    names: Any = config.get("label_names")
    if isinstance(config.get("id2label"), Mapping):
        by_number = {int(key): value for key, value in config["id2label"].items()}
        names = [by_number[number] for number in sorted(by_number)]
    count = len(names) if names else int(config.get("num_classes", 1000))
    if count == 1000:
        return {}
    return {"own_classes": tuple(map(str, names)) if names else tuple(map(str, range(count)))}


def _card(readme: str) -> Any:
    """Return what the head of a README.md says; nothing where there is none that can be read."""
    from huggingface_hub import ModelCard, ModelCardData

    try:
        return ModelCard(readme, ignore_metadata_errors=True).data
    except Exception:  # of many kinds, YAML's among them
        return ModelCardData()


def _accuracies(card: Any) -> tuple[Accuracy, ...]:
    """Return the top-1 accuracies that the head of a README.md states."""
    found = []
    for item in card.eval_results or ():
        value = item.metric_value
        if item.metric_type in ("accuracy", "top_1_accuracy") and isinstance(value, (int, float)):
            percent = float(value) * (100 if value <= 1 else 1)
            data = printable(str(item.dataset_name), 100)
            found.append(Accuracy(data, None, percent, None, "protocol not stated", "the repository's README"))
    return tuple(found)
