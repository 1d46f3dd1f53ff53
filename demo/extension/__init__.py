"""Demo extension: lets the host load the ShapeWorld checkpoints. Users of the pack never need it."""

from .tiny_sd import register

register()

NODE_CLASS_MAPPINGS: dict[str, type] = {}
