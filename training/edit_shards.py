"""A data set of edits on disk: tar files that the webdataset library reads, and a manifest.

    folder/edits-000000.tar    {key}.source.png, {key}.target.png, {key}.json for each sample
    folder/manifest.json       the settings, the complete shards with their checksums, and what was drawn and dropped

A shard grows as `edits-000000.tar.part` and gets its name when it is complete. Beside it a journal says after which
byte of it each triplet ends, so that a run that was killed goes on behind the last whole triplet.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

MANIFEST = "manifest.json"
FORMAT = 1
SHARD_SAMPLES = 256
"""A shard is complete with the triplet that brings it to so many samples."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class EditDataError(ValueError):
    """A data set cannot be written or read; the message says what to do."""


@dataclass(frozen=True, eq=False)
class EditSample:
    """One edit: pictures before and after, uint8 [H, W, 3], and what was said.

    share: the part of the sampling steps in which the second picture took the attention of the first.
    similarities: cosines by name, as `edit_filter.Similarities`; empty if nothing measured them.
    """

    key: str
    before: np.ndarray
    after: np.ndarray
    caption: str
    instruction: str
    edited_caption: str
    seed: int
    share: float
    similarities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Drawn:
    """What became of one triplet: the samples that are kept, how many pairs were drawn, and why pairs were dropped."""

    samples: Sequence[EditSample]
    drawn: int
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """A complete tar file: its name, how many samples it holds, and its SHA-256."""

    name: str
    samples: int
    sha256: str


@dataclass
class Manifest:
    """What a data set holds. `done` counts the triplets that are drawn, filtered and in complete shards."""

    settings: dict[str, Any]
    triplets: int
    done: int = 0
    drawn: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return self.done == self.triplets


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a data set. Raises EditDataError."""
    file = folder / MANIFEST
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("format") != FORMAT:
            raise EditDataError(f"{file} is of another version of the pack. Make the data set again.")
        found["shards"] = [Shard(**shard) for shard in found["shards"]]
        return Manifest(**found)
    except FileNotFoundError:
        raise EditDataError(
            f"There is no data set in {folder}: it has no {MANIFEST}. The node Make Edit Dataset makes one."
        ) from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise EditDataError(
            f"{file} cannot be read ({error}). Put the file back, or delete the folder and make the data set again."
        ) from None


def read_edits(folder: Path) -> Iterator[EditSample]:
    """The samples of the complete shards, in order. Each shard is checked before its first sample is given.

    Raises:
        EditDataError: There is no data set, it holds no sample yet, or a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    if not manifest.kept:
        raise EditDataError(
            f"The data set in {folder} has no complete shard yet. Let Make Edit Dataset finish, or keep more: its "
            "report says what was dropped."
        )
    for shard in manifest.shards:
        yield from _read_shard(folder / shard.name, shard)


