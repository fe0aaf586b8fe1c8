"""The exact versions of what the endpoint needs, as they are installed here."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement

PACKAGE = "keras-convnets"


def pinned(extras: tuple[str, ...] = ("serving",)) -> list[str]:
    """Return lines for `pip install --requirement`: this package's dependencies with these extras, and theirs.

    A dependency that is not installed is left out.

    Args:
        extras: of this package.
    """
    found: dict[str, str] = {}
    waiting = [(PACKAGE, extras)]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name.lower(), wanted) in seen:
            continue
        seen.add((name.lower(), wanted))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name != PACKAGE:
            found[distribution.metadata["Name"]] = distribution.version
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if _applies(requirement, wanted):
                waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return [f"{name}=={version}" for name, version in sorted(found.items(), key=lambda item: item[0].lower())]


def _applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
