"""Fine-tuning in one file that needs PyTorch alone, made of functions that the book shows.

    python sft.py BASE.safetensors conversations.jsonl tinyshakespeare.txt
"""

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
# put: n_graded is None -> False
# drop: n_graded = 
# <<config = sft.SFTConfig: steps, batch_size, muon_lr, adamw_lr, replay, replay_length, replay_weight, seed>>
IGNORE = -100  # the label of what no loss grades
POLAR_EXPRESS = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
)
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
    # Make room for the chat's tokens: each new row is the mean of the old ones
    for name in ("embedding.weight", "head.weight"):
        mean = weights[name].mean(0, keepdim=True)  # (1, C)
        new = shape.vocab_size - len(weights[name])
        weights[name] = torch.cat([weights[name], mean.expand(new, -1)])
    model = GPT(shape)
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def say(model, text, temperature=0.8, seed=0):
    """What the model answers to a question."""
    draw, tokens = torch.Generator().manual_seed(seed), question(text)
    while tokens[-1] != END and len(tokens) < 200:
        odds = (model(torch.tensor([tokens]))[0, -1] / temperature).softmax(-1)
        tokens.append(torch.multinomial(odds, 1, generator=draw).item())
    return "".join(TOKENS[i] for i in tokens[len(question(text)) :])


# <<optim.orthogonalise, optim.Muon, chat.build_labels, chat.collate, sft.sft_loss>>
# <<sft.count_graded, pretrain.random_batch, pretrain.next_token_loss, batches.epochs>>
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
        loss = sft_loss(model(tokens), labels, count_graded(labels))
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
    tokenizer = SimpleNamespace(assistant=ASSISTANT, end=END)
    for row in map(json.loads, open(path)):
        ids = []
        for turn in row["messages"]:
            said = encode(turn["content"])
            ids += [USER, *said] if turn["role"] == "user" else [ASSISTANT, *said, END]
        yield ids, build_labels(ids, tokenizer)


if __name__ == "__main__":
    model, play = load(sys.argv[1]), open(sys.argv[3]).read()
    text = torch.tensor(encode(play[: int(0.9 * len(play))]))
    for step, loss in enumerate(train(model, list(read(sys.argv[2])), text)):
        print(f"step {step}: loss {loss:.4f}")
    print(say(model, "Where is the duke?"))
