"""Which part of a model a parameter belongs to."""

from xdyna_model.nano import nano_pipeline
from xdyna_train.trainee import Trainee, part_of


def test_what_is_told_of_places_belongs_to_what_it_is_added_to() -> None:
    """The adapter has queries and an output of its own; the keys that it shares are the backbone's."""
    own = {n for n, _ in Trainee(nano_pipeline()).named_parameters() if ".attn1.processor." in n}
    drift = ("to_drift.weight", "to_drift.bias", "to_q_ref_drift.weight")
    adapter = ("to_q_ref.weight", "to_q_ref_place.weight", *drift, "to_out_ref.weight", "to_out_ref.bias")
    backbone = ("to_q_place.weight", "to_k_place.weight")
    assert {n.split(".processor.")[1] for n in own} == {*adapter, *backbone}
    for name in own:
        assert part_of(name) == ("adapter" if name.endswith(adapter) else "backbone")
