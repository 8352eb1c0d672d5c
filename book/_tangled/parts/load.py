def load(path):
    """A language model from a safetensors file."""
    data = bytearray(open(path, "rb").read())
    start = 8 + int.from_bytes(data[:8], "little")
    weights = {}
    for name, about in json.loads(data[8:start]).items():
        first, last = (start + place for place in about["data_offsets"])
        numbers = torch.frombuffer(data[first:last], dtype=torch.float32)
        weights[name] = numbers.view(about["shape"])
