"""Where an output is a link, it is what the link leads to that is checked, written and kept."""

import os
from pathlib import Path

import pytest
from xdyna_model.errors import InputError
from xdyna_model.outputs import check_output, staged, staged_folder


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def test_a_link_to_nowhere_is_refused_before_the_work(tmp_path: Path) -> None:
    out = link(tmp_path / "out.mp4", tmp_path / "disk" / "x.mp4")
    with pytest.raises(InputError) as refused:
        check_output(out)
    disk = tmp_path / "disk"
    assert str(refused.value) == (
        f"{out} (leads to {disk / 'x.mp4'}): the folder {disk} does not exist; create it first, or write somewhere else"
    )
    disk.mkdir()
    check_output(out)
    assert not list(disk.iterdir())
    with staged(out) as [draft]:
        draft.write_bytes(b"new")
    assert (disk / "x.mp4").read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_a_folder_is_made_where_a_link_leads(tmp_path: Path, monkeypatch, there: bool, relative: bool) -> None:
    monkeypatch.chdir(tmp_path)
    disk = tmp_path / "disk"
    (disk / "model" if there else disk).mkdir(parents=True)
    out = link(Path("out"), Path("disk/model") if relative else disk / "model")
    with staged_folder(out) as draft:
        assert draft.parent == disk
        (draft / "weights").write_bytes(b"1")
    assert out.is_symlink()
    assert (out / "weights").read_bytes() == b"1"
    assert [path.name for path in disk.iterdir()] == ["model"]
    with pytest.raises(InputError, match=r"^out \(leads to .*disk/model\): is there already"), staged_folder(out):
        pass


def refusal(path: Path) -> str:
    """What `staged_folder` says before anything is done; nothing is left behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(InputError) as refused, staged_folder(path):
        raise AssertionError("the work has begun")
    assert sorted(path.parent.iterdir()) == before
    return str(refused.value)


def test_folders_that_cannot_be_replaced_are_refused_before_the_work(tmp_path: Path, monkeypatch) -> None:
    disk, loop = tmp_path / "disk", link(tmp_path / "loop", tmp_path / "loop")
    disk.mkdir()
    assert "loop: is there already" in refusal(loop)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == disk)
    expected = "is a mount point, which cannot be replaced; give the name of a new folder in it"
    assert refusal(disk) == f"{disk}: {expected}"
    assert refusal(link(tmp_path / "out", disk)) == f"{tmp_path / 'out'} (leads to {disk}): {expected}"


def test_a_parent_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)  # the superuser may write anywhere
    assert "model: cannot be written (permission denied)" in refusal(tmp_path / "model")
