"""Drawn pictures as the host's IMAGE."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def as_image(picture: Image.Image) -> Tensor:
    """An RGB picture as an IMAGE of one, [1, height, width, 3] in 0..1."""
    return torch.from_numpy(np.asarray(picture, np.float32) / 255)[None]
