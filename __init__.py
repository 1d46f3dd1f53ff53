"""Atelier for ComfyUI: from a wish to the picture you had in mind."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"  # node help pages in docs/

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
