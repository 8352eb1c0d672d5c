"""What fine-tuning draws: the view's numbers against a pass by hand, forgetting."""

import json
import math

import pytest
import torch
from markup import parsed

from posttrain.chat import build_labels, render
from posttrain.gpt import GPT, GPTConfig
from posttrain.show import GREEN, GREY, Runs
from posttrain.show.figures_sft import forgetting, mask_view
from posttrain.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
ROW = [dict(role="user", content="Who?"), dict(role="assistant", content="I.")]


def test_a_view_of_the_mask_has_each_models_surprise_at_each_token():
    shape = GPTConfig(vocab_size=69, context=32, width=32, n_layer=1, n_head=1)
    model = GPT(shape, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    view = mask_view({"held out": [dict(messages=ROW)]}, {"a model": model})
    values = json.loads(parsed(view)[0][0][1]["data-values"])
    (found,) = values["examples"]
    ids = render(ROW, TOKENIZER)
    assert found["name"] == "held out: Who?" and found["ids"] == ids
    assert found["labels"] == build_labels(ids, TOKENIZER)
    assert "".join(found["tokens"]) == TOKENIZER.decode(ids)
    logits = model(torch.tensor([ids]))[0]  # (T, V)
    first, *rest = found["surprise"]["a model"]
    assert first is None and len(rest) == len(ids) - 1
    for t, value in enumerate(rest):
        others = math.log(sum(math.exp(x) for x in logits[t].tolist()))
        expected = others - logits[t, ids[t + 1]].item()
        assert value == pytest.approx(expected, abs=1e-3)


def test_forgetting_begins_at_the_base_models_loss_which_is_dotted():
    run = dict(step=[50, 100], shakespeare_loss=[1.75, 2.0], base_loss=1.5)
    groups = {"with replay": Runs([run]), "alone": Runs([run, run])}
    (axis,) = forgetting(groups).axes
    *lines, level = axis.lines
    assert len(lines) == 3
    assert [line.get_color() for line in lines] == [GREEN, GREY, GREY]
    for line in lines:
        assert [*line.get_xdata()] == [0, 50, 100]
        assert [*line.get_ydata()] == [1.5, 1.75, 2.0]
    assert level.get_label() == "base model" and set(level.get_ydata()) == {1.5}
