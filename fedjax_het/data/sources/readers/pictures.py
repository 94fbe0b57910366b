"""Encoded images (PNG, JPEG, ...) as arrays of pixels."""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import MAX_BYTES, reason, too_large
from fedjax_het.data.sources.readers.extras import library

# Formats that are decoded, by their names in Pillow; each is an image and nothing else.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Largest image in pixels.
MAX_PIXELS = 2**26
# Modes of Pillow of one value per pixel.
_GREY = ("1", "L")
_REMEDY = "replace the image, or leave it out"


def decoded(
    contents: Sequence[Callable[[], bytes]],
    place: Callable[[int], str],
    size: Sequence[int] | None = None,
) -> np.ndarray:
    """Images of one size, uint8[N, H, W, C]: C = 1 if all are grey, else 3.

    Args:
      contents: functions that give the encoded images.
      place: place of an image, for error messages.
      size: pair (H, W) to which images are resized; None for images of one size.

    Raises:
      InputError: for content that is no image, and images of several sizes.
    """
    if size is not None:
        require(
            len(size) == 2 and min(size) >= 1 and size[0] * size[1] <= MAX_PIXELS,
            f"size = {tuple(size)}",
            f"must be (height, width), together at most {MAX_PIXELS} pixels",
            "e.g. size = (32, 32)",
        )
    images: list[np.ndarray] = []
    total = 0
    for i, content in enumerate(contents):
        image = _pixels(content(), place(i), size)
        if images and image.shape[:2] != images[0].shape[:2]:
            (high, wide), first = image.shape[:2], images[0].shape[:2]
            raise InputError(
                f"{place(i)}: image of {high} x {wide}: must be {first[0]} x {first[1]}, as the "
                "first; give size = (H, W), to which all are resized"
            )
        total += image.size
        if total > MAX_BYTES:
            raise too_large(place(i), total, MAX_BYTES, "give size = (H, W) to shrink images")
        images.append(image)
    if all(image.shape[2] == 1 for image in images):
        return np.stack(images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], 3)) for image in images])


def _pixels(content: bytes, where: str, size: Sequence[int] | None) -> np.ndarray:
    """The pixels of an image, uint8[H, W, 1 or 3]."""
    pillow = library("PIL.Image", "files", where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are refused below
            with pillow.open(io.BytesIO(content), formats=FORMATS) as image:
                wide, high = image.size
                if wide * high > MAX_PIXELS:
                    raise InputError(
                        f"{where}: image of {high} x {wide}: must have at most {MAX_PIXELS} "
                        f"pixels; {_REMEDY}"
                    )
                image = _eight_bits(pillow, image)
                if size is not None:
                    image = image.resize((size[1], size[0]))
                pixels = np.asarray(image)
    except InputError:
        raise
    # Decoders raise what they like for damaged content.
    except Exception as error:
        raise InputError(f"{where}: not a readable image ({reason(error)}); {_REMEDY}") from None
    return pixels.reshape(*pixels.shape[:2], -1)


def _eight_bits(pillow: Any, image: Any) -> Any:
    """A grey or a colour image of 8 bits per value."""
    if image.mode.startswith("I;16"):
        return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("L" if image.mode in _GREY else "RGB")
