"""The stored stages: trained once, found again bit for bit, and by what they depend
on.
"""

import ast
import copy
import inspect
import json
import math
import shutil
from dataclasses import fields, is_dataclass, replace
from functools import partial

import pytest
import torch
from tiny import CORPUS, LONG, PAD, TOKENIZER, close, moved, pair, same, user, weights

from posttrain import stages
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.data.datasets import TrainingData
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.gpt import GPT, GPTConfig
from posttrain.keep import code, store
from posttrain.logprobs import pack
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import PretrainConfig, pretrain
from posttrain.reward_model import RewardConfig, sample_answers, train_reward_model
from posttrain.sft import SFTConfig, sft
from posttrain.tokenizer import ALPHABET, CharTokenizer

SHAPE = replace(LONG, vocab_size=65)
BASE = PretrainConfig(SHAPE, steps=4, sequence_length=16, evaluations=2)
SFT = dict(steps=6, batch_size=2, micro_batch_size=1, replay_length=16, evaluations=2)
REWARD = dict(steps=3, batch_size=2, lr=0.01)
PPO = PPOConfig(iterations=2, batch_size=4, max_new_tokens=6, lr=0.01)
DPO = DPOConfig(steps=3, batch_size=2, lr=0.004)
TEXT = "".join(
    ALPHABET[i] for i in torch.randint(65, (8000,), generator=torch.Generator())
)
TOY = Corpus(TEXT, source="test", sha256="0" * 64)
DATA = TrainingData(
    conversations=[
        dict(id=asked, messages=[user(asked), dict(role="assistant", content=answer)])
        for asked, answer in [("Who?", "I, sir."), ("", "Ay"), ("Now", "No, no.")]
    ],
    pairs=[
        pair("a", "Who?", "I am.", "You"),
        pair("b", "Where is he?", "At sea, my lord.", "At"),
        pair("c", "Why", "No.", "No, no, no"),
    ],
    prompts=["Who?", "Say", "Why so?"],
)
LOADERS = [*stages.STAGES.values(), stages.ppo_models]


class Shelf:
    """An empty stages folder, tiny settings, and how long what was trained, in
    order.
    """

    def __init__(self, folder):
        self.folder, self.trained = folder, []

    def progress(self, steps, total):
        self.trained.append(total)
        return steps

    @property
    def options(self):
        return dict(data=DATA, progress=self.progress)

    def names(self):
        return sorted(path.name.split("-")[0] for path in self.folder.glob("*.json"))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path / "stages"))
    monkeypatch.setattr(stages, "PretrainConfig", lambda: BASE)
    monkeypatch.setattr(stages, "SFTConfig", partial(SFTConfig, **SFT))
    monkeypatch.setattr(stages, "RewardConfig", partial(RewardConfig, **REWARD))
    monkeypatch.setattr(stages, "PPOConfig", lambda: PPO)
    monkeypatch.setattr(stages, "DPOConfig", lambda: DPO)
    # The settings above are put in the place of others, and kept all the same
    monkeypatch.setattr(code, "changed", lambda function: [])
    return Shelf(tmp_path / "stages")


def tuned():
    """The SFT model that the others start from, by hand."""
    encode = TOKENIZER.encode
    text, validation = (torch.tensor(encode(t)) for t in (TOY.train, TOY.validation))
    base, _ = pretrain(BASE, text, validation)
    return sft(base, DATA.conversations, text, SFTConfig(**SFT))


def test_all_loaders_have_one_signature():
    for loader in LOADERS:
        parameters = inspect.signature(loader).parameters
        data = [] if loader is stages.base_model else ["data"]
        assert list(parameters) == ["corpus", "config", *data, "progress"]
        for name, parameter in parameters.items():
            by_name = name in ("data", "progress")
            assert (parameter.kind is parameter.KEYWORD_ONLY) == by_name
        assert parameters["config"].default is None
        assert parameters["progress"].default is stages.unwatched
        stage = getattr(stages, loader.__name__.split("_")[0] + "_stage")
        assert list(inspect.signature(stage).parameters) == list(parameters)


