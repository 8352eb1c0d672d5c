"""Two and three processes on this machine against one: gradients, weights, losses,
samples, files, and how it ends.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import safetensors.torch
import torch
import torch.distributed as dist
from test_dpo import PAIRS
from tiny import CONFIG, END, PAD, TOKENIZER, moved, seeded, user

from posttrain import sft
from posttrain.batches import add_gradients
from posttrain.chat import IGNORE, collate
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.gpt import GPT
from posttrain.sampling import generate
from posttrain.scale import distributed, launch, ring
from posttrain.scale.distributed import stream
from posttrain.scale.launch import LaunchError
from posttrain.sft import (
    SFTConfig,
    conversation_parts,
    count_graded,
    encode_conversations,
    sft_loss,
    sft_steps,
)

SHARDED = distributed.fully_shard is not None
ENGINES = [engine for engine in distributed.ENGINES if engine != "fsdp" or SHARDED]
TALKS = [
    dict(id=asked, messages=[user(asked), dict(role="assistant", content=answer)])
    for asked, answer in [
        ("Who?", "I, sir."),
        ("", "Ay"),
        ("Where is he, sir?", "At sea."),
        ("Now", "No, no."),
    ]
]
CONVERSATIONS = encode_conversations(TALKS, TOKENIZER, 64)
# One with a long answer, so that the processes have unlike numbers of graded tokens
EXAMPLES = [*CONVERSATIONS, (list(range(50)), [IGNORE] * 5 + list(range(5, 50)))]
TEXT = torch.arange(400) % 65
SFT = {
    "whole": SFTConfig(
        steps=4,
        batch_size=5,
        micro_batch_size=5,
        replay=3,
        replay_length=20,
        muon_lr=0.01,
        adamw_lr=0.002,
    ),
    "parts": SFTConfig(
        steps=4,
        batch_size=5,
        micro_batch_size=1,
        replay=1,
        replay_length=20,
        muon_lr=0.01,
        adamw_lr=0.002,
    ),
    # Two rows for three processes: one has none. (A single row read by all would give
    # the right mean, graded or not)
    "two": SFTConfig(
        steps=4,
        batch_size=2,
        micro_batch_size=1,
        replay=0,
        muon_lr=0.01,
        adamw_lr=0.002,
    ),
    "few": SFTConfig(
        steps=4,
        batch_size=1,
        micro_batch_size=1,
        replay=0,
        muon_lr=0.01,
        adamw_lr=0.002,
    ),
}
DPO = {
    "dpo": DPOConfig(steps=4, batch_size=3, beta=0.1, lr=0.002),
    "orpo": DPOConfig(steps=3, batch_size=1, loss="orpo", lr=0.002),
}
PROMPTS = [[66, *range(n)] for n in (3, 9, 1, 5, 7)]
SAMPLING = dict(seed=3, temperature=0.9, chunk=2)


def settings(configs):
    """Every configuration with every engine that can run it: Muon, or AdamW alone."""
    found = {}
    for config in configs:
        for engine in ENGINES:
            for muon in (True, False):
                if engine != "fsdp" or not muon:
                    found[config, engine, muon] = (
                        config,
                        dict(engine=engine, muon=muon),
                    )
    return found


# DPO has one optimiser, Adam, which all engines can run
ON_PAIRS = {
    (config, engine): (config, dict(engine=engine))
    for config in DPO
    for engine in ENGINES
}


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """What two and three processes make of everything; one group of each."""
    found = {}
    for n in (2, 3):
        folder = tmp_path_factory.mktemp(f"saved-{n}")
        jobs = dict(
            ring=("ring_sums", ((1, 2, 5, 7),)),
            sent=("count_bytes", (120,)),
            dealt=("dealt", (7,)),
            sft=("sft_runs", (EXAMPLES, TEXT, SFT, settings(SFT))),
            dpo=("dpo_runs", (PAIRS, DPO, ON_PAIRS)),
            wrong=("wrong_gradients", (EXAMPLES, 5, "ddp")),
            samples=("samples", (PROMPTS, 12, END, SAMPLING)),
            broken=("broken_loss", ("ring",)),
        )
        for engine in ENGINES:
            jobs[f"gradients-{engine}"] = ("gradients", (EXAMPLES, 2, engine))
            jobs[f"saved-{engine}"] = ("saved", (str(folder), engine))
        if SHARDED:
            jobs["slices"] = ("slices", ())
        found[n] = launch.launch(ranks.everything, n, jobs, seconds=240), folder
    return found


@pytest.fixture(params=(2, 3))
def group(request, groups):
    """The processes' results, and the folder they wrote to."""
    return groups[request.param]


# The ring


def test_the_rings_sum_is_that_of_pytorchs_all_reduce_whatever_the_size(group):
    results, _ = group
    for size in (1, 2, 5, 7):
        by_hand = sum(result["ring"][size][0] for result in results)
        for result in results:
            _, ours, theirs = result["ring"][size]
            torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-14)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


