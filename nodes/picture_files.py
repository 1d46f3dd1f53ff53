"""Where the pictures that a person rates are kept, and how a node finds them again.

New pictures are in the host's temp folder, which it empties when it starts. A picture that is rated is copied to the
output folder under the name of its content. The store names a file as the host does: `folder/name.png [output]`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..feedback.records import StoredImage

if TYPE_CHECKING:
    from ..feedback.ratings import Store

KEPT = "atelier_rated"
"""Folder in the host's output folder with every picture that was ever rated."""

FOLDERS = ("output", "temp", "input")


class PictureGone(RuntimeError):
    """No file of a picture is left."""


@dataclass(frozen=True)
class PictureFile:
    """A file in one of the host's folders, as the host's `/view` names it.

    Raises:
        ValueError: There is no such folder, or the path leads out of it.
    """

    filename: str
    subfolder: str = ""
    type: str = "output"

    def __post_init__(self) -> None:
        if not all(isinstance(part, str) for part in (self.filename, self.subfolder, self.type)):
            raise ValueError("A file is named by three texts: filename, subfolder and type.")
        if self.type not in FOLDERS:
            raise ValueError(f"The type of a file is one of {', '.join(FOLDERS)}, not {self.type[:80]!r}.")
        if not self.filename or "/" in self.filename or "\\" in self.filename or "\0" in self.filename + self.subfolder:
            raise ValueError(f"{self.filename[:80]!r} is no file name. Put folders in the subfolder.")
        if not folder_paths.is_within_directory(folder_paths.get_directory_by_type(self.type), str(self.path)):
            raise ValueError(f"The file {self.filename[:80]!r} is outside the {self.type} folder.")

    @property
    def path(self) -> Path:
        return Path(folder_paths.get_directory_by_type(self.type), self.subfolder, self.filename)

    @property
    def name(self) -> str:
        """As the store keeps it."""
        return f"{Path(self.subfolder, self.filename).as_posix()} [{self.type}]"

    @staticmethod
    def from_name(name: str) -> PictureFile:
        """The inverse of `name`. The store may come from somebody else, so it is checked like any input."""
        place, _, kind = name.rpartition(" [")
        folder, _, filename = place.rpartition("/")
        return PictureFile(filename, folder, kind.removesuffix("]"))


def content_digest(path: Path) -> str:
    """SHA-256 of the pixels, so that a copy with other metadata is the same picture. Raises OSError."""
    try:
        with Image.open(path) as picture:
            head = f"{picture.mode} {picture.width} {picture.height}\n"
            return hashlib.sha256(head.encode() + picture.tobytes()).hexdigest()
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        raise OSError(f"{path.name} is no picture that can be read") from None


def find(image: StoredImage) -> PictureFile | None:
    """The first file of the picture that is there, the kept one before others."""
    for name in (_kept(image).name, *image.files):
        with contextlib.suppress(ValueError):
            file = PictureFile.from_name(name)
            if file.path.is_file():
                return file
    return None


def keep(store: Store, image: StoredImage) -> None:
    """Copy the picture to where the host does not clean, and tell the store.

    Raises:
        PictureGone: There is no file left with this content.
        OSError: The copy cannot be written.
    """
    kept = _kept(image)
    if not kept.path.is_file():
        _copy(_source(image), kept.path)
    if kept.name not in image.files:
        store.register([replace(image, files=(kept.name,))])


def load(image: StoredImage) -> Tensor:
    """The picture as a float tensor [height, width, 3] from 0 to 1. Raises PictureGone."""
    file = find(image)
    try:
        if file is None:
            raise OSError("no file is left")
        with Image.open(file.path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255.0)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise PictureGone(f"The picture {image.digest[:12]} cannot be loaded: {error}.") from None


def _kept(image: StoredImage) -> PictureFile:
    return PictureFile(f"{image.digest}.png", KEPT)


def _source(image: StoredImage) -> Path:
    for name in image.files:
        # A temp name can come again after cleaning, with another picture behind it.
        with contextlib.suppress(ValueError, OSError):
            path = PictureFile.from_name(name).path
            if content_digest(path) == image.digest:
                return path
    raise PictureGone(
        "This picture is gone: ComfyUI emptied its temp folder, or the file was deleted. "
        "Queue the workflow again to make it anew, then rate it."
    )


def _copy(source: Path, target: Path) -> None:
    """Copy so that the target is there complete or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    os.close(handle)
    try:
        shutil.copyfile(source, part)
        os.chmod(part, 0o644)  # mkstemp's own mode is for one user alone
        os.replace(part, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
