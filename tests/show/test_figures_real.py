"""The memory of a real model as it is shown: each case's own numbers."""

import pytest

from posttrain.show.figures_real import measured_table, memory_bars

HOLDS = dict(weights=16e9, gradients=2e9, adam=4e9, activations=1e9, logits=0.5e9)
CASE = dict(
    model="Llama-3.1-8B",
    stage="dpo",
    how="qlora",
    checkpointing=True,
    micro=3,
    length=512,
    tokens_per_second=1259,
    peak=23.0,
    computed=HOLDS | dict(adapters=0.1e9, total=23.6e9),
)


def test_a_measured_case_stands_beside_what_is_computed_a_pair_as_two_rows():
    table = measured_table([CASE, CASE | dict(how="full16", stage="sft")], "a GPU")
    assert table.caption == "a GPU" and table.header[-2:] == [
        "computed (GB)",
        "tokens/s",
    ]
    first, second = table.rows
    assert first[:5] == ["Llama-3.1-8B", "DPO", "QLoRA", "yes", "6 x 512"]
    assert first[5:] == ["23.0", "23.6", "1,259"]
    assert second[1:5] == ["SFT", "all weights, bfloat16", "yes", "3 x 512"]


def test_bars_are_stacked_in_gigabytes_and_a_dot_is_the_measured_peak():
    plain = CASE | dict(how="lora", checkpointing=False, peak=30.0)
    (axis,) = memory_bars([CASE, plain]).axes
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches[::2]]
    assert ends == pytest.approx([16, 18, 22, 23, 23.5])
    (dots,) = axis.lines
    assert list(dots.get_xdata()) == [23, 30]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == ["QLoRA, checkpointing", "LoRA"] and axis.yaxis_inverted()
    (legend,) = axis.figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said == ["measured peak", *HOLDS] or said == [*HOLDS, "measured peak"]
