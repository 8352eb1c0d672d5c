"""A reward model in one file that needs PyTorch alone, made of functions that the book shows.

    python reward.py SFT.safetensors preferences.jsonl preferences_heldout.jsonl
"""

import copy
import json
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

# put: config.bare -> True
# put: config.rope -> True
# put: self.config.bare -> True
# put: self.config.rope -> True
# put: self.qk_norm -> True
# put: config.qk_norm -> True
# put: self.relu2 -> True
# put: rotation is not None -> True
# put: Norm() -> norm
# put: ReluSquared.apply(h) -> F.relu(h).square()
# drop: initialise(self
# drop: for name, rows in (('prompt'
# drop: self.relu2 =
# put: cache is None -> True
# put: cache is not None -> False
# put: allowed is None -> True
# put: self.rotation[positions] -> self.rotation[: tokens.size(1)]
# drop: start = 0
# drop: end = start
# drop: positions = torch.arange(start
# without: cache, allowed, positions
# put: n is None -> False
# put: self.register_buffer('shift', torch.zeros(())) -> None
# put: self.register_buffer('scale', torch.ones(())) -> None
# put: (raw - self.shift) / self.scale -> raw
# drop: self.to(body
# <<config = reward_model.RewardConfig: steps, batch_size, lr, token_weight, centring, seed>>
HEAD_STD = 1e-3  # of the head's first weights
shape = SimpleNamespace(vocab_size=69, context=256, n_layer=4, n_head=2, width=128)
CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKENS = [*CHARACTERS, "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
USER, ASSISTANT, END, PAD = range(65, 69)


def encode(text):
    return [TOKENS.index(character) for character in text]


def question(text):
    return [USER, *encode(text), ASSISTANT]


# <<gpt.norm, gpt.rotation_table, gpt.rotate>>
# <<gpt.Attention, gpt.MLP, gpt.Block, gpt.GPT>>
def load(path):
    """A language model from a safetensors file."""
    data = bytearray(open(path, "rb").read())
    start = 8 + int.from_bytes(data[:8], "little")
    weights = {}
    for name, about in json.loads(data[8:start]).items():
        first, last = (start + place for place in about["data_offsets"])
        numbers = torch.frombuffer(data[first:last], dtype=torch.float32)
        weights[name] = numbers.view(about["shape"])
    model = GPT(shape)
    model.load_state_dict(weights)
    return model


# <<logprobs.pack, preference_pairs.pack_pairs>>
# <<reward_model.RewardModel, reward_model.last_of, reward_model.bradley_terry_loss>>
# <<reward_model.after_parting, reward_model.token_level_loss, batches.epochs>>
def train(model, pairs):
    """Train the model in place; yield each step's loss, from before the step."""
    torch.set_flush_denormal(True)
    options = dict(lr=config.lr, weight_decay=0.0, fused=True)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    draw = torch.Generator().manual_seed(config.seed)
    batches = epochs(len(pairs), min(config.batch_size, len(pairs)), draw)
    for step in range(config.steps):
        tokens, mask = pack_pairs([pairs[i] for i in next(batches)], PAD)  # (2B, T)
        n_compared = int(after_parting(tokens, mask).sum())
        # Raise the chosen answers' scores over the rejected ones'
        scores = model.token_scores(tokens)  # (2B, T)
        chosen, rejected = last_of(scores, mask).chunk(2)  # (B,)
        loss = bradley_terry_loss(chosen, rejected, config.centring)
        by_token = token_level_loss(scores, tokens, mask, n_compared)
        loss = loss + config.token_weight * by_token
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def read(path):
    """The pairs of a file: token ids of prompt, chosen and rejected answer."""
    sides = ("chosen", "rejected")
    rows = [json.loads(line) for line in open(path)]
    return [
        (question(row["prompt"]), *([*encode(row[side]), END] for side in sides))
        for row in rows
    ]


if __name__ == "__main__":
    model = RewardModel(load(sys.argv[1]), torch.Generator().manual_seed(config.seed))
    for step, loss in enumerate(train(model, read(sys.argv[2]))):
        print(f"step {step}: loss {loss:.4f}")
    with torch.no_grad():
        chosen, rejected = model(*pack_pairs(read(sys.argv[3]), PAD)).chunk(2)
    print(f"held-out pairs ranked right: {(chosen > rejected).double().mean():.0%}")
