"""The list of tried settings: each can be made, once, on seeds outside the record."""

import json

from posttrain.dpo import DPOConfig
from posttrain.lab.experiments import CLAIM
from posttrain.lab.tuning import tried, tries
from posttrain.online_dpo import OnlineDPOConfig
from posttrain.ppo import PPOConfig

CONFIGS = {"PPO": PPOConfig, "GRPO": PPOConfig, "on-policy DPO": OnlineDPOConfig}


def test_every_setting_can_be_made_and_stands_once():
    rows = tried()
    for row in rows:
        CONFIGS.get(row["method"], DPOConfig)(**row["settings"])
    named = [
        json.dumps([row["method"], row["settings"]], sort_keys=True) for row in rows
    ]
    assert rows and len(set(named)) == len(named)


def test_every_seed_has_its_numbers_and_is_in_no_record():
    for row in tried():
        n = len(row["seeds"])
        assert n and min(row["seeds"]) >= CLAIM, row
        for key in ("won", "gold_score", "kl", "finished"):
            assert len(row[key]) == n, row


def test_tries_are_counted_by_method():
    assert tries() == {
        method: sum(row["method"] == method for row in tried())
        for method in {row["method"] for row in tried()}
    }
