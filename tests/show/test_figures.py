"""Colours of the stages, and figures that are the same from run to run."""

import matplotlib

from posttrain.show import GREY, setup_figures, stage_colour


def test_each_stage_has_a_colour_of_its_own_by_whatever_name_a_row_calls_it():
    names = [
        "base",
        "SFT",
        "reward model",
        "PPO",
        "DPO",
        "on-policy DPO",
        "best of n",
    ]
    assert len({stage_colour(name) for name in names}) == 7 and None not in map(
        stage_colour, names
    )
    for one, other in (
        ("base model", "base"),
        ("SFT model", "SFT"),
        ("after PPO", "PPO"),
        ("PPO, no fee", "PPO"),
        ("best of 16", "best of n"),
        ("Reward model", "reward model"),
    ):
        assert stage_colour(one) == stage_colour(other)
    assert stage_colour("seed 0") is stage_colour("") is None


def test_figures_are_transparent_with_grey_text_and_a_fixed_salt():
    setup_figures()
    settings = matplotlib.rcParams
    assert settings["text.color"] == settings["axes.labelcolor"] == GREY
    assert settings["xtick.color"] == settings["axes.edgecolor"] == GREY
    assert settings["figure.facecolor"] == "none" and settings["savefig.transparent"]
    assert settings["svg.hashsalt"] == "posttrain"
