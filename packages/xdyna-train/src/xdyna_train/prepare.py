"""A folder of videos -> a data set: `xdyna-train prepare`.

    OUT/manifest.jsonl, OUT/shard-*.tar   the data set (`shards`), clips in the order of the videos' names
    OUT/dropped.jsonl                     what was left out and why, one line a piece of video
    OUT/report.json                       how much was kept, and what it took
    OUT/options.json                      what was asked for; another run into OUT must ask for the same
    OUT/parts/                            what is finished of each video (`prepare_video`)
    OUT/.lock                             held by the run that is at work

A run that was cut off, at whatever moment, is taken up by the next: finished videos are not done again, and the set
becomes what it would have been. Videos that come in later are added in further shards; what could not be read is tried
again, since a disk that was away may be back. Clips that are in a shard stay there: those of videos that have since
gone or changed are counted in the report.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from xdyna_model.errors import InputError
from xdyna_model.outputs import staged

from xdyna_train.person_finder import EmbeddedFinder, PersonFinder
from xdyna_train.prepare_options import PrepareOptions
from xdyna_train.prepare_report import PrepareReport
from xdyna_train.prepare_sources import find_videos
from xdyna_train.prepare_video import VideoJob, is_newer, prepare_video, read_result
from xdyna_train.quality import OnnxQuality, QualityModel, picture_quality
from xdyna_train.shards import (
    CLIPS_PER_SHARD,
    MANIFEST,
    ClipRecord,
    read_manifest,
    read_packed,
    write_manifest,
    write_packed,
)

DROPPED, REPORT, OPTIONS, PARTS = "dropped.jsonl", "report.json", "options.json", "parts"

MakeFinder = Callable[[PrepareOptions], PersonFinder]
MakeQuality = Callable[[PrepareOptions], QualityModel]


def default_finder(options: PrepareOptions) -> PersonFinder:
    """mediapipe's models, or DWPose's by `options.dwpose`. Raises InputError where they are missing."""
    return EmbeddedFinder(options.dwpose)


def default_quality(options: PrepareOptions) -> QualityModel:
    """The embedded score, or the model of `options.quality_model`. Raises InputError where it cannot be loaded."""
    return picture_quality if options.quality_model is None else OnnxQuality(options.quality_model)


def prepare(
    source: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    *,
    workers: int | None = None,
    clips_per_shard: int = CLIPS_PER_SHARD,
    make_finder: MakeFinder = default_finder,
    make_quality: MakeQuality = default_quality,
    on_video: Callable[[int, int], None] | None = None,
) -> PrepareReport:
    """Make a data set of all videos of `source`: a folder, searched to the bottom, or a text file of one path a line
    (`find_videos`).

    workers: processes that work, one on each core where None; they are Ray's, on this machine or on the cluster that
    RAY_ADDRESS names, whose machines must all see `source` and `out`. 0: this process alone, without Ray.
    make_finder, make_quality: called once in each of them. on_video: called with the numbers of videos done and
    of all.

    Raises InputError: no videos, `out` made of others or with other options, another run at work or no room there, a
    model that is missing.
    """
    options, out = _with_absolute_paths(options or PrepareOptions()), Path(out)
    jobs = [VideoJob(video, path, out / PARTS / _part(video)) for video, path in find_videos(source).items()]
    with _claimed(out, source, options, clips_per_shard):
        missing = [job for job in jobs if not _is_done(job)]
        done = len(jobs) - len(missing)
        for _ in _run(missing, options, workers, make_finder, make_quality):
            done += 1
            if on_video is not None:
                on_video(done, len(jobs))
        records = _merge(out, jobs, clips_per_shard)
        results = [result for job in jobs if (result := read_result(job.part)) is not None]
        _write_lines(out / DROPPED, (asdict(dropped) for result in results for dropped in result.dropped))
        report = PrepareReport.of(results, records, _stale(records, jobs))
        with staged(out / REPORT) as [draft]:
            draft.write_text(json.dumps(asdict(report), indent=1) + "\n")
        return report


def _part(video: str) -> str:
    """A folder name that no other video has, and that a person can read."""
    digest = hashlib.sha256(os.fsencode(video)).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', video)[:48]}-{digest}"


def _is_done(job: VideoJob) -> bool:
    """Whether a video need not be looked at again; what failed as a whole may have failed for a reason that is gone."""
    result = read_result(job.part)
    return result is not None and not any(piece.reason in ("unreadable", "failed") for piece in result.dropped)


def _stale(records: Iterable[ClipRecord], jobs: Iterable[VideoJob]) -> int:
    """How many of the clips are of no video of the jobs as it is now."""
    present = {job.video for job in jobs if not is_newer(job)}
    return sum(record.name.rpartition(":")[0] not in present for record in records)


def _with_absolute_paths(options: PrepareOptions) -> PrepareOptions:
    """The same for workers that have another working directory."""
    dwpose, quality = (path and path.absolute() for path in (options.dwpose, options.quality_model))
    return replace(options, dwpose=dwpose, quality_model=quality)


@contextmanager
def _claimed(out: Path, source: str | Path, options: PrepareOptions, clips_per_shard: int) -> Iterator[None]:
    """The folder for this run alone: a new one, or one made of the same source with the same options."""
    asked = {"source": str(Path(source).absolute()), **json.loads(json.dumps(asdict(options), default=str))}
    asked["clips_per_shard"] = clips_per_shard
    path = out / OPTIONS
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({(error.strerror or str(error)).lower()})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out}: another run is at work there; wait for it, or give another folder") from error
        except OSError as error:
            raise InputError(f"{out}: cannot be locked for this run ({(error.strerror or '').lower()})") from error
        if not path.exists():
            if (out / MANIFEST).exists() or any(out.glob("*shard-*.tar")):
                raise InputError(f"{out}: holds another data set; give another folder")
            with staged(path) as [draft]:
                draft.write_text(json.dumps(asked, indent=1) + "\n")
        before = json.loads(path.read_text())
        if other := [f"{name} {before.get(name)}" for name in asked if before.get(name) != asked[name]]:
            raise InputError(
                f"{out}: was begun with other options ({', '.join(other)}); give the same, or another folder"
            )
        yield


def _run(
    jobs: Sequence[VideoJob],
    options: PrepareOptions,
    workers: int | None,
    make_finder: MakeFinder,
    make_quality: MakeQuality,
) -> Iterator[object]:
    """Does the jobs, in any order; yields after each."""
    if not jobs:
        return
    if workers == 0:
        finder, quality = make_finder(options), make_quality(options)
        for job in jobs:
            yield prepare_video(job, options, finder, quality)
        return
    from xdyna_train.prepare_ray import run_on_ray

    yield from run_on_ray(jobs, options, workers, make_finder, make_quality)


def _merge(out: Path, jobs: Iterable[VideoJob], clips_per_shard: int) -> tuple[ClipRecord, ...]:
    """Move what the manifest does not have yet out of the parts into shards. Returns all records."""
    merged = read_manifest(out) if (out / MANIFEST).exists() else ()
    names, shards = {record.name for record in merged}, {record.shard for record in merged}
    _sweep(out, shards)
    pending = [(job.part, record) for job in jobs for record in read_manifest(job.part) if record.name not in names]
    clips = (read_packed(part, record) for part, record in pending)
    records = (*merged, *write_packed(clips, out, clips_per_shard, first_shard=len(shards)))
    write_manifest(out, records)
    for job in jobs:
        for path in job.part.glob("*.tar"):
            path.unlink()
    return records


def _sweep(out: Path, shards: set[str]) -> None:
    """Remove what a run that was killed has left: shards without a manifest, and drafts."""
    for path in out.glob("*shard-*.tar"):
        if path.name not in shards:
            path.unlink()
    for name in (MANIFEST, DROPPED, REPORT, OPTIONS):
        stem, _, suffix = name.partition(".")
        for path in out.glob(f".{stem}.*.{suffix}"):
            path.unlink()


def _write_lines(path: Path, entries: Iterable[dict]) -> None:
    with staged(path) as [draft], draft.open("w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
