"""Parts of a checkpoint file are found under their key and, as in safetensors, by the beginning of their names."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from xdyna_model.checkpoint_files import read_tensors
from xdyna_model.errors import InputError
from xdyna_model.model_folder import convert_image_projection

IMAGE = {"latents": torch.arange(6.0), "layers.0.ip_adapter.weight": torch.ones(2)}
ATTENTION = {"1.to_k_ip.weight": torch.zeros(3), "1.to_v_ip.weight": torch.full((3,), 2.0)}
FLAT = {f"image_proj.{n}": t for n, t in IMAGE.items()} | {f"ip_adapter.{n}": t for n, t in ATTENTION.items()}
NESTED = {"image_proj": IMAGE, "ip_adapter": ATTENTION}


def same(read: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    return read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("whole", [FLAT, NESTED, {"state_dict": FLAT}, {"state_dict": NESTED}, "safetensors"])
def test_each_part_is_found(tmp_path: Path, whole: dict | str) -> None:
    """As h94/IP-Adapter publishes them: the `.bin` nests, the `.safetensors` cannot."""
    path = tmp_path / ("ip.safetensors" if whole == "safetensors" else "ip.bin")
    if isinstance(whole, str):
        save_file(FLAT, path)
    else:
        torch.save(whole, path)
    assert same(read_tensors(path, "image_proj"), IMAGE)
    assert same(read_tensors(path, "ip_adapter"), ATTENTION)


@pytest.mark.parametrize("whole", [IMAGE, {"state_dict": IMAGE}, {"image_proj": {"state_dict": IMAGE}}])
@pytest.mark.parametrize("part", ["image_proj", "state_dict"])
def test_without_such_a_part_it_is_all(tmp_path: Path, whole: dict, part: str) -> None:
    torch.save(whole, tmp_path / "part.bin")
    if part == "state_dict" and "image_proj" in whole:
        with pytest.raises(InputError, match="holds other things than tensors"):
            read_tensors(tmp_path / "part.bin", part)
    else:
        assert same(read_tensors(tmp_path / "part.bin", part), IMAGE)


@pytest.mark.parametrize("whole", [{"image_proj": torch.ones(1)}, {"state_dict": torch.ones(1)}, {"state_dict": None}])
def test_a_part_that_is_no_dict_is_refused(tmp_path: Path, whole: dict) -> None:
    torch.save(whole, tmp_path / "part.bin")
    with pytest.raises(InputError, match=r"part\.bin: holds other things than tensors"):
        read_tensors(tmp_path / "part.bin", "image_proj")


def test_a_file_without_the_part_is_still_refused(tmp_path: Path) -> None:
    save_file({f"ip_adapter.{name}": tensor for name, tensor in ATTENTION.items()}, tmp_path / "ip.safetensors")
    with pytest.raises(InputError, match=r"ip\.safetensors: not the weights of a image projection: missing latents"):
        convert_image_projection(tmp_path / "ip.safetensors")


def sparse(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch calls sparse tensors new
        return tensor.to_sparse_csr()


@pytest.mark.parametrize(
    ("turned", "says"),
    [
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda tensor: tensor.to(torch.int8), "int8"),
        (lambda tensor: tensor.bool(), "bool"),
        (lambda tensor: tensor.to(torch.complex64), "complex64"),
        (lambda tensor: tensor.to_sparse(), "sparse_coo float32"),
        (sparse, "sparse_csr float32"),
    ],
)
def test_numbers_of_another_kind_are_refused_by_name(tmp_path: Path, turned: Callable, says: str) -> None:
    torch.save({"whole": torch.ones(2, 2), "odd.weight": turned(torch.ones(2, 2))}, tmp_path / "part.bin")
    with pytest.raises(InputError, match=rf"part\.bin: .*: odd\.weight \({says}\); ") as caught:
        read_tensors(tmp_path / "part.bin", "image_proj")
    assert "whole" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_of_every_usual_kind_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"weight": torch.ones(2, 2, dtype=dtype)}
    torch.save(tensors, tmp_path / "part.bin")
    assert same(read_tensors(tmp_path / "part.bin", "image_proj"), tensors)


def test_names_that_are_no_strings_are_refused(tmp_path: Path) -> None:
    torch.save({1: torch.ones(1)}, tmp_path / "part.bin")
    with pytest.raises(InputError, match=r"part\.bin: holds other things than tensors; expected named tensors"):
        convert_image_projection(tmp_path / "part.bin")
