"""Fine-tuning in one file that needs PyTorch alone, made of functions that the book shows.

    python sft.py BASE.safetensors conversations.jsonl tinyshakespeare.txt
"""

import json
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

# <<< options >>>
# <<< uncached >>>
# put: tokenizer.assistant -> ASSISTANT
# put: tokenizer.end -> END
# put: count_graded(labels) if n_graded is None else n_graded -> int((targets != IGNORE).sum())
# put: F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction='sum') -> F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='sum')
# put: parameter.grad is not None -> True
# put: torch.stack([state['momentum'] for state in states]) -> self.state.setdefault(gradients.shape, torch.zeros_like(gradients))
# put: orthogonalise(squares, group['steps']) -> orthogonalise(squares)
# put: POLAR_EXPRESS[:steps] -> POLAR_EXPRESS
# drop: states = [self.state
# drop: for state, parameter in zip(states
# drop: for state, average in zip(states
# without: tokenizer, n_graded, steps
# <<config = sft.SFTConfig: steps, batch_size, muon_lr, adamw_lr, seed; replay, replay_length, replay_weight>>
IGNORE = -100  # the label of what no loss grades: PyTorch's cross-entropy skips it
POLAR_EXPRESS = (8.2051, -22.9019, 16.4607), (4.0664, -2.8612, 0.5184), (3.9096, -2.8234, 0.5250)
# <<< model >>>
# <<< load >>>
    # Make room for the chat's tokens: each new row is the mean of the old ones
    for name in ("embedding.weight", "head.weight"):
        mean = weights[name].mean(0, keepdim=True)  # (1, C)
        new = shape.vocab_size - len(weights[name])
        weights[name] = torch.cat([weights[name], mean.expand(new, -1)])
    model.load_state_dict(weights)
    return model


# <<< say >>>
# <<optim.orthogonalise, optim.Muon, chat.build_labels, chat.collate, sft.sft_loss>>
# <<pretrain.random_batch, pretrain.next_token_loss, batches.epochs>>
def train(model, examples, text):
    """Fine-tune the model in place; yield each step's loss, from before the step."""
    torch.set_flush_denormal(True)
    inside = [each for each in model.blocks.parameters() if each.dim() == 2]
    rest = [dict(params=[model.head.weight])]
    rest += [dict(params=[model.embedding.weight], lr=3 * config.adamw_lr)]
    options = dict(lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    optimizers = [Muon(inside, lr=config.muon_lr), torch.optim.AdamW(rest, **options)]
    groups = [group for each in optimizers for group in each.param_groups]
    peaks, draw = [group["lr"] for group in groups], torch.Generator()
    batches = epochs(len(examples), config.batch_size, draw.manual_seed(config.seed))
    for step in range(config.steps):
        tokens, labels = collate([examples[i] for i in next(batches)], PAD)  # (B, T)
        excerpt = random_batch(text, config.replay, config.replay_length, draw)
        loss = sft_loss(model(tokens), labels)
        loss.backward()
        # Replay some of the old text, with a weight
        (config.replay_weight * next_token_loss(model, *excerpt)).backward()
        for group, peak in zip(groups, peaks):
            group["lr"] = peak * (1 - step / config.steps)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss.item()


def read(path):
    """The conversations of a file: token ids and labels."""
    for row in map(json.loads, open(path)):
        ids = []
        for turn in row["messages"]:
            said = encode(turn["content"])
            ids += [USER, *said] if turn["role"] == "user" else [ASSISTANT, *said, END]
        yield ids, build_labels(ids)


if __name__ == "__main__":
    model, play = load(sys.argv[1], GPT()), open(sys.argv[3]).read()
    text = torch.tensor(encode(play[: int(0.9 * len(play))]))
    for step, loss in enumerate(train(model, list(read(sys.argv[2])), text)):
        print(f"step {step}: loss {loss:.4f}")
    print(say(model, "Where is the duke?"))
