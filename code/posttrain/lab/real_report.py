"""`make real`: a published model through all stages, and what became of it."""

from __future__ import annotations

import sys

from posttrain.cli.boundary import guarded
from posttrain.data import datasets
from posttrain.lab.real_trials import SHOWN, RealTrial, real_trial


def report(found: dict) -> str:
    """A trial's result in lines: a row of numbers for each card, and some answers."""
    head = f"{'':12}{'won':>6}{'finished':>10}{'courteous':>11}{'words':>7}{'KL':>7}"
    lines = [head]
    for name, card in found["cards"].items():
        kl = f"{card['kl']:7.1f}" if "kl" in card else ""
        lines.append(
            f"{name:12}{card['win_rate']:6.0%}{card['finished']:10.0%}"
            f"{card['courteous']:11.0%}{card['words']:7.1f}{kl}"
        )
    for i, prompt in enumerate(datasets.heldout_prompts()[:SHOWN]):
        lines.append(f"\n{prompt}")
        lines += [f"  {k}: {card['answers'][i]}" for k, card in found["cards"].items()]
    ranked = "{learned:.0%} of the 18 pairs, {ranked:.0%} of the held-out ones"
    lines.append("\nThe reward model ranks " + ranked.format(**found))
    lines.append("\nSurprise (nats/token)   held-out conversations   plain English")
    for name, lost in found["losses"].items():
        lines.append(f"{name:22}{lost['conversations']:24.2f}{lost['english']:16.2f}")
    return "\n".join(lines)


def main() -> int:
    """`make real`: the pipeline with seed 0, which goes on where it was cut off."""
    from posttrain.show import progress

    def bar(name: str, steps, total: int):
        return progress(steps, total=total, desc=name)

    def whole() -> int:
        print(report(real_trial(None, RealTrial(), 0, bar)))
        return 0

    return guarded(whole, real=True)


if __name__ == "__main__":
    sys.exit(main())
