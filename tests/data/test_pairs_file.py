"""The command that writes pairs: none twice, each with its origin, all or nothing."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from test_synthetic_pairs import SMALL, pool_of
from test_terminal import desk, stored_stages  # noqa: F401
from tiny import moved

from posttrain.cli import commands as program
from posttrain.data import datasets, pairs_file
from posttrain.data.datasets import DatasetError
from posttrain.data.pairs_file import (
    check_place,
    collect_pairs,
    fingerprint,
    provenance_file,
    write_pairs,
)

OTHER = pool_of([["A.", "B."], ["D.", "K."]], [[0.0, 1.0], [0.0, 2.0]])


def test_no_pair_comes_twice_and_each_says_where_it_comes_from():
    asked = []
    found = collect_pairs(
        lambda seed: asked.append(seed) or (SMALL if seed < 9 else OTHER),
        "reward",
        seed=7,
    )
    (one, origin), (two, _), (three, last) = (next(found) for _ in range(3))
    assert one == dict(id="o1", prompt="Who?", chosen="B.", rejected="C.")
    assert origin == dict(
        id="o1", prompt=0, draw=7, reward=[2.0, -1.0], gold=[0.0, 1.0]
    )
    # The second draw brings the same two; the third, two new ones
    assert (two["id"], three) == (
        "o2",
        dict(id="o3", prompt="Who?", chosen="B.", rejected="A."),
    )
    assert asked == [7, 8, 9] and last["draw"] == 9


def test_where_nothing_new_comes_any_more_it_ends_with_advice():
    found = collect_pairs(lambda seed: SMALL, "reward", 0)
    assert [next(found)[0]["id"] for _ in range(2)] == ["o1", "o2"]
    with pytest.raises(
        ValueError, match="after 2 pairs, 5 more answers .* raise the temperature"
    ):
        next(found)


def test_a_fingerprint_is_of_every_weight():
    one, other = moved(), moved()
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.head.weight[3, 2] += 1e-12
    assert fingerprint(one) != fingerprint(other)


def test_a_file_is_not_replaced_unasked_and_a_folder_must_be_there(tmp_path):
    out = tmp_path / "pairs.jsonl"
    check_place(out, force=False)
    for path in (out, provenance_file(out)):
        path.write_text("kept")
        with pytest.raises(
            DatasetError, match=f"{path.name} exists: replace it with --force"
        ):
            check_place(out, force=False)
        check_place(out, force=True)
        path.unlink()
    with pytest.raises(DatasetError, match="is no folder: make it first"):
        check_place(tmp_path / "no" / "pairs.jsonl", force=True)
    with pytest.raises(DatasetError, match="is a folder: name a file"):
        check_place(tmp_path, force=True)


def test_a_full_disk_leaves_what_was_there_and_is_one_sentence(tmp_path, monkeypatch):
    out = tmp_path / "pairs.jsonl"
    out.write_text("kept")

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pairs_file, "replace_file", full)
    with pytest.raises(DatasetError, match="cannot be written: No space left"):
        write_pairs(out, [dict(id="o1")], [], {})
    assert out.read_text() == "kept"


def test_what_is_written_is_data_dpo_trains_on(desk, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        program,
        "draw_pool",
        lambda *asked, seed, **settings: SMALL if seed == 4 else OTHER,
    )
    assert (
        program.main(
            ["pairs", "--n", "3", "--judge", "gold", "--seed", "4", "--samples", "3"]
        )
        == 0
    )
    *_, said, use = capsys.readouterr().out.splitlines()
    assert said == "3 pairs, judged by gold, are in pairs.jsonl."
    rows = datasets.preferences("pairs.jsonl", context=256)
    assert [row["id"] for row in rows] == ["o1", "o2", "o3"] and rows[0][
        "chosen"
    ] == "C."
    about = json.loads(Path("pairs.provenance.json").read_text())
    assert [origin["id"] for origin in about["pairs"]] == ["o1", "o2", "o3"]
    assert (
        about["pairs_sha256"]
        == hashlib.sha256(Path("pairs.jsonl").read_bytes()).hexdigest()
    )
    assert (about["judge"], about["samples"], about["seed"], about["temperature"]) == (
        "gold",
        3,
        4,
        0.8,
    )
    sft = program.stages.sft_model(program.corpus.load())[0]
    assert about["policy_sha256"] == fingerprint(sft) and len(about["prompts"]) == 96
    assert {path.name for path in Path().iterdir()} == {
        "pairs.jsonl",
        "pairs.provenance.json",
    }
    # And back: the line that it prints trains
    assert use == "Try it: python -m posttrain train dpo --data pairs.jsonl"
    assert program.main(use.split()[5:]) == 0 and "dpo" in stored_stages()
    assert "3 pairs, after the SFT model's 40 conversations" in capsys.readouterr().out
    # It does not replace its own file unasked, and asks before it trains anything
    assert (
        program.main(["pairs", "--stage", "ppo"]) == 2 and "ppo" not in stored_stages()
    )
    assert "exists: replace it with --force" in capsys.readouterr().err
    assert program.main(["pairs", "--n", "2", "--seed", "4", "--force"]) == 0
    assert len(datasets.preferences("pairs.jsonl")) == 2


def test_too_few_answers_are_one_line(desk, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(program, "draw_pool", lambda *asked, **settings: SMALL)
    assert program.main(["pairs", "--n", "9"]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("There are not 9 pairs: after 2 pairs")
        and error.count("\n") == 1
    )
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        ["--n", "0"],
        ["--samples", "1"],
        ["--judge", "people"],
        ["--n", "x"],
        ["--seed", "-1"],
    ],
)
def test_a_flag_that_cannot_work_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as refused:
        program.main(["pairs", *flags])
    assert refused.value.code == 2 and flags[0] in capsys.readouterr().err
