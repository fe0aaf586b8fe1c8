"""Images: files as users have them, decoding, resize and centre crop, and the preprocessing of pixels.

`files` finds and reads image files (Pillow), `decoding` turns encoded images into pixels and `resizing` brings them to
a `view.View` (TensorFlow operations), `preprocessing` is what a network's first layer does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_convnets.images.files import read_image as read_image

__all__ = ["read_image"]


def __getattr__(name: str) -> Any:
    # Imported lazily: listing networks or weights does not need Pillow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keras_convnets.images import files

    return getattr(files, name)
