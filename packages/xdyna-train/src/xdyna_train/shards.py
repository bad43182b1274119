"""Clips on disk: tar files that plain webdataset reads, and a manifest that finds any clip in them.

    FOLDER/manifest.jsonl     one line a clip: what it is, and where its files lie
    FOLDER/shard-00000.tar    00000000.mp4, 00000000.points.npz, 00000000.masks.npz, 00000000.json, 00000001.mp4, ...

The files are those of `clip_files`. Every shard is written whole before it takes its name, and the manifest comes
last: a folder with a manifest is complete.
"""

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from xdyna_model.errors import InputError
from xdyna_model.outputs import staged

from xdyna_train.clip_files import EXTENSIONS, Facts, PackedClip, pack_clip, unpack_clip
from xdyna_train.clips import Clip, Kind

MANIFEST = "manifest.jsonl"
# At 896x512 and eight seconds a clip, a shard of some hundred megabytes: what disks and networks read well.
CLIPS_PER_SHARD = 64


class Span(NamedTuple):
    """Where a file lies in its shard: offset and size in bytes, and the CRC-32 of its bytes."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ClipRecord:
    """A clip of a data set. shard: name of the tar file. files: by the names of `clip_files.EXTENSIONS`."""

    facts: Facts
    shard: str
    files: Mapping[str, Span]

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def kind(self) -> Kind:
        return self.facts.kind

    @property
    def fps(self) -> float:
        return self.facts.fps

    @property
    def height(self) -> int:
        return self.facts.height

    @property
    def width(self) -> int:
        return self.facts.width

    @property
    def num_frames(self) -> int:
        return self.facts.num_frames


def write_shards(
    clips: Iterable[Clip], folder: str | Path, clips_per_shard: int = CLIPS_PER_SHARD
) -> tuple[ClipRecord, ...]:
    """Write a data set, one clip in memory at a time. The folder is made where it is missing.

    Returns the records, in the order of the clips. Raises InputError where the folder holds a data set already, two
    clips have one name, or the disk is full; no manifest is left then.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder}: holds a data set already; remove it, or give another folder")
    records = tuple(write_packed(map(pack_clip, clips), folder, clips_per_shard))
    write_manifest(folder, records)
    return records


def write_packed(
    clips: Iterable[PackedClip], folder: Path, clips_per_shard: int = CLIPS_PER_SHARD, first_shard: int = 0
) -> Iterator[ClipRecord]:
    """Write the shards from number `first_shard` on, and no manifest. Each record comes when its shard is whole.

    Raises InputError where the folder or a shard cannot be written.
    """
    if clips_per_shard < 1:
        raise ValueError(f"a shard holds at least one clip, not {clips_per_shard}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder ({(error.strerror or str(error)).lower()})") from error
    remaining = iter(clips)
    shard = first_shard
    while batch := next(remaining, None):
        path = folder / f"shard-{shard:05d}.tar"
        with staged(path) as [draft], tarfile.open(draft, "w") as tar:
            records = [
                ClipRecord(clip.facts, path.name, dict(_append(tar, f"{shard * clips_per_shard + index:08d}", clip)))
                for index, clip in enumerate(_chain(batch, islice(remaining, clips_per_shard - 1)))
            ]
        yield from records
        shard += 1


def write_manifest(folder: Path, records: Sequence[ClipRecord]) -> None:
    """Declare a folder complete. Raises InputError where two clips have one name, or the disk is full."""
    names: set[str] = set()
    for record in records:
        if record.name in names:
            raise InputError(f"{folder}: two clips are called {record.name}; names are unique in a data set")
        names.add(record.name)
    with staged(folder / MANIFEST) as [draft], draft.open("w") as file:
        for record in records:
            spans = {name: list(span) for name, span in record.files.items()}
            file.write(json.dumps({**asdict(record.facts), "shard": record.shard, "files": spans}) + "\n")


def read_manifest(folder: str | Path) -> tuple[ClipRecord, ...]:
    """The records of a data set. Raises InputError where the folder holds none, or the manifest is damaged."""
    path = Path(folder) / MANIFEST
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: is no data set, it has no {MANIFEST}; make one with `xdyna-train puppets` or `prepare`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return tuple(_record(path, number, line) for number, line in enumerate(lines, 1))


class ShardReader:
    """Any stretch of any clip of a data set, in any order.

    It keeps no file open, so it may be pickled, forked and shared by the workers of a DataLoader.
    Raises InputError where the folder holds no data set, or one of its shards is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.records = read_manifest(folder)
        missing = sorted({r.shard for r in self.records if not (self.folder / r.shard).is_file()})
        if missing:
            raise InputError(f"{self.folder}: {', '.join(missing)} missing; copy the whole folder again")

    def read(self, record: ClipRecord, start: int, count: int, stride: int = 1) -> Clip:
        """`count` frames of a clip from `start` on, every `stride`-th. The same call gives the same arrays.

        Raises as `read_stretches`.
        """
        (clip,) = self.read_stretches(record, [range(start, start + count * stride, stride)])
        return clip

    def read_stretches(self, record: ClipRecord, stretches: Sequence[range]) -> list[Clip]:
        """Some stretches of a clip, each given by its frames' indices, ascending. The clip is read from disk once.

        Raises ValueError where the clip has no such frames, InputError where it is damaged or gone.
        """
        for indices in stretches:
            if not indices or indices.step < 1 or indices[0] < 0 or indices[-1] >= record.num_frames:
                raise ValueError(f"{record.name} has {record.num_frames} frames; {indices} is no stretch of them")
        packed = read_packed(self.folder, record)
        try:
            return [unpack_clip(packed, indices) for indices in stretches]
        except ValueError as error:
            raise _damaged(self.folder, record) from error


def read_packed(folder: Path, record: ClipRecord, names: Sequence[str] = EXTENSIONS) -> PackedClip:
    """A clip as it lies in its shard, or only those of its files that are named; no others are read.

    Raises InputError where one of them is damaged or gone.
    """
    files = {}
    try:
        with (folder / record.shard).open("rb") as shard:
            for name in names:
                span = record.files[name]
                shard.seek(span.offset)
                files[name] = shard.read(span.size)
                if zlib.crc32(files[name]) != span.crc32:
                    raise _damaged(folder, record)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{folder / record.shard}: clip {record.name} cannot be read ({reason})") from error
    return PackedClip(record.facts, files)


def _append(tar: tarfile.TarFile, key: str, clip: PackedClip) -> Iterator[tuple[str, Span]]:
    for name in EXTENSIONS:
        content = clip.files[name]
        member = tarfile.TarInfo(f"{key}.{name}")  # dated 1970 and owned by nobody: the same clips, the same bytes
        member.size = len(content)
        header = len(member.tobuf())
        offset = tar.offset + header
        tar.addfile(member, io.BytesIO(content))
        yield name, Span(offset, len(content), zlib.crc32(content))


def _chain(first: PackedClip, rest: Iterable[PackedClip]) -> Iterator[PackedClip]:
    yield first
    yield from rest


def _record(path: Path, number: int, line: str) -> ClipRecord:
    try:
        entry: dict[str, Any] = json.loads(line)
        shard, spans = entry.pop("shard"), entry.pop("files")
        return ClipRecord(Facts(**entry), shard, {name: Span(*spans[name]) for name in EXTENSIONS})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: line {number} is damaged; copy or make the data set again") from error


def _damaged(folder: Path, record: ClipRecord) -> InputError:
    return InputError(f"{folder / record.shard}: clip {record.name} is damaged; copy or make the data set again")
