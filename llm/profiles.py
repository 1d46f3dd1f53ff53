"""Keys by profile name, from the environment or from a file that the host does not serve.

A workflow names a profile and never holds a key. A key belongs to one server: a profile says which, and its key
goes nowhere else, so that a workflow from a stranger cannot send it to an address of theirs.

- `ATELIER_LLM_KEY_<PROFILE>` and `ATELIER_LLM_URL_<PROFILE>`, the profile in capitals;
- `llm_profiles.json` in the host's non-public user folder: `{"work": {"base_url": "https://…/v1", "key": "…"}}`;
- profile `openai`: also `OPENAI_API_KEY`, for OpenAI's own address.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .backend import LLMSetupError

PROFILES_FILE = "llm_profiles.json"
OPENAI_URL = "https://api.openai.com/v1"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
"""What a profile may be called. Keys of the known providers are longer or hold a dash."""


@dataclass(frozen=True)
class Profile:
    """A server and its key. It exists only while a call is made."""

    base_url: str
    key: str = field(repr=False)


def server_address(base_url: str) -> str:
    """The address without a slash at its end.

    Raises:
        LLMSetupError: it is no http address, or it holds what would be saved in the workflow with it: a user
            name, a password or a query.
    """
    address = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise LLMSetupError(
            "base_url is no address of a server. It looks like http://127.0.0.1:11434/v1 or https://host/v1."
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise LLMSetupError(
            "base_url holds a user name, a password or a query, and it would be saved in the workflow. "
            "Write the bare address, and keep the key in a profile."
        )
    return address


def resolve(base_url: str, profile: str, folder: Path | None) -> tuple[str, str | None]:
    """The address to call and the key to send there, None without a profile.

    Args:
        base_url: address from the workflow. May be empty if the profile names one.
        profile: name of a profile, or empty.
        folder: where `llm_profiles.json` may lie.

    Raises:
        LLMSetupError: the address or the profile is not usable, or the profile is for another server.
    """
    if not profile.strip():
        return server_address(base_url), None
    found = _find(profile.strip(), folder)
    if base_url.strip() and _origin(server_address(base_url)) != _origin(found.base_url):
        raise LLMSetupError(
            f"Profile {profile.strip()} is for {found.base_url}, and its key is sent nowhere else. "
            "Leave base_url empty, or name the profile of this server."
        )
    return server_address(base_url) if base_url.strip() else found.base_url, found.key


def _find(profile: str, folder: Path | None) -> Profile:
    """The profile of this name. Messages do not repeat what may be a key by mistake."""
    if not _NAME.fullmatch(profile):
        raise LLMSetupError(
            "The profile is not a name: at most 32 letters, digits and underscores, beginning with a letter. "
            "If it is a key, take it out of the workflow and keep it in a profile."
        )
    key = os.environ.get(f"ATELIER_LLM_KEY_{profile.upper()}")
    address = os.environ.get(f"ATELIER_LLM_URL_{profile.upper()}")
    if profile.lower() == "openai":
        key, address = key or os.environ.get("OPENAI_API_KEY"), address or OPENAI_URL
    if key:
        if not address:
            raise LLMSetupError(
                f"ATELIER_LLM_KEY_{profile.upper()} is set, but not the server it is for. "
                f"Set ATELIER_LLM_URL_{profile.upper()}, for example to https://host/v1."
            )
        return Profile(server_address(address), _usable(key, profile))
    return _from_file(profile, folder)


def _from_file(profile: str, folder: Path | None) -> Profile:
    place = folder / PROFILES_FILE if folder is not None else Path(PROFILES_FILE)
    try:
        # Some editors put a byte order mark before the text.
        entries = json.loads(place.read_text(encoding="utf-8-sig")) if folder is not None and place.is_file() else {}
    except (OSError, ValueError):
        entries = None
    # Outside the except clause: the decoder's error holds the whole file, and a chained error would keep it.
    if not isinstance(entries, dict):
        raise LLMSetupError(
            f"{place} cannot be read. It must be a file in UTF-8 that ComfyUI may read, and look like "
            '{"work": {"base_url": "https://host/v1", "key": "…"}}.'
        )
    if profile not in entries:
        raise LLMSetupError(
            f"There is no LLM profile {profile}. Set ATELIER_LLM_KEY_{profile.upper()} and "
            f"ATELIER_LLM_URL_{profile.upper()}, or add it to {place}."
        )
    entry = entries[profile]
    fields = [entry.get(name) for name in ("base_url", "key")] if isinstance(entry, dict) else []
    if len(fields) != 2 or not all(isinstance(value, str) and value for value in fields):
        raise LLMSetupError(f"Profile {profile} in {place} needs two texts: base_url and key.")
    return Profile(server_address(fields[0]), _usable(fields[1], profile))


def _usable(key: str, profile: str) -> str:
    """The key without blanks around it. Raises LLMSetupError for what cannot stand in a header."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise LLMSetupError(f"The key of profile {profile} holds characters that no key has. Copy it again.")
    return key


def _origin(address: str) -> tuple[str, str, int]:
    """Scheme, host and port: what has to be equal for a key to be sent."""
    parts = urlsplit(address)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
