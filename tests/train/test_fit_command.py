"""`xdyna-train fit`: what it writes, what it makes of a data set, and what it refuses."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from xdyna_model.errors import InputError
from xdyna_model.model_folder import load_pipeline
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.tiny import tiny_pipeline
from xdyna_model.video import read_frames
from xdyna_train import fit_command, starts, train
from xdyna_train.cli import main
from xdyna_train.config import PRESETS, Config, Stage
from xdyna_train.fit_command import FitJob, _for_data, _looked_at, run
from xdyna_train.puppet_clips import PuppetSet, write_puppets
from xdyna_train.puppet_source import PuppetSource
from xdyna_train.shard_source import ShardSource
from xdyna_train.starts import StartFiles
from xdyna_train.training_run import set_prediction


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of people, six frames each."""
    folder = tmp_path_factory.mktemp("data") / "people"
    write_puppets(PuppetSet(3, 0, 64, 64, 6, 0.0), folder)
    return folder


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """`smoke`, shorter still, with a look after two steps that takes one denoising step."""

    def start(seed: int) -> XDynaPipeline:
        pipeline = tiny_pipeline(seed)
        pipeline.register_to_config(default_steps=1, default_guidance=1.0)
        return pipeline

    monkeypatch.setattr(starts, "tiny_pipeline", start)
    stages = (
        Stage("fusion", ("adapter", "motion"), frames=2, batch=1, human_share=1.0, steps=2),
        Stage("face", ("controlnet_face",), frames=2, batch=1, human_share=1.0, steps=1),
    )
    monkeypatch.setitem(PRESETS, "small", Config(stages, "tiny", 64, 64, 1e-3, workers=0, sample_every=2))


@pytest.mark.usefixtures("small_preset")
def test_a_run_leaves_a_model_that_can_be_trained_further(people: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "runs" / "first"
    run(FitJob("small", out, (people,)), said.append)

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["stage"] for line in lines] == ["fusion", "fusion", "face"]
    assert all(math.isfinite(line["loss"]) for line in lines)

    influence = json.loads((out / "residuals.json").read_text())
    assert set(influence) == {"before", "after"}
    assert all(share > 0 for nets in influence.values() for shares in nets.values() for share in shares.values())
    assert influence["before"]["face"] != influence["after"]["face"]  # the last stage trains this one

    (video,) = (out / "samples").iterdir()
    assert video.name == "step-00000002.mp4"
    assert len(read_frames(video).frames) == 2
    assert f"--model {out / 'model'}" in said[-1]

    again = tmp_path / "again"
    run(FitJob("small", again, (people,), steps=1, files=StartFiles(init=out / "model")), said.append)
    assert len((again / "metrics.jsonl").read_text().splitlines()) == 1
    first, second = (load_pipeline(folder / "model").unet.state_dict() for folder in (out, again))
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved
    assert all(".processor." in name or ".motion_modules." in name for name in moved)