def test_the_base_model_is_trained_once_and_then_found(shelf):
    first, history = stages.base_model(TOY, progress=shelf.progress)
    second, again = stages.base_model(TOY, BASE, progress=shelf.progress)
    assert shelf.trained == [4] and again == history and history["step"] == [2, 4]
    assert same(weights(first), second) and first.config == SHAPE
    other, _ = stages.base_model(TOY, replace(BASE, seed=1), progress=shelf.progress)
    assert shelf.trained == [4, 4] and not same(weights(first), other)


def test_a_base_model_of_another_shape_comes_back_in_its_shape(shelf):
    config = replace(BASE, model=replace(SHAPE, n_layer=2))
    for _ in range(2):
        found, _ = stages.base_model(TOY, config)
        assert found.config == config.model


def test_a_corpus_is_split_in_karpathys_nine_tenths():
    training, validation = stages.encode_split(Corpus("ab\n" * 1000, "test", ""))
    assert (len(training), len(validation)) == (2700, 300)


def test_the_sft_model_is_trained_once_and_then_found(shelf):
    first, history = stages.sft_model(TOY, **shelf.options)
    second, again = stages.sft_model(TOY, SFTConfig(**SFT), **shelf.options)
    assert shelf.trained == [4, 6] and again == history and history["step"] == [3, 6]
    assert all(math.isfinite(loss) for loss in history["shakespeare_loss"])
    assert same(weights(first), second) and first.config == replace(
        SHAPE, vocab_size=69
    )
    expected, _ = tuned()
    assert same(weights(first), expected)
    assert shelf.names() == ["base", "sft"]


def test_the_reward_model_is_trained_once_and_found_again_bit_for_bit(shelf):
    first, history = stages.reward_model(TOY, **shelf.options)
    second, again = stages.reward_model(TOY, RewardConfig(**REWARD), **shelf.options)
    assert shelf.trained == [4, 6, 3] and history == again
    assert same(weights(first), second)
    assert first.shift == second.shift != 0 and first.scale == second.scale != 1
    by_hand, expected = train_reward_model(
        tuned()[0], DATA.pairs, RewardConfig(**REWARD)
    )
    assert same(weights(by_hand.body), first.body)
    assert same(weights(by_hand.head), first.head)
    for name in ("train", "train_accuracy"):
        assert history[name] == expected[name]


@pytest.mark.parametrize("seed", [0, 3])
def test_stored_scores_are_normalised_on_that_seeds_sft_models_answers(shelf, seed):
    config = RewardConfig(**REWARD, seed=seed)
    model, _ = stages.reward_model(TOY, config, **shelf.options)
    start, _ = stages.sft_model(TOY, SFTConfig(**SFT, seed=seed), **shelf.options)
    assert shelf.trained == [4, 6, 3]
    answers = sample_answers(start, DATA.prompts, seed)
    scores = model(*pack(*answers, PAD)).detach()
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("changes", [dict(), dict(group=2)], ids=str)
def test_a_run_of_ppo_is_trained_once_and_found_again_bit_for_bit(shelf, changes):
    config = replace(PPO, **changes)
    first, history = stages.ppo_models(TOY, config, **shelf.options)
    second, again = stages.ppo_models(TOY, config, **shelf.options)
    assert shelf.trained == [4, 6, 3, 2] and again == history
    start, _ = stages.sft_model(TOY, data=DATA)
    judge, _ = stages.reward_model(TOY, data=DATA)
    by_hand = assemble(copy.deepcopy(start), copy.deepcopy(judge))
    rounds = list(ppo_steps(by_hand, DATA.prompts, config))
    assert history["rounds"] == json.loads(json.dumps(rounds))
    assert len(rounds) == 2 and history["seconds"] > 0
    for found in (first, second):
        assert same(weights(by_hand.policy), found.policy)
        assert not same(weights(start), found.policy)
        assert same(weights(start), found.reference)
        assert same(weights(judge), found.reward_model)
        assert same(weights(by_hand.value_model), found.value_model)


def test_the_stored_policy_is_that_of_the_default_run(shelf):
    policy, history = stages.ppo_model(TOY, **shelf.options)
    found, again = stages.ppo_models(TOY, PPO, **shelf.options)
    assert shelf.trained == [4, 6, 3, 2] and history == again
    assert same(weights(found.policy), policy)


