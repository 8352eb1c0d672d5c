"""Colours of the stages, and figures that are the same from run to run."""

from posttrain.show import stage_colour


def test_each_stage_has_a_colour_of_its_own_by_whatever_name_a_row_calls_it():
    names = ["base", "SFT", "reward model", "PPO", "DPO", "DPO, own answers", "best of n"]
    assert len({stage_colour(name) for name in names}) == 7 and None not in map(stage_colour, names)
    for one, other in (("base model", "base"), ("SFT model", "SFT"), ("after PPO", "PPO"), ("PPO, no fee", "PPO"), ("best of 16", "best of n"), ("Reward model", "reward model")):
        assert stage_colour(one) == stage_colour(other)
    assert stage_colour("seed 0") is stage_colour("") is None
