@torch.no_grad()
def say(model, text, temperature=0.8, seed=0):
    """What the model answers to a question."""
    draw, tokens = torch.Generator().manual_seed(seed), question(text)
    while tokens[-1] != END and len(tokens) < 200:
        odds = (model(torch.tensor([tokens]))[0, -1] / temperature).softmax(-1)
        tokens.append(torch.multinomial(odds, 1, generator=draw).item())
    return "".join(TOKENS[i] for i in tokens[len(question(text)) :])


