"""Pictures side by side in one file."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def save_sheet(pictures: torch.Tensor, file: Path, columns: int = 8) -> None:
    """Pictures [n, 128, 128, 3] in 0..1 as one JPEG, row by row."""
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * 130, rows * 130), "white")
    for i, picture in enumerate(pictures):
        image = Image.fromarray((picture.clamp(0, 1) * 255).byte().numpy())
        canvas.paste(image, (i % columns * 130, i // columns * 130))
    file.parent.mkdir(exist_ok=True)
    canvas.save(file, quality=85)