@pytest.mark.parametrize(
    "changes", [dict(), dict(loss="kto"), dict(label_smoothing=0.0)], ids=str
)
def test_a_run_of_dpo_is_trained_once_and_found_again_bit_for_bit(shelf, changes):
    config = replace(DPO, **changes)
    first, history = stages.dpo_model(TOY, config, **shelf.options)
    second, again = stages.dpo_model(TOY, config, **shelf.options)
    assert shelf.trained == [4, 6, 3] and again == history
    assert shelf.names() == ["base", "dpo", "sft"]  # no reward model
    start, _ = stages.sft_model(TOY, data=DATA)
    by_hand = copy.deepcopy(start)
    steps = list(stages.train_dpo(by_hand, copy.deepcopy(start), config, DATA))
    assert set(history) == {"steps", "seconds"} and history["seconds"] > 0
    assert history["steps"] == steps and len(steps) == config.steps
    assert {"loss", "margin", "accuracy", "chosen_reward", "rejected_reward"} <= set(
        steps[0]
    )
    assert {"chosen_logprob", "rejected_logprob"} <= set(steps[0])
    for found in (first, second):
        assert same(weights(by_hand), found) and not same(weights(start), found)


def dpo_part(noted):
    """What DPO itself has of a step's loss; the rest is the chosen answers' own."""
    return noted["loss"] - DPOConfig().nll_weight * noted["nll"]


def test_a_stored_run_of_dpo_starts_at_its_reference(shelf):
    _, history = stages.dpo_model(TOY, data=DATA)
    steps = history["steps"]
    assert dpo_part(steps[0]) == pytest.approx(math.log(2), abs=1e-5)
    assert abs(steps[0]["margin"]) < 1e-4 < abs(steps[1]["margin"])
    # Without progress it is the same run
    _, again = stages.dpo_model(TOY, DPO, **shelf.options)
    assert again == history and shelf.trained == []


def test_a_run_is_on_the_datas_pairs_cut_to_the_context():
    short = replace(LONG, context=29)
    policy, reference = (moved(dtype=torch.float32, config=short) for _ in range(2))
    by_hand = copy.deepcopy(policy)
    noted = list(stages.train_dpo(policy, reference, DPO, DATA))
    pairs = encode_pairs(DATA.pairs, TOKENIZER, 29)
    assert pairs != encode_pairs(DATA.pairs, TOKENIZER, 64)
    assert noted == list(dpo_steps(by_hand, reference, pairs, DPO))
    assert same(weights(by_hand), policy) and len(noted) == 3


def test_a_run_on_the_books_own_data_starts_and_ends_with_finite_numbers():
    policy = moved(dtype=torch.float32, config=replace(LONG, context=256))
    noted = list(stages.train_dpo(policy, copy.deepcopy(policy), DPOConfig(steps=2)))
    assert dpo_part(noted[0]) == pytest.approx(math.log(2), abs=1e-4)
    numbers = [value for each in noted for value in each.values()]
    assert len(noted) == 2 and all(map(math.isfinite, numbers))


def test_a_start_is_the_seeds_sft_model_or_the_base_model_with_room(shelf, monkeypatch):
    monkeypatch.setattr(stages, "training_data", lambda: DATA)
    found = stages.starting_point(TOY, "sft", 3)
    expected, _ = stages.sft_model(TOY, SFTConfig(**SFT, seed=3))
    assert same(weights(expected), found)
    grown, (base, _) = stages.starting_point(TOY, "base", 3), stages.base_model(TOY)
    tokens = torch.randint(65, (2, 9), generator=torch.Generator().manual_seed(0))
    assert grown.config == replace(base.config, vocab_size=69)
    close(grown(tokens)[..., :65], base(tokens), 1e-6)


@pytest.mark.parametrize("start", ["", "ppo", "SFT"])
def test_another_start_is_refused_by_name(start):
    expected = f"^{start!r} is no start for a reward model: use 'sft' or 'base'"
    with pytest.raises(ValueError, match=expected):
        stages.starting_point(CORPUS, start, 0)


def test_code_that_is_not_on_disk_is_trained_once_for_all_four_models(
    shelf, monkeypatch
):
    monkeypatch.setattr(code, "changed", lambda function: ["posttrain.gpt.norm"])
    stages.ppo_models(TOY, **shelf.options)
    assert shelf.trained == [4, 6, 3, 2]
    assert not shelf.folder.exists()


