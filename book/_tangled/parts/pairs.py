def read(path):
    """The pairs of a file: token ids of prompt, chosen and rejected answer."""
    for row in map(json.loads, open(path)):
        chosen, rejected = ([*encode(row[side]), END] for side in ("chosen", "rejected"))
        yield question(row["prompt"]), chosen, rejected
