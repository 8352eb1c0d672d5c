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

# <<< options >>>
# <<< uncached >>>
# put: n is None -> False
# put: (raw - self.shift) / self.scale -> self.head(self.body.hidden(tokens)).squeeze(-1)
# put: HEAD_STD -> 0.001
# drop: raw = 
# drop: self.register_buffer('shift'
# drop: self.register_buffer('scale'
# <<config = reward_model.RewardConfig: steps, batch_size, lr, token_weight, centring, seed>>
# <<< model >>>
# <<< load >>>
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


# <<< pairs >>>


if __name__ == "__main__":
    sft, draw = load(sys.argv[1], GPT()), torch.Generator().manual_seed(config.seed)
    model = RewardModel(sft, draw)
    for step, loss in enumerate(train(model, list(read(sys.argv[2])))):
        print(f"step {step}: loss {loss:.4f}")
    with torch.no_grad():
        chosen, rejected = model(*pack_pairs(list(read(sys.argv[3])), PAD)).chunk(2)
    print(f"held-out pairs ranked right: {(chosen > rejected).double().mean():.0%}")
