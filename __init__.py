"""Atelier for ComfyUI: from a wish to the picture you had in mind."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
