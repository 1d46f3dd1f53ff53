"""Picture files as a model is shown them."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageOps

from .backend import Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of files that are taken for pictures, in lower case."""
LONGEST_SIDE = 1024
"""Pixels. Models that see make larger pictures smaller, and servers charge by the pixel."""
JPEG_QUALITY = 90


def read_picture(path: Path) -> Picture:
    """A picture file, upright, on white where it is transparent, with at most `LONGEST_SIDE` pixels a side.

    Raises:
        OSError: The file cannot be read, or is no picture; the message names it.
    """
    try:
        with Image.open(path) as opened:
            shown = ImageOps.exif_transpose(opened).convert("RGBA")
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise OSError(f"{path.name} is no picture that can be read ({error})") from None
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    flat = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    data = io.BytesIO()
    flat.save(data, "JPEG", quality=JPEG_QUALITY)
    return Picture(data.getvalue())
