"""A data set of captioned pictures: a folder of pictures with a text file beside each, or tar files of WebDataset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..llm.pictures import SUFFIXES

CAPTION = ".txt"


@dataclass(frozen=True, eq=False)
class Captioned:
    """A picture, uint8 [H, W, 3], and its caption. `key` is its name without ending."""

    key: str
    picture: np.ndarray
    caption: str


def read_captions(place: Path, side: int = 0, captions: Path | None = None) -> Iterator[Captioned]:
    """The captioned pictures of a folder, of the tar files in it, or of one tar file, in the order of their names.

    Args:
        captions: a folder whose text files count in the place of those beside the pictures of a folder.
        side: Pictures are cut to a square in the middle and scaled to this many pixels. 0 leaves them as they are.

    Raises:
        ValueError: There is nothing to read, or a picture is damaged; the text names it.
    """
    if not place.exists():
        raise ValueError(f"There is no data set {place}. Name a folder of pictures with a .txt file beside each.")
    if captions is not None and not captions.is_dir():
        raise ValueError(f"There is no folder of captions {captions}. Link Refine Captions, or leave it empty.")
    tars = [place] if place.is_file() else sorted(place.glob("*.tar"))
    count = 0
    for key, picture, caption in _from_tars(tars) if tars else _from_folder(place, captions or place):
        count += 1
        yield Captioned(key, _pixels(key, picture, side), " ".join(caption.split()))
    if not count:
        raise ValueError(
            f"{place} holds no captioned picture: each picture ({', '.join(SUFFIXES)}) needs a text file of its name, "
            "such as cat.png and cat.txt."
        )


def _from_folder(folder: Path, captions: Path) -> Iterator[tuple[str, bytes, str]]:
    for file in sorted(folder.iterdir()):
        text = captions / f"{file.stem}{CAPTION}"
        if file.suffix.lower() in SUFFIXES and text.is_file():
            yield file.stem, file.read_bytes(), text.read_text(encoding="utf-8-sig", errors="replace")


def _from_tars(files: list[Path]) -> Iterator[tuple[str, bytes, str]]:
    for file in files:
        members: dict[str, dict[str, bytes]] = {}
        try:
            with tarfile.open(file) as tar:
                for member in tar:
                    if member.isfile():
                        # As in WebDataset, a sample's key ends at the first dot of the file's name.
                        folder, _, name = member.name.rpartition("/")
                        stem, _, ending = name.partition(".")
                        data = tar.extractfile(member).read()
                        members.setdefault(f"{folder}/{stem}", {})[f".{ending.lower()}"] = data
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"{file} cannot be read: {error}. Download or make it again.") from error
        for key, parts in members.items():
            picture = next((parts[ending] for ending in SUFFIXES if ending in parts), None)
            if picture is not None and CAPTION in parts:
                yield key.lstrip("/"), picture, parts[CAPTION].decode("utf-8-sig", errors="replace")


def _pixels(key: str, data: bytes, side: int) -> np.ndarray:
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"The picture {key} is damaged: {error}. Take it out of the data set.") from error
    return np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS) if side else picture)
