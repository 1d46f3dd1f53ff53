"""Pictures side by side in one file."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def save_sheet(pictures: torch.Tensor, file: Path, columns: int = 8) -> None:
    """Pictures [n, height, width, 3] in 0..1 as one JPEG, row by row."""
    rows, (height, width) = -(-len(pictures) // columns), pictures.shape[1:3]
    canvas = Image.new("RGB", (columns * (width + 2), rows * (height + 2)), "white")
    for i, picture in enumerate(pictures):
        image = Image.fromarray((picture.clamp(0, 1) * 255).byte().numpy())
        canvas.paste(image, (i % columns * (width + 2), i // columns * (height + 2)))
    file.parent.mkdir(exist_ok=True)
    canvas.save(file, quality=85)