def _read_shard(file: Path, shard: Shard) -> Iterator[EditSample]:
    remedy = f"Delete the folder {file.parent} and make the data set again, or copy it again from where it is whole."
    try:
        if _sha256(file) != shard.sha256:
            raise EditDataError(f"The shard {file} is damaged: it is not what the manifest says. {remedy}")
        with tarfile.open(file, "r:") as tar:
            members: dict[str, bytes] = {}
            for member in tar:
                members[member.name] = tar.extractfile(member).read()
                if len(members) == 3:
                    yield _sample(members)
                    members = {}
    except (OSError, tarfile.TarError, LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise EditDataError(f"The shard {file} cannot be read ({error}). {remedy}") from None


def _sample(members: Mapping[str, bytes]) -> EditSample:
    key = next(iter(members)).partition(".")[0]
    said = json.loads(members[f"{key}.json"])
    return EditSample(key, _pixels(members[f"{key}.source.png"]), _pixels(members[f"{key}.target.png"]), **said)


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture.convert("RGB"))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class ShardWriter:
    """Writes the triplets of a data set in their order, and goes on where an earlier run ended.

    `next` is the number of the triplet that is wanted. Used as a context: on leaving, what is written stays, and a run
    with the same settings goes on behind it.

    Args:
        settings: all that the samples depend on, as JSON knows it.
        triplets: how many triplets there are, 1 or more.

    Raises:
        EditDataError: The folder holds another data set, or the disk is full.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], triplets: int) -> None:
        self.folder = folder
        self.manifest = Manifest(json.loads(json.dumps(settings)), triplets)
        self._file: BinaryIO | None = None
        self._journal: list[dict[str, Any]] = []
        with self._room():
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / MANIFEST).exists():
                self.manifest = _checked(folder, self.manifest)
            elif any(folder.glob("edits-*.tar")):
                raise EditDataError(f"{folder} holds shards and no {MANIFEST}. Choose another name.")
            else:
                self._write_manifest(self.manifest)
            self._resume()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def next(self) -> int:
        return self.manifest.done + len(self._journal)

    def add(self, drawn: Drawn) -> None:
        """Write what became of the triplet `next`. It is on disk when this returns."""
        with self._room():
            self._append(drawn)
            self._close_if_full()

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """When the disk is full, remove the shard at hand and say what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            if self._file is not None:
                with contextlib.suppress(OSError):  # what is still in its buffer has no room
                    self._file.close()
                self._file = None
            for file in (self.folder / self._name, self._part, self._journal_file):
                file.unlink(missing_ok=True)
            self._journal = []
            raise EditDataError(
                f"The disk of {self.folder} is full. Complete shards are kept ({len(self.manifest.shards)}), the half "
                "one was removed. Make room and queue again: the run goes on behind the last complete shard."
            ) from error

    @property
    def _name(self) -> str:
        return f"edits-{len(self.manifest.shards):06d}.tar"

    @property
    def _part(self) -> Path:
        return self.folder / f"{self._name}.part"

    @property
    def _journal_file(self) -> Path:
        return self.folder / f"{self._name}.journal"

    def _resume(self) -> None:
        """Open the shard at hand behind its last whole triplet, and drop what else was left behind."""
        if (self.folder / self._name).exists():  # it got its name, and the run was killed before the manifest knew
            (self.folder / self._name).replace(self._part)
        for left in [*self.folder.glob("*.part"), *self.folder.glob("*.journal")]:
            if left not in (self._part, self._journal_file) or self.manifest.complete:
                left.unlink()
        if self.manifest.complete:
            return
        self._part.touch()
        self._journal = _read_journal(self._journal_file, self._part.stat().st_size)
        replace_file(self._journal_file, "".join(f"{json.dumps(line)}\n" for line in self._journal))
        self._file = open(self._part, "r+b")  # noqa: SIM115  closed on leaving
        self._file.truncate(self._end)
        self._file.seek(self._end)
        self._close_if_full()

    @property
    def _end(self) -> int:
        return self._journal[-1]["bytes"] if self._journal else 0

    def _append(self, drawn: Drawn) -> None:
        # Never closed, for that would write the archive's end.
        tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        for sample in drawn.samples:
            _add_sample(tar, sample)
        _sync(self._file)
        dropped = {why: count for why, count in drawn.dropped.items() if count}
        line = {"bytes": tar.offset, "drawn": drawn.drawn, "kept": len(drawn.samples), "dropped": dropped}
        with open(self._journal_file, "ab") as journal:
            journal.write(f"{json.dumps(line)}\n".encode())
            _sync(journal)
        self._journal.append(line)

    def _close_if_full(self) -> None:
        """Give a full shard, or the last one, its name and the manifest its line; one without samples is gone."""
        samples = sum(line["kept"] for line in self._journal)
        if samples < SHARD_SAMPLES and self.next < self.manifest.triplets:
            return
        tarfile.open(fileobj=self._file, mode="w").close()  # the archive's end
        _sync(self._file)
        self._file.close()
        self._file = None
        part, journal, manifest = self._part, self._journal_file, self.manifest
        shards = [Shard(self._name, samples, _sha256(part))] if samples else []
        if samples:
            part.replace(self.folder / self._name)
        now = Manifest(
            manifest.settings,
            manifest.triplets,
            self.next,
            manifest.drawn + sum(line["drawn"] for line in self._journal),
            manifest.kept + samples,
            dict(sum((Counter(line["dropped"]) for line in self._journal), Counter(manifest.dropped))),
            manifest.shards + shards,
        )
        self._write_manifest(now)
        self.manifest, self._journal = now, []
        part.unlink(missing_ok=True)
        journal.unlink()
        self._resume()

    def _write_manifest(self, manifest: Manifest) -> None:
        content = {"format": FORMAT, **asdict(manifest)}
        replace_file(self.folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=False))


def _checked(folder: Path, wanted: Manifest) -> Manifest:
    """The folder's manifest, if it is of the data set that is wanted."""
    found = read_manifest(folder)
    mine, theirs = wanted.settings, found.settings
    other = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if other or found.triplets != wanted.triplets:
        raise EditDataError(
            f"{folder} holds a data set that was made with other settings ({', '.join(other) or 'triplets'}). Give "
            "this one another name, set them as they were, or delete the folder."
        )
    return found


def _read_journal(file: Path, size: int) -> list[dict[str, Any]]:
    """The lines about whole triplets of a shard that has `size` bytes."""
    lines: list[dict[str, Any]] = []
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if not text.endswith("\n") or (line := json.loads(text))["bytes"] > size:
                break
            lines.append(line)
    return lines


def _add_sample(tar: tarfile.TarFile, sample: EditSample) -> None:
    said = asdict(sample)
    key = said.pop("key")
    pictures = {"source.png": _png(said.pop("before")), "target.png": _png(said.pop("after"))}
    for name, data in {**pictures, "json": json.dumps(said, ensure_ascii=False).encode()}.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def replace_file(file: Path, text: str) -> None:
    """Write a file so that it is there complete or as it was before."""
    part = file.with_name(f"{file.name}.part")
    try:
        with open(part, "wb") as handle:
            handle.write(text.encode())
            _sync(handle)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sync(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        digest = hashlib.sha256()
        while block := handle.read(2**20):
            digest.update(block)
        return digest.hexdigest()
