# put: cache is not None -> False
# put: causal -> True
# put: self.rotation[positions] -> self.rotation[: tokens.size(1)]
# drop: self.layer, self.n_head, self.qk_norm =
# drop: causal =
# drop: start = 0
# drop: end = start
# drop: positions = torch.arange(start
# without: cache, allowed, positions, layer
