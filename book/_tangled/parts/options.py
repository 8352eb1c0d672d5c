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