def test_what_starts_from_a_stage_that_is_not_kept_is_not_kept(shelf, monkeypatch):
    mine = [code.place_of(stages.sft_stage)]
    monkeypatch.setattr(
        code, "changed", lambda f: ["x"] if code.place_of(f) in mine else []
    )
    stages.ppo_models(TOY, **shelf.options)
    stages.dpo_model(TOY, **shelf.options)
    assert shelf.names() == ["base"]


# What a stage is found by

ALL = ("base", "sft", "reward", "ppo", "dpo")
TUNED = ALL[1:]
CONFIGS = dict(
    PretrainConfig=ALL,
    SFTConfig=TUNED,
    RewardConfig=("reward", "ppo"),
    PPOConfig=("ppo",),
    DPOConfig=("dpo",),
)


@pytest.fixture
def found(monkeypatch):
    """Every stage is there, whatever it is: nothing is read, and none is trained."""
    monkeypatch.setattr(code, "changed", lambda function: [])
    monkeypatch.setattr(store, "stored_stage", lambda base, warn=False: ({}, {}))


def keys(corpus=TOY, data=None):
    """The keys of all stages by name."""
    found = [getattr(stages, f"{name}_stage") for name in TUNED]
    found = [stage(corpus, data=data) for stage in found]
    found = [stages.base_stage(corpus), *found]
    for stage in found:
        # One that is a parent is the one that is asked for by name
        for parent in stage.after:
            assert parent.key in [each.key for each in found]
    return {stage.name: stage.key for stage in found}


def moved_keys(before, after):
    return tuple(name for name in ALL if before[name] != after[name])


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return f"{value}x" if isinstance(value, str) else value + 1


def variants(config):
    """A configuration with another value in one field, for every field, by its name."""
    for field in fields(config):
        value = getattr(config, field.name)
        inner = variants(value) if is_dataclass(value) else [("", other(value))]
        for name, new in inner:
            changed = copy.copy(config)
            object.__setattr__(changed, field.name, new)  # past its own checks
            yield f"{field.name} {name}", changed


@pytest.mark.parametrize("name", CONFIGS)
def test_each_field_changes_the_stages_key_and_its_childrens_alone(
    found, monkeypatch, name
):
    usual, before, seen = getattr(stages, name), keys(data=DATA), set()
    assert keys(data=DATA) == before and len(set(before.values())) == 5
    for field, config in variants(usual()):
        if name != "PretrainConfig" and field == "seed ":
            continue  # it is that of the parents as well: see below
        monkeypatch.setattr(stages, name, lambda config=config, **seed: config)
        after = keys(data=DATA)
        assert moved_keys(before, after) == CONFIGS[name], field
        seen |= {after[stage] for stage in CONFIGS[name]}
    assert not seen & set(before.values())


def test_a_seed_is_that_of_all_models_after_the_base_model(found):
    def line(stage):
        keys = {stage.name: stage.key}
        for parent in stage.after:
            keys |= line(parent)
        return keys

    for name in ("reward", "ppo", "dpo"):
        find, config = getattr(stages, f"{name}_stage"), stages.CONFIGS[name]
        one, two = (line(find(TOY, config(seed=seed), data=DATA)) for seed in (0, 3))
        assert one["base"] == two["base"] == stages.base_stage(TOY).key
        assert not {k for k in one if one[k] == two[k]} - {"base"}
        assert two["sft"] == stages.sft_stage(TOY, SFTConfig(seed=3), data=DATA).key
        if name == "ppo":
            wanted = stages.reward_stage(TOY, RewardConfig(seed=3), data=DATA).key
            assert two["reward"] == wanted


def test_the_corpus_changes_every_key_and_where_it_was_found_none(found):
    before = keys(data=DATA)
    assert moved_keys(before, keys(replace(TOY, sha256="1" * 64), DATA)) == ALL
    assert keys(replace(TOY, source="elsewhere"), DATA) == before


def test_another_split_of_the_corpus_changes_every_key(found, monkeypatch):
    before = keys(data=DATA)
    monkeypatch.setattr(Corpus, "train", property(lambda corpus: corpus.text[:100]))
    assert moved_keys(before, keys(data=DATA)) == ALL


ROWS = dict(
    conversations=TUNED, pairs=("reward", "ppo", "dpo"), prompts=("reward", "ppo")
)


