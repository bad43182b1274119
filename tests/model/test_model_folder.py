"""Pipeline folders, from here or the hub: what is saved is what is loaded, and each fault gets one clear line."""

import json
import shutil
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil
from xdyna_model.component_fit import check_use
from xdyna_model.errors import InputError
from xdyna_model.model_folder import load_pipeline
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.tiny import tiny_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def test_round_trip(tiny_folder):
    ours, loaded = tiny_pipeline(), load_pipeline(tiny_folder)
    for name, component in ours.components.items():
        if isinstance(component, torch.nn.Module):
            theirs = loaded.components[name].state_dict()
            assert all(torch.equal(tensor, theirs[key]) for key, tensor in component.state_dict().items())
    assert loaded.scheduler.config["beta_schedule"] == "linear"
    assert loaded.tokenizer("a dance").input_ids == ours.tokenizer("a dance").input_ids
    assert (loaded.default_height, loaded.default_width) == (ours.default_height, ours.default_width)


def test_dtype(tiny_folder):
    assert load_pipeline(tiny_folder, torch.bfloat16).unet.conv_in.weight.dtype == torch.bfloat16


def change(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("file", "name"), [(UNET, "conv_out.weight"), (TEXT, "text_model.encoder.layers.0.layer_norm2.weight")]
)
@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "nan", "inf"])
def test_broken_tensors_are_named(folder, file, name, fault):
    def edit(tensors):
        key = name if name in tensors else name.removeprefix("text_model.")
        if fault == "missing":
            del tensors[key]
        elif fault == "extra":
            tensors["surprise"] = torch.zeros(3)
        elif fault == "shape":
            tensors[key] = torch.zeros(3)
        else:
            tensors[key].view(-1)[-1] = float(fault)

    change(folder / file, edit)
    expected = "surprise" if fault == "extra" else name.removeprefix("text_model.").rpartition(".")[0]
    with pytest.raises(InputError, match=expected) as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", [UNET, TEXT, "unet/config.json", "model_index.json", "scheduler/scheduler_config.json"]
)
@pytest.mark.parametrize("fault", ["gone", "cut", "empty"])
def test_broken_files_are_named(folder, file, fault):
    path = folder / file
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if fault == "cut" else b"")
    with pytest.raises(InputError) as caught:
        load_pipeline(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(InputError, match="tokenizer: no tokenizer there"):
        load_pipeline(folder)


def test_a_training_run_stands_for_the_model_in_it(folder):
    assert torch.equal(load_pipeline(folder.parent).unet.conv_in.weight, load_pipeline(folder).unet.conv_in.weight)
    (folder / "model_index.json").unlink()
    with pytest.raises(InputError, match="not a pipeline folder"):
        load_pipeline(folder.parent)


def test_another_pipeline_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    del index["controlnet_face"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="lacks controlnet_face"):
        load_pipeline(folder)


@pytest.mark.parametrize("entry", [None, [], ["diffusers"], [1, 2], "diffusers"])
@pytest.mark.parametrize("name", ["unet", "scheduler"])
def test_an_index_that_names_no_class(folder, name, entry):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {name: entry}))
    with pytest.raises(InputError, match=f"lacks {name}"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *[("default_steps", value, "whole number of at least 1") for value in ("many", 0, -1, 2.0, True, None, [3])],
        ("default_steps", 1000, "is 1000, expected at most 999"),  # the last timestep would be 1000
        *[("default_guidance", v, "finite number") for v in ("7.5", -0.1, float("nan"), float("inf"), True, None)],
        *[("shared_noise", value, "expected true or false") for value in ("yes", 1, None)],
        ("scheduler", ["diffusers", "DDIMInverseScheduler"], "is a DDIMInverseScheduler that cannot .* DDIMScheduler"),
        ("scheduler", ["diffusers", "CogVideoXDPMScheduler"], "is a CogVideoXDPMScheduler that cannot denoise"),
        ("scheduler", ["transformers", "CLIPTokenizer"], "is a CLIPTokenizer that cannot denoise"),
        ("feature_extractor", ["transformers", "CLIPTokenizer"], "is a CLIPTokenizer, expected CLIP's image processor"),
        ("feature_extractor", ["transformers", "ViTImageProcessorPil"], "is a ViTImageProcessorPil, expected CLIP's"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(folder, name, value, says):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(InputError, match=f"^{path}: {name} .*{says}") as caught:
        load_pipeline(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacks", ["default_steps", "default_guidance", "shared_noise"])
def test_an_index_may_lack_defaults(folder, lacks):
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    del index[lacks]
    path.write_text(json.dumps(index))
    assert load_pipeline(folder).config[lacks] == tiny_pipeline().config[lacks]


@pytest.mark.parametrize("fault", [{"prediction_type": "guess"}, {"timestep_spacing": "guess"}, {"steps_offset": 900}])
def test_a_scheduler_that_cannot_do_its_config_is_refused(folder, fault):
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fault))
    with pytest.raises(InputError, match="scheduler is a DDIMScheduler that cannot denoise"):
        load_pipeline(folder)


def test_another_scheduler_that_can_is_taken_as_it_is(folder):
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scheduler": ["diffusers", "DDPMScheduler"]}))
    scheduler = load_pipeline(folder).scheduler
    assert (type(scheduler).__name__, len(scheduler.timesteps)) == ("DDPMScheduler", 1000)
    state = torch.get_rng_state()
    check_use(scheduler, CLIPImageProcessorPil(), 25)
    assert torch.equal(torch.get_rng_state(), state)  # though it draws noise at every step


@pytest.mark.parametrize("size", [{"num_attention_heads": 0}, {"in_channels": -4}])
def test_sizes_that_are_none_are_refused(folder, size):
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | size))
    with pytest.raises(InputError, match="unet: cannot be loaded"):
        load_pipeline(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder; give a pipeline folder or a hub id"):
        load_pipeline(tmp_path / "nowhere")


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of the model owner/name in an empty cache, with the hub out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    commit, cache = "0123456789" * 4, tmp_path / "hub" / "models--owner--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    return cache / "snapshots" / commit


def test_hub_id(tiny_folder, hub):
    shutil.copytree(tiny_folder, hub)
    assert torch.equal(load_pipeline("owner/name").unet.conv_in.weight, tiny_pipeline().unet.conv_in.weight)


def test_hub_id_brings_no_code(tiny_folder, monkeypatch, capsys):
    """Of the files there none is asked for that could run."""
    asked = []

    def download(name, allow_patterns, **_):
        asked.append(name)
        files = {str(path.relative_to(tiny_folder)) for path in tiny_folder.rglob("*") if path.is_file()}
        others = {"image_projection/xdyna_model.image_tokens.py", "pipeline.py", "unet/diffusion_pytorch_model.bin"}
        assert set(filter_repo_objects(files | others, allow_patterns=allow_patterns)) == files
        return str(tiny_folder)

    monkeypatch.setattr("xdyna_model.hub.snapshot_download", download)
    load_pipeline("owner/name")
    assert asked == ["owner/name"]


def test_the_pipeline_itself_takes_a_hub_id(tiny_folder, monkeypatch):
    asked = {}
    monkeypatch.setattr("xdyna_model.hub.snapshot_download", lambda name, **how: asked.update(how) or str(tiny_folder))
    loaded = XDynaPipeline.from_pretrained("owner/name", revision="v2", token="secret")
    assert torch.equal(loaded.unet.conv_in.weight, tiny_pipeline().unet.conv_in.weight)
    assert (asked["revision"], asked["token"], asked["local_files_only"]) == ("v2", "secret", False)


def test_code_in_a_folder_does_not_run(folder, capsys):
    """Where somebody has put it there by other means: as a component's and as the pipeline's own."""
    for path in ("image_projection/xdyna_model.image_tokens.py", "scheduler/own.py", "own.py"):
        (folder / path).write_text("print('code ran')\n")
    load_pipeline(folder)
    index = json.loads((folder / "model_index.json").read_text())
    for change in ({"scheduler": ["own", "DDIMScheduler"]}, {"_class_name": ["own", "XDynaPipeline"]}):
        (folder / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(InputError) as caught:
            load_pipeline(folder)
        assert "\n" not in str(caught.value)
    assert "code ran" not in capsys.readouterr().out


def no_such_model(*_, **__):
    raise RepositoryNotFoundError("401 Client Error.\nRepository Not Found", response=Mock(headers={}))


def no_such_revision(*_, **__):
    raise RevisionNotFoundError("404 Client Error.\nRevision Not Found", response=Mock(headers={}))


def no_network(*_, **__):
    raise LocalEntryNotFoundError("Got: ConnectError: no route to host\nPlease check your internet connection")


def broken_off(*_, **__):
    raise HTTPError("connection reset")  # of the client below the hub's, and no OSError


@pytest.mark.parametrize(
    ("download", "says"),
    [
        (None, "HF_HUB_OFFLINE keeps the hub from being asked, and no whole copy is here"),
        (no_such_model, "the hub has no such model, or not for you; check the name, or log in"),
        (no_such_revision, "the hub has no revision None of it"),
        (no_network, r"the hub does not give it \(Got: ConnectError: no route to host\); check the network"),
        (broken_off, r"the hub does not give it \(connection reset\); check the network"),
    ],
)
def test_hub_id_that_does_not_come(hub, monkeypatch, download, says):
    if download is not None:
        monkeypatch.setattr("xdyna_model.hub.snapshot_download", download)
    with pytest.raises(InputError, match=f"^owner/name: .*{says}") as caught:
        load_pipeline("owner/name")
    assert "\n" not in str(caught.value)
