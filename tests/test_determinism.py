"""The determinism check (determinism.py): it finds what differs, and one chapter comes
out the same twice.
"""

import determinism
import pytest
from determinism import chapters, compare, differences, fill, stages_apart

from posttrain import stages
from posttrain.data import corpus
from posttrain.keep import store


def test_the_chapters_are_found_in_the_books_order():
    core = ["pretraining", "sft", "reward", "ppo", "dpo", "comparison"]
    beyond = ["lora", "pairs", "real", "scale"]
    labs = [f"lab-{name}" for name in core]
    posts = [f"posts/{name}" for name in ("sft", "rlhf", "dpo", "comparison")]
    last = ["yours", "talk", *posts, "how-we-know", "index"]
    assert chapters() == [*core, *beyond, *labs, *last]


def test_equal_outputs_are_equal_and_any_bit_word_or_cell_less_differs():
    figure = [dict(output_type="display_data", data={"image/png": "iVBORw0KGgo="})]
    text = [dict(output_type="stream", text="0.5\n")]
    assert differences("sft", [figure, text, []], [figure, text, []]) == []
    other = [dict(output_type="display_data", data={"image/png": "iVBORw0KGgp="})]
    (line,) = differences("sft", [text, figure], [text, other])
    assert (
        line.startswith("sft, code cell 2: ") and "0KGgo=" in line and "0KGgp=" in line
    )
    assert len(differences("sft", [text], [[]])) == 1
    assert differences("sft", [text], [text, []]) == ["sft: 1 and 2 code cells"]


def test_stages_that_differ_or_that_one_run_lacks_are_named(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        fill(folder, None)
        (folder / "base-1.json").write_bytes(b"1")
        (folder / "base-1.lock").write_bytes(str(folder).encode())
    assert stages_apart(one, other) == []
    (one / "ppo-2.json").write_bytes(b"1")
    (other / "base-1.json").write_bytes(b"2")
    assert stages_apart(one, other) == ["stage base-1.json", "stage ppo-2.json"]


def test_a_folder_is_filled_with_all_stages_but_those_left_out(tmp_path):
    (tmp_path / "source").mkdir()
    for name in (
        "dpo-1a.json",
        "dpo-trial-2b.json",
        "pool-4d.json",
        "base-3c.safetensors",
        "base-3c.lock",
    ):
        (tmp_path / "source" / name).write_text(name)
    fill(tmp_path / "copy", tmp_path / "source", leave_out=("dpo-[0-9a-f]*", "pool-*"))
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {
        "dpo-trial-2b.json",
        "base-3c.safetensors",
    }


@pytest.mark.parametrize(
    "body",
    [
        "import random\nprint(random.random())",
        "print({'a', 'b', 'c', 'd', 'e', 'f', 'g'})",
    ],
)
def test_what_no_seed_decides_is_found(tmp_path, monkeypatch, body):
    """A draw without a seed, and an order that follows Python's hashes."""
    page(tmp_path, monkeypatch, body)
    assert len(compare(["page"])) == 1


def test_a_clock_and_a_seeded_draw_are_no_difference(tmp_path, monkeypatch):
    page(
        tmp_path,
        monkeypatch,
        "import random, time\nprint(random.Random(0).random(), -time.perf_counter() + "
        "time.perf_counter())",
    )
    assert compare(["page"]) == []


def page(root, monkeypatch, body: str) -> None:
    """A book of one chapter with one cell, for the check to look at."""
    monkeypatch.setattr(determinism, "ROOT", root)
    (root / "book").mkdir()
    (root / "_config.yml").write_text("execute: {timeout: 60}\n")
    head = (
        "---\njupytext:\n  text_representation: {extension: .md, format_name: "
        "myst}\nkernelspec: {name: python3, display_name: Python 3}\n---\n"
    )
    (root / "book" / "page.md").write_text(
        f"{head}\n# Page\n\n```{{code-cell}} ipython3\n{body}\n```\n"
    )


@pytest.mark.slow
def test_chapter_5_comes_out_the_same_twice(monkeypatch):
    """Its main model is trained in both runs; what other chapters trained is copied."""

    def missing(base, *_):
        pytest.skip(f"{base.name} is not there (make book): all would be trained twice")

    with monkeypatch.context() as patch:
        patch.setattr(store, "train_and_keep", missing)
        stages.dpo_stage(corpus.load())
    assert compare(["dpo"], store.stages_folder(), leave_out=("dpo-[0-9a-f]*",)) == []
