"""What is written to shards comes back, in any order, to any process; what is damaged is named."""

import gc
import json
import multiprocessing
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model.errors import InputError
from xdyna_model.face_map import face_box
from xdyna_train.clips import Clip
from xdyna_train.puppets import sample_clip
from xdyna_train.shards import MANIFEST, ShardReader, read_packed, write_shards


def puppet_clip(name: str, seed: int, num_frames: int, height: int, width: int, people: bool = True) -> Clip:
    frames = sample_clip(np.random.default_rng(seed), num_frames, height, width, people=people)
    return Clip(
        name=name,
        kind="human" if people else "scene",
        fps=12.5,
        frames=np.stack([frame.rgb for frame in frames]),
        persons=tuple(frame.person for frame in frames),
        masks=np.stack([frame.mask for frame in frames]),
    )


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Three kinds: a person who is once out of sight, a scene of odd size, and a single frame."""
    dance = puppet_clip("a dance/1.mp4", 1, 41, 112, 64)
    gone = tuple(None if index == 7 else person for index, person in enumerate(dance.persons))
    dance = Clip(dance.name, dance.kind, dance.fps, dance.frames, gone, dance.masks)
    return [dance, puppet_clip("scène", 2, 9, 63, 47, people=False), puppet_clip("still", 3, 1, 64, 64)]


@pytest.fixture(scope="module")
def folder(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_shards(clips, folder, clips_per_shard=2)
    return folder


def assert_same_clip(found: Clip, wanted: Clip) -> None:
    assert (found.name, found.kind, found.fps) == (wanted.name, wanted.kind, wanted.fps)
    assert np.array_equal(found.masks, wanted.masks)
    assert found.masks.dtype == bool
    assert found.frames.dtype == np.uint8
    assert [p is None for p in found.persons] == [p is None for p in wanted.persons]
    for person, original in zip(found.persons, wanted.persons, strict=True):
        for part in ("body", "hands", "face") if original is not None else ():
            assert np.array_equal(getattr(person, part), getattr(original, part))


def test_everything_comes_back(folder: Path, clips: list[Clip]) -> None:
    reader = ShardReader(folder)
    assert [path.name for path in sorted(folder.iterdir())] == [MANIFEST, "shard-00000.tar", "shard-00001.tar"]
    for record, clip in zip(reader.records, clips, strict=True):
        assert (record.num_frames, record.height, record.width) == clip.frames.shape[:3]
        assert (record.name, record.kind, record.fps) == (clip.name, clip.kind, clip.fps)
        found = reader.read(record, 0, record.num_frames)
        assert_same_clip(found, clip)
        error = np.abs(found.frames.astype(int) - clip.frames)
        assert error.mean() < 3  # levels of 255
        if len(clip.frames) > 1:  # each frame is itself and not its neighbour
            assert error.mean() < np.abs(np.diff(clip.frames.astype(int), axis=0)).mean() / 3


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_stretch_is_the_same_as_in_the_whole(folder: Path, data: st.DataObject) -> None:
    reader = ShardReader(folder)
    record = reader.records[data.draw(st.integers(0, 1), "clip")]
    stride = data.draw(st.integers(1, 9), "stride")
    start = data.draw(st.integers(0, record.num_frames - 1), "start")
    count = data.draw(st.integers(1, 1 + (record.num_frames - 1 - start) // stride), "count")
    stretch = slice(start, start + (count - 1) * stride + 1, stride)
    whole, part = reader.read(record, 0, record.num_frames), reader.read(record, start, count, stride)
    assert np.array_equal(part.frames, whole.frames[stretch])
    assert_same_clip(
        part,
        Clip(whole.name, whole.kind, whole.fps, part.frames, whole.persons[stretch], whole.masks[stretch]),
    )


@pytest.mark.parametrize(("start", "count", "stride"), [(0, 42, 1), (41, 1, 1), (-1, 1, 1), (0, 0, 1), (1, 21, 2)])
def test_frames_that_there_are_not(folder: Path, start: int, count: int, stride: int) -> None:
    reader = ShardReader(folder)
    with pytest.raises(ValueError, match="41 frames"):
        reader.read(reader.records[0], start, count, stride)


def test_stretches_read_together_are_those_read_apart(folder: Path) -> None:
    reader = ShardReader(folder)
    record = reader.records[0]
    found = reader.read_stretches(record, [range(5, 12, 3), range(40, 41), range(5, 6)])
    assert [len(clip.frames) for clip in found] == [3, 1, 1]
    for clip, (start, count, stride) in zip(found, [(5, 3, 3), (40, 1, 1), (5, 1, 1)], strict=True):
        wanted = reader.read(record, start, count, stride)
        assert np.array_equal(clip.frames, wanted.frames)
        assert_same_clip(clip, wanted)
    for wrong in (range(41, 42), range(-1, 1), range(4, 4), range(5, 2, -1)):
        with pytest.raises(ValueError, match="41 frames"):
            reader.read_stretches(record, [range(3), wrong])


def test_plain_webdataset_reads_the_shards(folder: Path, clips: list[Clip]) -> None:
    urls = str(folder / "shard-{00000..00001}.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves the files to the garbage collector
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
        gc.collect()
    assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002"]
    for sample, clip in zip(samples, clips, strict=True):
        num_frames, height, width, _ = clip.frames.shape
        facts = sample["json"]
        assert (facts["name"], facts["kind"], facts["fps"]) == (clip.name, clip.kind, clip.fps)
        assert (facts["num_frames"], facts["height"], facts["width"]) == (num_frames, height, width)
        boxes = [None if person is None else list(face_box(person, height, width)) for person in clip.persons]
        assert facts["face_boxes"] == boxes
        assert sample["points.npz"]["seen"].tolist() == [person is not None for person in clip.persons]
        assert sample["points.npz"]["face"].shape == (num_frames, 68, 3)
        last = np.unpackbits(sample["masks.npz"][str(num_frames - 1)], axis=1, count=width)
        assert np.array_equal(last, clip.masks[-1])
        assert sample["mp4"][4:8] == b"ftyp"


def test_the_same_clips_give_the_same_bytes(folder: Path, clips: list[Clip], tmp_path: Path) -> None:
    write_shards(iter(clips), tmp_path, clips_per_shard=2)
    for path in sorted(folder.iterdir()):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("start", ["fork", "spawn"])
# Python 3.12 warns of every fork beside threads; workers of a DataLoader are such forks.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_reader_serves_other_processes(folder: Path, start: str) -> None:
    reader = ShardReader(folder)
    records = reader.records * 3
    with ProcessPoolExecutor(2, multiprocessing.get_context(start)) as pool:
        for record, found in zip(records, pool.map(reader.read, records, [0] * 9, [1] * 9), strict=True):
            here = reader.read(record, 0, 1)
            assert np.array_equal(found.frames, here.frames)
            assert_same_clip(found, here)


# What goes wrong


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("file", ["mp4", "points.npz", "masks.npz"])
def test_a_damaged_clip_is_named_and_spares_the_others(copy: Path, file: str) -> None:
    reader = ShardReader(copy)
    hurt, spared, _ = reader.records
    with (copy / hurt.shard).open("r+b") as shard:
        shard.seek(hurt.files[file].offset + hurt.files[file].size // 2)
        shard.write(b"\x55\xaa\x55")
    with pytest.raises(InputError, match=r"shard-00000\.tar: clip a dance/1\.mp4 is damaged") as error:
        reader.read(hurt, 0, 1)
    assert "\n" not in str(error.value)
    assert_same_clip(reader.read(spared, 0, 9), ShardReader(copy).read(spared, 0, 9))


def test_of_a_clip_only_the_named_files_are_read(copy: Path) -> None:
    record = ShardReader(copy).records[0]
    wanted = read_packed(copy, record).files["json"]
    with (copy / record.shard).open("r+b") as shard:
        shard.seek(record.files["mp4"].offset)
        shard.write(bytes(record.files["mp4"].size))
    assert read_packed(copy, record, ["json"]).files == {"json": wanted}
    for names in (["json", "mp4"], ["mp4"]):
        with pytest.raises(InputError, match="is damaged"):
            read_packed(copy, record, names)


def test_a_cut_off_or_lost_shard(copy: Path) -> None:
    reader = ShardReader(copy)
    shard = copy / "shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(InputError, match="clip still is damaged"):
        reader.read(reader.records[2], 0, 1)
    shard.unlink()
    with pytest.raises(InputError, match="clip still cannot be read"):
        reader.read(reader.records[2], 0, 1)
    with pytest.raises(InputError, match=r"shard-00001\.tar missing"):
        ShardReader(copy)


def test_what_is_no_data_set(tmp_path: Path, copy: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path / "shard-00000.tar"):
        with pytest.raises(InputError, match="is no data set"):
            ShardReader(path)
    lines = (copy / MANIFEST).read_text().splitlines()
    for damaged in (lines[1][:40], "[]", json.dumps({**json.loads(lines[1]), "files": {}})):
        (copy / MANIFEST).write_text("\n".join([lines[0], damaged]))
        with pytest.raises(InputError, match="line 2 is damaged"):
            ShardReader(copy)


def test_a_data_set_is_not_written_over(folder: Path, clips: list[Clip]) -> None:
    with pytest.raises(InputError, match="holds a data set already"):
        write_shards(clips, folder)


def test_what_is_begun_and_not_ended_is_no_data_set(clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two clips are called still"):
        write_shards([clips[2], clips[1], clips[2]], tmp_path, clips_per_shard=1)
    with pytest.raises(InputError, match="is no data set"):
        ShardReader(tmp_path)

    def interrupted():
        yield clips[2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(interrupted(), tmp_path / "new", clips_per_shard=4)
    assert list((tmp_path / "new").iterdir()) == []
