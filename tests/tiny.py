"""Small models that need no training, and what several test files measure them with."""

import copy
from dataclasses import fields

import torch

from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig
from posttrain.gpt import GPT, GPTConfig
from posttrain.ppo import PPOConfig
from posttrain.pretrain import PretrainConfig
from posttrain.reward_model import RewardConfig, RewardModel
from posttrain.sft import SFTConfig
from posttrain.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
PAD, END = TOKENIZER.pad, TOKENIZER.end
CONFIG = GPTConfig(vocab_size=69, context=64, n_layer=1, n_head=1, width=16)
LONG = GPTConfig(
    vocab_size=69, context=160, n_layer=1, n_head=1, width=16
)  # room for 96 new tokens
CORPUS = Corpus(text="To be, or not to be." * 5, source="test", sha256="0" * 64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(seed=0, dtype=torch.float64, config=CONFIG):
    """A chat model none of whose weights are zero, which ends some of its answers
    within six tokens.
    """
    generator = seeded(seed)
    model = GPT(config, generator).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=dtype
            )
        model.head.weight[END] *= 4
    return model


def judge(seed=0, dtype=torch.float64, config=CONFIG):
    """A reward model whose scores are far from 0, and whose zero and unit have been
    moved.
    """
    model = RewardModel(moved(seed, dtype, config), seeded(seed))
    with torch.no_grad():
        model.head.weight.normal_(generator=seeded(seed + 1))
        model.head.bias.fill_(0.3)
        model.shift.fill_(0.25)
        model.scale.fill_(1.5)
    return model


def empty_shelf(monkeypatch, folder):
    """Keep stages in an empty folder."""
    monkeypatch.setenv("POSTTRAIN_STAGES", str(folder))


def shortened(monkeypatch, kind, **values):
    """Give settings other defaults, which is no change of the code."""
    names = [field.name for field in fields(kind)]
    defaults = dict(zip(names, kind.__init__.__defaults__, strict=True)) | values
    monkeypatch.setattr(kind.__init__, "__defaults__", tuple(defaults.values()))


def tiny_stages(monkeypatch, folder):
    """Keep stages in an empty folder, where each is trained in moments, by the code as
    it is.
    """
    empty_shelf(monkeypatch, folder)
    model = GPTConfig(n_layer=1, n_head=1, width=16)
    shortened(
        monkeypatch,
        PretrainConfig,
        model=model,
        steps=2,
        sequence_length=32,
        evaluations=1,
    )
    shortened(monkeypatch, SFTConfig, steps=2, replay_length=32, evaluations=2)
    shortened(monkeypatch, RewardConfig, steps=2)
    shortened(monkeypatch, PPOConfig, iterations=1, batch_size=4, max_new_tokens=4)
    shortened(monkeypatch, DPOConfig, steps=2)


def stored(model):
    """A function to stand in for one that finds a trained model, giving a copy each
    time, and the list of its calls.
    """
    asked = []

    def find(*arguments, **options):
        asked.append(arguments)
        return copy.deepcopy(model), {}

    return find, asked


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def close(one, other, atol=1e-12):
    one, other = one.detach(), torch.as_tensor(other, dtype=one.dtype).detach()
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before, model):
    return all(
        torch.equal(before[name], value) for name, value in model.state_dict().items()
    )


def user(text):
    return dict(role="user", content=text)


def pair(name, prompt, chosen, rejected):
    return dict(id=name, prompt=prompt, chosen=chosen, rejected=rejected)