def test_each_process_sends_two_n_minus_one_nths_of_the_numbers(group):
    results, _ = group
    n = len(results)
    assert [result["sent"] for result in results] == [2 * (n - 1) * 120 // n] * n


# Rows


def test_every_row_belongs_to_one_process_and_gathers_in_order(group):
    results, _ = group
    own = [row for result in results for row in result["dealt"][0]]
    assert (
        sorted(own) == list(range(7))
        and len({len(result["dealt"][0]) for result in results}) > 1
    )
    assert all(result["dealt"][1] == list(range(7)) for result in results)


# Gradients, losses and weights are those of one process


def single_gradients():
    """One process's gradient of the whole batch, without any of the code under test."""
    model = moved()
    tokens, labels = collate(EXAMPLES, PAD)
    sft_loss(model(tokens), labels).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_those_of_one_process_over_the_whole_batch(group, engine):
    results, _ = group
    right = single_gradients()
    for result in results:
        for name, gradient in result[f"gradients-{engine}"].items():
            torch.testing.assert_close(gradient, right[name], rtol=0, atol=1e-12)


def test_the_mean_of_means_is_another_gradient(group):
    results, _ = group
    right, n = single_gradients(), len(results)
    # By hand: each process's own mean, then the mean of these
    by_hand = {name: torch.zeros_like(gradient) for name, gradient in right.items()}
    for rank in range(n):
        model = moved()
        tokens, labels = collate(EXAMPLES[rank::n], PAD)
        (sft_loss(model(tokens), labels) / n).backward()
        for name, parameter in model.named_parameters():
            by_hand[name] += parameter.grad
    flat = {
        k: torch.cat([g.flatten() for g in grads.values()])
        for k, grads in dict(
            right=right, hand=by_hand, wrong=results[0]["wrong"]
        ).items()
    }
    torch.testing.assert_close(flat["wrong"], flat["hand"], rtol=0, atol=1e-12)
    assert (flat["wrong"] - flat["right"]).norm() > 0.05 * flat["right"].norm()


def choose_optimizers(monkeypatch, module, muon):
    """Have `sft_steps` build the optimisers that are asked for."""
    plain = module.build_optimizers

    def build(model, rates):
        return plain(model, replace(rates, muon=muon, weight_decay=0.0))

    monkeypatch.setattr(module, "build_optimizers", build)


@pytest.mark.parametrize("config, engine, muon", settings(SFT), ids=str)
def test_sft_ends_with_the_weights_of_one_process(
    group, monkeypatch, config, engine, muon
):
    results, _ = group
    choose_optimizers(monkeypatch, sft, muon)
    model = moved(config=CONFIG)
    losses = [
        step["loss"] for step in sft_steps(model, EXAMPLES, TEXT, SFT[config], PAD)
    ]
    for result in results:
        noted, _ = result["sft"][config, engine, muon]
        torch.testing.assert_close(
            [step["loss"] for step in noted], losses, rtol=0, atol=1e-10
        )
        assert ("replay" in noted[0]) == bool(SFT[config].replay)
    ended = results[0]["sft"][config, engine, muon][1]
    assert set(ended) == set(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(ended[name], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize("config, engine", ON_PAIRS, ids=str)
def test_dpo_ends_with_the_weights_of_one_process(group, config, engine):
    results, _ = group
    policy, reference = moved(1), moved(0)
    alone = list(dpo_steps(policy, reference, PAIRS, DPO[config]))
    for result in results:
        noted, _ = result["dpo"][config, engine]
        for step, wanted in zip(noted, alone, strict=True):
            assert step == pytest.approx(wanted, abs=1e-10)
    ended = results[0]["dpo"][config, engine][1]
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(ended[name], value, rtol=0, atol=1e-8)


def test_the_examples_are_unevenly_graded_and_their_order_is_that_of_sft_steps():
    shares = [count_graded(collate(EXAMPLES[rank::2], PAD)[1]) for rank in range(2)]
    assert max(shares) > 1.5 * min(shares)
    model = moved()
    whole, _ = add_gradients(model, conversation_parts(EXAMPLES, 2, PAD))
    assert whole == pytest.approx(
        sft_loss(moved()(collate(EXAMPLES, PAD)[0]), collate(EXAMPLES, PAD)[1]).item()
    )


# What is sharded


@pytest.mark.skipif(not SHARDED, reason="this PyTorch has no fully_shard")
def test_fsdp_holds_each_number_once(group):
    results, _ = group
    held, n = [result["slices"] for result in results], len(results)
    whole = sum(parameter.numel() for parameter in moved().parameters())
    assert sum(held) == whole and max(held) < 1.2 * whole / n


def test_process_0_writes_whole_weights_that_one_process_loads(group):
    _, folder = group
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{engine}.safetensors" for engine in ENGINES
    )
    for engine in ENGINES:
        model = GPT(CONFIG, seeded(9)).double()
        model.load_state_dict(
            safetensors.torch.load_file(folder / f"{engine}.safetensors")
        )
        assert all(
            torch.equal(value, moved().state_dict()[name])
            for name, value in model.state_dict().items()
        )


# Samples


def test_samples_are_bit_for_bit_the_same_for_any_number_of_processes(groups):
    found = [result["samples"] for results, _ in groups.values() for result in results]
    assert all(samples == found[0] for samples in found) and len(found) == 5
    tokens, mask, logprobs = found[0]
    assert len(tokens) == len(PROMPTS)
    # And those of the plain sampler, a chunk at a time
    for i in range(0, len(PROMPTS), 2):
        alone = generate(
            moved(),
            PROMPTS[i : i + 2],
            12,
            generator=stream(3, i),
            temperature=0.9,
            stop=END,
        )
        for row, response in enumerate(alone.responses()):
            assert [
                t for t, kept in zip(tokens[i + row], mask[i + row]) if kept
            ] == response
            kept = alone.logprobs[row][alone.mask[row]].tolist()
            assert [p for p, k in zip(logprobs[i + row], mask[i + row]) if k] == kept


def test_every_chunk_has_its_own_stream_though_pytorch_reads_32_bits():
    def first(seed):
        return torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()

    assert first(5) == first(
        5 + 2**32
    )  # which is why seed * 2**32 + index would not do
    drawn = {
        tuple(torch.rand(3, generator=stream(seed, index)).tolist())
        for seed in range(20)
        for index in range(20)
    }
    assert len(drawn) == 400
    assert (
        torch.rand(3, generator=stream(1, 2)).tolist()
        == torch.rand(3, generator=stream(1, 2)).tolist()
    )


# What is refused, and how a group ends


def test_a_loss_that_is_no_number_in_one_process_is_an_error_in_all(group):
    results, _ = group
    for result in results:
        assert re.match(r"the loss of step 0 is nan: lower the rate", result["broken"])


@pytest.fixture
def alone(tmp_path):
    """A group of one process: this one."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_what_cannot_work_is_refused_before_anything_is_trained(alone, monkeypatch):
    def run(**options):
        return list(
            distributed.distributed_sft(
                moved(), EXAMPLES, TEXT, SFT["whole"], PAD, **options
            )
        )

    with pytest.raises(
        ValueError, match="Muon needs whole matrices and FSDP has slices: use AdamW"
    ):
        run(engine="fsdp")
    with pytest.raises(
        ValueError, match="'zero' is no engine: use one of ring, ddp, fsdp"
    ):
        run(engine="zero")
    with pytest.raises(ValueError, match="KTO's baseline needs the whole batch"):
        distributed.distributed_dpo(moved(), moved(), PAIRS, DPOConfig(loss="kto"))
    monkeypatch.setattr(distributed, "fully_shard", None)
    with pytest.raises(ValueError, match="has no fully_shard: use 'ddp'"):
        run(engine="fsdp", muon=False)
    with pytest.raises(ValueError, match="no token of this batch is graded"):
        ungraded = [([1, 2], [IGNORE] * 2)] * 5
        list(distributed.distributed_sft(moved(), ungraded, TEXT, SFT["whole"], PAD))


def test_a_group_of_one_is_one_process(alone):
    x = torch.arange(5.0)
    assert torch.equal(ring.ring_all_reduce(x), x) and distributed.total([3]) == [3.0]
    assert distributed.gather(distributed.mine([4, 5])) == [4, 5]


def test_outside_a_group_the_sentence_says_how_to_start_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start it with torchrun --standalone"):
        with launch.joined():
            pass
    with pytest.raises(ValueError, match="0 processes"):
        launch.launch(ranks.slices, 0)
    assert distributed.main(["sft"]) == 2


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["sft", "--engine", "fsdp"], "add --adamw"),
        (["sft", "--out", "nowhere/x.safetensors"], "there is no folder nowhere"),
        (["dpo", "--adamw"], "DPO trains with Adam in any case"),
        (["ppo"], "invalid choice"),
    ],
)
def test_the_command_line_refuses_what_cannot_work(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        distributed.main(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def running(pid):
    """Whether a process is there, and no zombie."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            return not Path("/proc/self/stat").exists()
        return False


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_a_crash_in_one_process_ends_all_with_an_exit_code_and_its_traceback(tmp_path):
    begun = time.monotonic()
    with pytest.raises(LaunchError, match=r"exit code 1(?s:.*)planted in process 1"):
        launch.launch(ranks.crash, 2, str(tmp_path), seconds=120)
    assert time.monotonic() - begun < 100  # and not at the timeout
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2 and not any(map(running, pids))


@pytest.mark.slow
def test_whoever_waits_too_long_for_another_gives_up():
    with pytest.raises(LaunchError, match="not done after 12 seconds|exit code 1"):
        launch.launch(ranks.stay_away, 2, seconds=12)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_an_interruption_leaves_no_process_behind(tmp_path):
    # Whoever tests in the background may have been told to ignore interruptions, and
    # children inherit that
    listen = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = (
        f"{listen}; import sys, ranks; from posttrain.scale import launch; "
        "launch.launch(ranks.crash_late, 2, sys.argv[1])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=launch.environment()
    )
    until = time.monotonic() + 100
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    parent.send_signal(2)
    assert parent.wait(60) != 0
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2 and not any(map(running, pids))
