"""PPO in one file that needs PyTorch alone, made of the functions that the book shows.

    python ppo.py SFT.safetensors REWARD.safetensors prompts.jsonl
"""

import copy
import json
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

# <<< options >>>
# put in gpt.Attention: self.layer, self.n_head, self.qk_norm = (layer, config.n_head, config.qk_norm) -> self.layer = layer
# put in gpt.Attention: causal -> allowed is None
# put in gpt.GPT: torch.arange(start, end) -> torch.arange(tokens.size(1))
# put in gpt.GPT: cache.length = end -> cache.length += tokens.size(1)
# drop in gpt.Attention: causal =
# drop in gpt.GPT: start =
# drop in gpt.GPT: end =
# put in gpt.KVCache: shape = (config.n_layer, 2, batch_size, config.n_head, length, config.width // config.n_head) -> self.keys_values = torch.empty(shape.n_layer, 2, batch_size, shape.n_head, length, shape.head_size)
# drop in gpt.KVCache: self.keys_values = torch.empty
# without in gpt.KVCache: dtype
# put in sampling.draw: temperature or 1.0 -> config.temperature
# put in sampling.draw: temperature == 0 -> False
# without in sampling.draw: temperature
# put in sampling.sample_steps: KVCache(model.config, B, length, model.head.weight.dtype) -> KVCache(B, length)
# put in sampling.left_pad: list(prompt) -> prompt
# put in sampling.sample_steps: mask.new_ones(B, max_new_tokens) -> mask.new_ones(B, config.max_new_tokens)
# put in sampling.sample_steps: max_new_tokens -> config.max_new_tokens
# put in sampling.sample_steps: padded -> True
# put in sampling.sample_steps: token != stop -> token != END
# put in sampling.sample_steps: stop is not None -> True
# drop in sampling.sample_steps: check_request(
# drop in sampling.sample_steps: padded =
# without in sampling.sample_steps: max_new_tokens, temperature, stop
# put in reward_model.RewardModel: copy.deepcopy(body) -> body
# drop in reward_model.RewardModel: nn.init
# drop in reward_model.RewardModel: # Start near 0
# without in reward_model.RewardModel: generator
# put in ppo.ValueModel: nn.Linear(body.config.width, 1).to(body.embedding.weight.dtype) -> nn.Linear(shape.width, 1)
# drop in ppo.ValueModel: nn.init
# put in ppo.token_rewards: torch.arange(actions.size(1), device=actions.device) -> torch.arange(actions.size(1))
# put in ppo.assemble: Models(policy, value_model, sft, reward_model) -> SimpleNamespace(policy=policy, value_model=value_model, reference=sft, reward_model=reward_model)
# put in ppo.pick: Rollout -> SimpleNamespace
# drop in ppo.minibatch_losses: with torch.no_grad
# without in ppo.minibatch_losses: spread, ratio_error
# <<config = ppo.PPOConfig: iterations, batch_size, minibatches, lr, seed; max_new_tokens, temperature, no_end_score; gamma, gae_lambda, clip_eps, value_clip; beta, kl_target, kl_horizon>>
# <<< model >>>
# <<gpt.KVCache, sampling.left_pad, sampling.visible, sampling.draw, sampling.sample_steps>>
# <<logprobs.pack, logprobs.token_logprobs, logprobs.masked_mean>>
# <<reward_model.RewardModel, reward_model.last_of, ppo.ValueModel, ppo.assemble>>
# <<< load >>>
    model.load_state_dict(weights)
    return model


@torch.no_grad()
def collect_rollout(models, prompts, generator):
    """Let the policy answer prompts, and ask the other three about its answers."""
    # Answer, and note how likely each token was
    steps = sample_steps(models.policy, prompts, generator=generator)
    drawn, likely, alive = (torch.stack(rows, dim=1) for rows in zip(*steps))  # (B, N)
    responses = [row[kept].tolist() for row, kept in zip(drawn, alive)]
    tokens, mask = pack(prompts, responses, PAD)  # (B, T)
    found = SimpleNamespace(tokens=tokens, actions=mask[:, 1:])  # (B, T), (B, T-1)
    found.logprobs = torch.zeros(found.actions.shape)
    found.logprobs[found.actions] = likely[alive]  # (B, T-1)
    # Ask the reference how likely it finds them
    said = token_logprobs(models.reference(tokens), tokens, config.temperature)
    found.reference_logprobs = said * found.actions  # (B, T-1)
    # Ask the value model what it expects before each token
    found.values = models.value_model(tokens)[:, :-1] * found.actions  # (B, T-1)
    # Score the whole
    ended = ((tokens == END) & mask).any(-1)  # (B,)
    scores = models.reward_model(tokens, mask)
    found.scores = torch.where(ended, scores, config.no_end_score)  # (B,)
    return found


# <<ppo.token_rewards, ppo.gae, ppo.whiten, ppo.estimate_advantages, ppo.policy_loss>>
# <<ppo.value_loss, ppo.next_beta, ppo.minibatch_losses, ppo.pick, batches.epochs>>
def train(models, prompts):
    """Train policy and value model in place; yield what happened in each round."""
    torch.set_flush_denormal(True)
    generator, beta = torch.Generator().manual_seed(config.seed), config.beta
    parameters = [*models.policy.parameters(), *models.value_model.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.lr, eps=1e-5)
    batches = epochs(len(prompts), config.batch_size, generator)
    for round_ in range(config.iterations):
        asked = [prompts[i] for i in next(batches)]
        rollout = collect_rollout(models, asked, generator)
        # Judge each token, once
        advantages, returns = estimate_advantages(rollout, beta)
        # Take some steps on this round's answers
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - round_ / config.iterations)
        order, losses = torch.randperm(config.batch_size, generator=generator), []
        for rows in order.split(config.batch_size // config.minibatches):
            some = pick(rollout, rows)
            A = some.actions.size(1)
            found = minibatch_losses(models, some, advantages[rows, :A], returns[rows, :A])
            found["total"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(found["total"].item())
        score = rollout.scores.mean().item()
        kl = (rollout.logprobs - rollout.reference_logprobs).sum(-1).mean().item()
        yield dict(score=score, kl=kl, beta=beta, total=sum(losses) / len(losses))
        # Steer the penalty
        beta = next_beta(beta, kl, config.kl_target, config.batch_size, config.kl_horizon)


if __name__ == "__main__":
    sft, judge = load(sys.argv[1], GPT()), load(sys.argv[2], RewardModel(GPT()))
    models = assemble(sft, judge)
    prompts = [question(json.loads(line)["prompt"]) for line in open(sys.argv[3])]
    for round_, noted in enumerate(train(models, prompts)):
        numbers = ", ".join(f"{name} {number:.3f}" for name, number in noted.items())
        print(f"round {round_}: {numbers}")
    said = collect_rollout(models, prompts[:4], torch.Generator().manual_seed(0))
    for row, score in zip(said.tokens, said.scores):
        print("".join(TOKENS[i] for i in row if i != PAD), f"{score:+.1f}")
