"""Source by name: as the file has it, without importing it, and never silently missing."""

import inspect
import subprocess
import sys

import pytest

from posttrain import dpo
from posttrain.lora import nf4
from posttrain.show import show_source


def test_a_name_shows_what_the_object_shows():
    named = show_source("dpo.dpo_loss", "lora.nf4.quantize")
    assert named.code == show_source(dpo.dpo_loss, nf4.quantize).code
    assert named._repr_markdown_() == f"```python\n{named.code}\n```" != repr(named)


def test_decorators_belong_to_what_is_shown_and_a_method_begins_at_the_margin():
    config = show_source("dpo.DPOConfig").code
    assert config.startswith("@dataclass(frozen=True)\nclass DPOConfig")
    method = show_source("show.tokens.TokenView.runs").code
    assert method.startswith("def runs(self)") and '\n    """Neighbours' in method
    assert show_source("lab.scorecard.scorecard").code.startswith("@torch.no_grad()\n")


def test_showing_imports_nothing():
    code = (
        "import sys; from posttrain.show import show_source; show_source('gpt.GPT');"
        "heavy = {'torch', 'matplotlib', 'scipy', 'numpy', 'tqdm'};"
        "print(heavy & set(sys.modules), 'posttrain.gpt' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout == "set() False\n", answer.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpo.dpo_los", r'defines no dpo_los; did you mean "dpo_loss"\?'),
        ("dpo.zzz", "its module defines no zzz$"),
        ("gpt.GPT.forwards", r'did you mean "forward"\?'),
        ("dpoo.dpo_loss", 'nothing to show as "dpoo.dpo_loss": name a function'),
        ("posttrain.dpo.dpo_loss", "from the package on"),
        ("dpo", 'as in "dpo.dpo_loss"'),
        ("lora.nf4", "nothing to show"),
        ("lora", "nothing to show"),
        ("..dpo.dpo_loss", "nothing to show"),
    ],
)
def test_a_name_of_nothing_is_refused_with_the_way_out(name, message):
    with pytest.raises(ValueError, match=message):
        show_source(name)


def test_source_of_every_public_function_of_the_package_can_be_named():
    from posttrain import evaluate

    for name, each in inspect.getmembers(evaluate, inspect.isfunction):
        if each.__module__ == evaluate.__name__:
            assert show_source(f"evaluate.{name}").code == show_source(each).code
