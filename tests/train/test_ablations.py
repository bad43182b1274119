"""Negative controls take effect on the nano model, and leave no trace."""

import pytest
import torch
from torch import Tensor, nn
from xdyna_model.conditions import Conditions
from xdyna_model.nano import nano_pipeline
from xdyna_model.pipeline import XDynaPipeline
from xdyna_train.ablations import CONTROLS, control_off, silenced

FRAMES, HEIGHT, WIDTH = 3, 64, 32


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    pipeline = nano_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def animate(pipeline: XDynaPipeline, pose: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    conditions = Conditions.blank(FRAMES, HEIGHT, WIDTH)
    conditions.pose[:, 20:40, 10:20] = pose
    reference = torch.rand(HEIGHT, WIDTH, 3, generator=generator).mul(255).byte().numpy()
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    return torch.as_tensor(pipeline(reference, conditions, generator=generator, **settings).frames)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_changes_the_result_and_is_taken_back(name: str, pipeline: XDynaPipeline) -> None:
    before = animate(pipeline)
    with CONTROLS[name](pipeline):
        assert not torch.equal(animate(pipeline), before)
    assert torch.equal(animate(pipeline), before)


def test_without_control_the_pose_map_says_nothing(pipeline: XDynaPipeline) -> None:
    assert not torch.equal(animate(pipeline, pose=255), animate(pipeline))
    with control_off(pipeline):
        assert torch.equal(animate(pipeline, pose=255), animate(pipeline))


def test_an_error_inside_puts_the_weights_back() -> None:
    layer = nn.Linear(3, 2)
    weight = layer.weight.detach().clone()

    def stop() -> None:
        with silenced([layer]):
            assert not layer.weight.any()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert torch.equal(layer.weight, weight)


def test_a_model_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"), silenced([]):
        pass
