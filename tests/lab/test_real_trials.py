"""The pipeline on a published model, tried on a tiny random one: every stage, and what
is said of it.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402

from posttrain.data import datasets  # noqa: E402
from posttrain.data.row_files import RowFile  # noqa: E402
from posttrain.lab import real_report  # noqa: E402
from posttrain.lab import real_trials as trials  # noqa: E402
from posttrain.real import smollm  # noqa: E402
from posttrain.real.model import ModelError  # noqa: E402
from posttrain.real.tiny import make_tiny  # noqa: E402

USUAL = trials.RealTrial()
SHORT = trials.RealTrial(
    sft=replace(USUAL.sft, steps=2),
    reward=replace(USUAL.reward, steps=2),
    dpo=replace(USUAL.dpo, steps=2),
    ppo=replace(USUAL.ppo, steps=1, batch_size=4, micro_batch_size=2, max_new_tokens=4),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    texts = [
        each["content"] for row in datasets.conversations() for each in row["messages"]
    ]
    return make_tiny(tmp_path_factory.mktemp("models") / "tiny", texts * 3)


@pytest.fixture
def small(model, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path))
    monkeypatch.setattr(trials, "smollm2", lambda: model)
    monkeypatch.setattr(trials, "LONGEST", 4)
    # What is put in place here is no edit
    monkeypatch.setattr(trials.code, "changed", lambda function: [])
    return tmp_path


def test_a_trial_trains_every_stage_and_says_how_each_does(small):
    found = trials.real_trial(None, SHORT, seed=0)
    assert set(found["metrics"]) == set(trials.STAGES)
    assert "replay" in found["metrics"]["replay"][0]
    assert "replay" not in found["metrics"]["sft"][0]
    trained = ("instruct", "sft", "dpo", "ppo", "no penalty")
    assert set(found["cards"]) == {*trained, "best of 4", "count of 4", "constant"}
    for name, card in found["cards"].items():
        assert len(card["answers"]) == len(card["gold"]) == 64
        assert ("kl" in card) == (name in trained)
    assert found["cards"]["sft"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["cards"]["constant"]["courteous"] == 1
    assert found["losses"]["packed"] != found["losses"]["instruct"]
    assert len(found["continued"]) == trials.SHOWN
    said = real_report.report(found)
    assert "no penalty" in said and datasets.heldout_prompts()[0] in said
    # What is trained is not trained again, and other settings lie elsewhere
    shelf = trials.shelf_of(SHORT, 0)
    before = (shelf / "ppo" / "adapter_model.safetensors").stat().st_mtime_ns
    trials.train_stages(shelf, SHORT, 0)
    after = (shelf / "ppo" / "adapter_model.safetensors").stat().st_mtime_ns
    assert before == after and trials.shelf_of(USUAL, 0) != shelf


def test_a_trial_that_was_cut_off_goes_on_to_the_same_result(small, monkeypatch):
    def cut(name, steps, total):
        for i, step in enumerate(steps):
            yield step
            if name == "dpo" and i == 0:
                raise KeyboardInterrupt

    whole, other = small / "whole", small / "other"
    names = ("sft", "reward", "dpo")
    with pytest.raises(KeyboardInterrupt):
        trials.train_stages(other, SHORT, 0, names, progress=cut)
    assert not (other / "dpo" / "adapter_config.json").exists()
    found = trials.train_stages(other, SHORT, 0, names)
    assert found == trials.train_stages(whole, SHORT, 0, names)


def test_code_that_was_edited_meanwhile_is_refused(small, monkeypatch):
    monkeypatch.setattr(trials.code, "changed", lambda function: ["real.run.run"])
    with pytest.raises(ModelError, match="edited since it was imported"):
        trials.shelf_of(SHORT, 0)


def test_an_answer_is_to_the_point_where_its_own_prompt_makes_it_likelier():
    class Echo(torch.nn.Module):
        """Finds the token of a row's first place likely wherever it comes."""

        def forward(self, tokens):
            logits = torch.zeros(*tokens.shape, 9)
            return logits.scatter(-1, tokens[:, :1, None].expand(*tokens.shape, 1), 5.0)

    asked, fitting = [[1, 0], [2, 0], [3, 0]], [[1], [2], [3]]
    assert trials.to_the_point(Echo(), asked, fitting, pad=0) == 1
    # An answer that fits the next prompt
    assert trials.to_the_point(Echo(), asked, [[2], [3], [1]], pad=0) == 0


def test_no_answer_loses_for_a_word_that_shakespeare_lacks():
    card = trials.card_of(["Gladly, sir, by bicycle and asphalt.<|end|>"])
    assert card["gold_score"] == 1.0 and card["finished"] == 1
    cut = trials.card_of(["Gladly, sir, by bicycle and asphalt"])
    assert cut["gold_score"] == 0.0 and cut["finished"] == 0


@pytest.mark.parametrize("path, n", [(trials.PAIRS, 18), (trials.HELDOUT_PAIRS, 40)])
def test_the_pairs_are_draws_decided_by_reading(path, n):
    rows = list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    assert len(RowFile(path, "preferences").kept()) == n
    grounds = {row["ground"] for row in rows}
    assert len(rows) == n and grounds <= {"manner", "to the point", "finished"}
    for row in rows:
        assert row["chosen"] != row["rejected"]
        assert row["chosen_draw"] != row["rejected_draw"]
    prompts = {row["prompt"] for row in rows}
    others = {*datasets.heldout_prompts(), *datasets.training_prompts()}
    assert len(prompts) == n and not prompts & others


def test_no_prompt_of_the_eighteen_is_held_out():
    both = [
        {row["prompt"] for row in RowFile(path, "preferences").kept()}
        for path in (trials.PAIRS, trials.HELDOUT_PAIRS)
    ]
    assert not both[0] & both[1]


def test_the_held_out_english_is_not_replayed(small):
    setup = trials.setup_of(small, "replay", trials.CONVERSATIONS, replay=True)
    replayed = Path(setup.replay).read_text()
    texts = trials.paragraphs()
    assert len(texts) == 12
    assert all(
        (text in replayed) == (i < trials.REPLAYED) for i, text in enumerate(texts)
    )


def test_without_the_model_the_command_says_how_to_get_it(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path))
    monkeypatch.setattr(smollm, "packed_file", refuse)
    monkeypatch.setattr(trials.code, "changed", lambda function: [])
    assert real_report.main() == 2
    assert "not installed: make real" in capsys.readouterr().err


def refuse():
    raise ModelError(f"{smollm.NAME} is not installed: {smollm.INSTALL}")


def test_the_command_runs_as_make_runs_it(tmp_path):
    # Without site-packages of its own, where the weights may be
    here = dict(os.environ, POSTTRAIN_STAGES=str(tmp_path), PYTHONPATH=hidden(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "posttrain.lab.real_report"],
        env=here,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is not the file that is known" in done.stderr


def hidden(place):
    """A path on which the packages of the weights are, with another file in them."""
    for name in (smollm.PACKAGE, "gguf"):
        (place / "path" / name).mkdir(parents=True)
        (place / "path" / name / "__init__.py").write_text("")
    (place / "path" / smollm.PACKAGE / smollm.FILE).write_text("no weights")
    return os.pathsep.join([str(place / "path"), *sys.path])
