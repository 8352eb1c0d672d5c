"""Our settings' names exist, each once."""

from collections import Counter
from dataclasses import fields

from posttrain import dpo, ppo, reward_model, sft
from posttrain.scale.hand_over import NAMES

OURS = {
    c.__name__: c
    for c in (sft.SFTConfig, reward_model.RewardConfig, dpo.DPOConfig, ppo.PPOConfig)
}


def test_every_name_of_ours_is_a_field_and_stands_there_once():
    for name in NAMES:
        config, _, field = name.ours.partition(".")
        assert field in {f.name for f in fields(OURS[config])}, name
        assert name.trl or name.openrlhf, name
        assert not name.openrlhf or name.openrlhf.startswith("--")
    assert max(Counter(name.ours for name in NAMES).values()) == 1
