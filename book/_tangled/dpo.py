"""DPO in one file that needs PyTorch alone, made of the functions that the book shows.

    python dpo.py SFT.safetensors preferences.jsonl
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
# <<config = dpo.DPOConfig: steps, batch_size, lr, beta, label_smoothing, nll_weight, seed>>
# <<< model >>>
# <<< load >>>
    model.load_state_dict(weights)
    return model


# <<< say >>>
# <<logprobs.pack, preference_pairs.pack_pairs, logprobs.token_logprobs>>
# <<logprobs.get_response_log_probs, dpo.dpo_loss, batches.epochs>>
def train(policy, reference, pairs):
    """Train the policy in place; yield each step's loss, from before the step."""
    torch.set_flush_denormal(True)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    draw, known = torch.Generator().manual_seed(config.seed), {}
    batches = epochs(len(pairs), min(config.batch_size, len(pairs)), draw)
    for step in range(config.steps):
        rows = next(batches)
        tokens, mask = pack_pairs([pairs[i] for i in rows], PAD)  # (2B, T)
        # Ask the reference, which never changes, once
        if not known:
            with torch.no_grad():
                asked = get_response_log_probs(reference, tokens, mask).view(2, -1)
            known = dict(zip(rows, asked.T))
        ours = get_response_log_probs(policy, tokens, mask).view(2, -1)  # (2, B)
        theirs = torch.stack([known[i] for i in rows], dim=1)  # (2, B)
        loss = dpo_loss(*ours, *theirs, config.beta, config.label_smoothing)
        # Hold the chosen answers up: add their own loss, per token
        lengths = mask.sum(-1).view(2, -1)  # (2, B)
        loss = loss - config.nll_weight * (ours / lengths)[0].mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - step / config.steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


# <<< pairs >>>


if __name__ == "__main__":
    sft = load(sys.argv[1], GPT())
    policy = copy.deepcopy(sft)
    for step, loss in enumerate(train(policy, sft, list(read(sys.argv[2])))):
        print(f"step {step}: loss {loss:.4f}")
    for text in ("Where is the duke?", "What should I wear tonight?"):
        print(text, "\n  before:", say(sft, text), "\n  after: ", say(policy, text))