@pytest.mark.usefixtures("small_preset")
def test_a_run_can_differ_from_its_preset(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Config] = []

    def spy(pipeline: XDynaPipeline, source: ShardSource, config: Config, *rest: object) -> None:
        given.append(config)
        train.fit(pipeline, source, replace(config, stages=config.stages[:1]), *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(fit_command, "fit", spy)
    changes = {"batch": 2, "accumulate": 2, "snr_gamma": 5.0, "prediction": "v_prediction"}
    run(FitJob("small", tmp_path / "run", (people,), **changes), print)
    assert [stage.batch for stage in given[0].stages] == [2, 2]
    assert (given[0].accumulate, given[0].snr_gamma) == (2, 5.0)
    scheduler = load_pipeline(tmp_path / "run" / "model").scheduler
    assert scheduler.config["prediction_type"] == "v_prediction"


@pytest.mark.usefixtures("small_preset")
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_is_refused_leaves_what_another_has_measured(
    resume: str | None, people: Path, tmp_path: Path, at_work: Callable
) -> None:
    (tmp_path / "residuals.json").write_text("of the run that is at work")
    with at_work(tmp_path), pytest.raises(InputError, match="another run is at work there"):
        run(FitJob("small", tmp_path, (people,), seed=1, resume=resume), print)
    assert (tmp_path / "residuals.json").read_text() == "of the run that is at work"


@pytest.mark.usefixtures("small_preset")
def test_what_was_measured_before_is_of_the_model_that_training_began_with(people: Path, tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint has measured a model that nobody trains any further."""
    job = FitJob("small", tmp_path / "killed", (people,), seed=1, resume="auto")
    run(replace(job, out=tmp_path / "whole"), print)
    first = json.loads((tmp_path / "whole" / "residuals.json").read_text())
    job.out.mkdir()
    (job.out / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    (job.out / "residuals.json").write_text('{"before": "of another"}')
    run(job, print)
    assert json.loads((job.out / "residuals.json").read_text())["before"] == first["before"]

    said: list[str] = []
    (job.out / "residuals.json").write_text('{"before": "what a resumed run leaves"}')
    run(job, said.append)
    assert json.loads((job.out / "residuals.json").read_text())["before"] == "what a resumed run leaves"
    assert not any("Mean residual before" in line for line in said)


@pytest.mark.parametrize("human_share", [0.0, 0.1, 0.6])
def test_training_is_watched_on_a_person_where_a_stage_has_any(human_share: float) -> None:
    """A stage of one clip a step has them by turns; which the first would be hangs on the seed."""
    stage = Stage("long", (), frames=2, batch=1, human_share=human_share, steps=1)
    pipeline, source = tiny_pipeline(0), PuppetSource(64, 64)
    batches = [_looked_at(pipeline, source, Config((stage,)), seed) for seed in range(6)]
    assert [batch.human.item() for batch in batches] == [human_share > 0] * 6


def test_a_prediction_that_is_refused_leaves_the_model_s(config: Config) -> None:
    pipeline = tiny_pipeline(0)
    numbers = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **numbers)
    with pytest.raises(InputError, match="take v_prediction or sample"):
        set_prediction(pipeline, replace(config, prediction="epsilon"))
    set_prediction(pipeline, config)
    assert pipeline.scheduler.config["prediction_type"] == "v_prediction"
    set_prediction(pipeline, replace(config, prediction="sample"))
    assert pipeline.scheduler.config["prediction_type"] == "sample"


@pytest.mark.usefixtures("small_preset")
def test_a_run_is_not_resumed_with_other_data(people: Path, tmp_path: Path) -> None:
    write_puppets(PuppetSet(3, 1, 64, 64, 6, 0.0), tmp_path / "others")
    run(FitJob("small", tmp_path / "run", (people,), steps=2), print)
    for other in ((tmp_path / "others",), ()):
        with pytest.raises(InputError, match="was trained with another data"):
            run(FitJob("small", tmp_path / "run", other, steps=2, resume="auto"), print)
    shutil.copytree(people, tmp_path / "moved")
    run(FitJob("small", tmp_path / "run", (tmp_path / "moved",), steps=2, resume="auto"), print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "choose from paper, nano, nano-gpu, nano-gpu-finish, smoke"),
        (["--steps", "0"], "--steps 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", str(2**63)], "below 2**63"),
        (["--batch", "0"], "--batch 0: give a number of at least 1"),
        (["--accumulate", "0"], "--accumulate 0: give a number of at least 1"),
        (["--accumulate", "3"], "a batch of 2 clips cannot be shared by 1 processes in 3 parts each"),
        (["--snr-gamma", "nan"], "--snr-gamma nan: give a number above 0"),
        (["--prediction", "noise"], "choose from epsilon, v_prediction, sample"),
        (["--reenactor", "some.onnx"], "it goes with --data"),
        (["--workers", "-1"], "--workers -1"),
        (["--batch", str(10**20)], "give a number of at most 65536"),
        (["--steps", "9" * 401], "give a number of at most 99999999"),
        (["--preset", "nano-gpu-finish"], "goes on from a model of nano-gpu; give that one as --init"),
        (["--sd15", "nowhere"], "--sd15: would not be read, --preset smoke starts from scratch"),
        (["--init", "nowhere", "--image-encoder", "nowhere"], "--image-encoder: would not be read, --init is a whole"),
        (["--preset", "nano", "--prediction", "epsilon"], "take v_prediction or sample"),
        (["--resume", "yes"], "the only way is auto"),
        (["--shard"], "one process has nobody to share the weights with"),
        (["--preset", "paper"], "as --data"),
        (["--data", "nowhere"], "is no data set"),
        (["--init", "nowhere"], "no such folder"),
        (
            ["--reenactor", "nowhere.onnx", "--data", "nowhere"],
            "no such file; give the ONNX file of a reenactment model",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--preset", "smoke", "--out", str(tmp_path / "out"), *options])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(fit_command, "run", fail)
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--preset", "smoke", "--out", str(tmp_path)])
    assert capsys.readouterr().err.startswith("xdyna-train: error: out of memory; fit with a larger --accumulate")


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be made a folder"):
            run(FitJob("smoke", out), print)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=4), st.integers(1, 3000))
def test_stages_share_the_steps_as_in_the_preset(preset: list[int], steps: int) -> None:
    stages = tuple(Stage(str(n), (), frames=1, batch=1, human_share=1, steps=n) for n in preset)
    shared = Config(stages).lasting(steps).stages
    assert sum(stage.steps for stage in shared) == steps
    assert min(stage.steps for stage in shared) >= 1
    assert [stage.name for stage in shared] == [stage.name for stage in stages[:steps]]
    exact = [steps * n / sum(preset) for n in preset]
    if min(exact) >= 1:
        assert all(abs(stage.steps - share) <= 1 for stage, share in zip(shared, exact, strict=True))


def test_epochs_are_counted_over_the_clips_of_a_stage(people: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    write_puppets(PuppetSet(8, 1, 32, 32, 5, 0.5), both)  # four of people, four of scenes
    stages = (
        Stage("fusion", ("adapter",), frames=5, batch=3, human_share=0.5, epochs=5),
        Stage("face", ("controlnet_face",), frames=5, batch=3, human_share=1.0, epochs=2),
    )
    config, notes = _for_data(Config(stages), ShardSource([people, both], 32, 32))
    assert [stage.steps for stage in config.stages] == [math.ceil(5 * 11 / 3), math.ceil(2 * 7 / 3)]
    assert not notes

    config, notes = _for_data(Config(stages), ShardSource(people, 32, 32))
    assert config.stages[0].human_share == 1
    assert config.stages[0].steps == 5
    assert len(notes) == 1
    assert "fusion" in notes[0]

    scenes = tmp_path / "scenes"
    write_puppets(PuppetSet(2, 1, 32, 32, 5, 1.0), scenes)
    with pytest.raises(InputError, match="no clip shows a person"):
        _for_data(Config(stages), ShardSource(scenes, 32, 32))
