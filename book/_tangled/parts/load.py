def load(path, model):
    """A model with the weights of a safetensors file."""
    data, weights = bytearray(open(path, "rb").read()), {}
    start = 8 + int.from_bytes(data[:8], "little")
    for name, about in json.loads(data[8:start]).items():
        first, last = (start + place for place in about["data_offsets"])
        numbers = torch.frombuffer(data[first:last], dtype=torch.float32)
        weights[name] = numbers.view(about["shape"])
