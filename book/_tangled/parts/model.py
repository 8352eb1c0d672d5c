shape = SimpleNamespace(vocab_size=69, context=256, n_layer=4, n_head=2, width=128, head_size=64)
CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
TOKENS = [*CHARACTERS, "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
USER, ASSISTANT, END, PAD = range(65, 69)


def encode(text):
    return [TOKENS.index(character) for character in text]


def question(text):
    return [USER, *encode(text), ASSISTANT]


# <<gpt.norm, gpt.rotation_table, gpt.rotate>>
# <<gpt.Attention, gpt.MLP, gpt.Block, gpt.GPT>>
