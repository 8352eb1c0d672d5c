# put: config.bare -> True
# put: config.rope -> True
# put: self.config.rope -> True
# put: rotation is not None -> True
# put: rotate(qk, rotation) -> rotate(norm(qk), rotation)
# put: self.embedding(tokens) -> norm(self.embedding(tokens))
# put: self.attention_norm -> norm
# put: self.mlp_norm -> norm
# put: self.final_norm -> norm
# put: self.up(x) -> F.relu(self.up(x)).square()
# put: self.n_head -> shape.n_head
# put: config.width // config.n_head -> shape.head_size
# put: config.width -> shape.width
# put: config.context -> shape.context
# put: config.n_layer -> shape.n_layer
# put: config.vocab_size -> shape.vocab_size
# put: nn.Linear(width, 1) -> nn.Linear(shape.width, 1)
# put: torch.arange(mask.size(1), device=mask.device) -> torch.arange(mask.size(1))
# drop: self.attention_norm =
# drop: self.mlp_norm =
# drop: self.final_norm =
# drop: self.relu2 =
# drop: h = ReluSquared
# drop: if self.qk_norm
# drop: x = norm(x) if
# drop: self.config =
# drop: initialise(self
# drop: width = body.config.width
# drop: self.to(body
# drop: for name, rows in (('prompt'
# without: config
# without in gpt.GPT: generator