@pytest.mark.parametrize("name", ROWS)
def test_data_change_the_keys_of_what_learns_from_them_and_of_its_children(found, name):
    before, rows = keys(data=DATA), getattr(DATA, name)
    for other in (rows[:2], rows[::-1], [*rows, rows[0]]):
        assert (
            moved_keys(before, keys(data=replace(DATA, **{name: other}))) == ROWS[name]
        )


FILES = {
    "conversations.jsonl": TUNED,
    "preferences.jsonl": ROWS["pairs"],
    "prompts.jsonl": ROWS["prompts"],
    "conversations_heldout.jsonl": (),
    "preferences_heldout.jsonl": (),
    "preferences_elsewhere.jsonl": (),
    "preferences_elsewhere_heldout.jsonl": (),
    "prompts_heldout.jsonl": (),
}


@pytest.mark.parametrize("name", FILES)
def test_a_data_file_changes_the_keys_of_what_learns_from_it(
    found, tmp_path, monkeypatch, name
):
    folder = tmp_path / "data"
    shutil.copytree(datasets.FOLDER, folder, ignore=lambda *_: ["__pycache__"])
    monkeypatch.setattr(datasets, "FOLDER", folder)
    before = keys()
    lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / name).write_text("".join(lines[1:]), encoding="utf-8")
    assert moved_keys(before, keys()) == FILES[name]


SOURCES = {
    "gpt.norm": ALL,
    "gpt.GPT": ALL,
    "optim.orthogonalise": ALL,
    "optim.Muon": ALL,
    "tokenizer.CharTokenizer": ALL,
    "pretrain.learning_rate_scale": ALL,
    "stages.base_stage": ALL,
    "stages.encode_split": ALL,
    "chat.grow_vocabulary": TUNED,
    "sft.sft_loss": TUNED,
    "stages.sft_stage": TUNED,
    "reward_model.train_reward_model": ("reward", "ppo"),
    "reward_model.sample_answers": ("reward", "ppo"),
    "sampling.generate": ("reward", "ppo"),
    "stages.reward_stage": ("reward", "ppo"),
    "ppo.value_loss": ("ppo",),
    "ppo.assemble": ("ppo",),
    "stages.ppo_stage": ("ppo",),
    "dpo.dpo_loss": ("dpo",),
    "preference_losses.kto_loss": ("dpo",),
    "stages.train_dpo": ("dpo",),
    "stages.dpo_stage": ("dpo",),
    "stages.ppo_models": (),
    "stages.dpo_model": (),
    "stages.course_of": (),
    "best_of_n.best_of_n": (),
    "keep.store.obtain": (),
    "keep.store.write": (),
    "keep.code.reached": (),
    "data.corpus.load": (),
    "data.datasets.read_jsonl": (),
}


def edited(source, name):
    """A source with one more line in a function or class that says nothing."""
    tree = ast.parse(source)
    (definition,) = [n for n in tree.body if getattr(n, "name", None) == name]
    definition.body[1:1] = ast.parse("unused = 1 + 1").body
    return ast.unparse(tree)


def test_code_changes_the_keys_of_what_runs_it_and_of_its_children(found, monkeypatch):
    before, source_of = keys(data=DATA), code.source_of
    for place, expected in SOURCES.items():
        home, _, name = place.rpartition(".")
        home = f"posttrain.{home}"
        new = edited(source_of(home), name)

        def changed(module, home=home, new=new):
            return new if module == home else source_of(module)

        with monkeypatch.context() as patch:
            patch.setattr(code, "source_of", changed)
            assert moved_keys(before, keys(data=DATA)) == expected, place


def test_a_parents_key_is_enough_to_change_a_childs(found):
    parents = [store.Stage("sft", key, {}, {}) for key in ("1", "2")]
    found = [
        store.obtain("toy", {}, lambda: ({}, {}), after=[each], code_of=CharTokenizer)
        for each in parents
    ]
    assert found[0].key != found[1].key and found[0].after == (parents[0],)


def test_no_model_is_bigger_than_its_settings_say():
    """What language_model builds is what was stored."""
    model = GPT(GPTConfig(context=64, n_layer=1, n_head=1, width=16, vocab_size=69))
    stage = store.Stage("sft", "1", model.state_dict(), {})
    config = PretrainConfig(replace(model.config, vocab_size=65))
    assert same(weights(model), stages.language_model(stage, config))
