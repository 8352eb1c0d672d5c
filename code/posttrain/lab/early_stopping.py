"""Moments of a fine-tuning run: a step of it, and where two rules would stop it."""

from __future__ import annotations


def entry(history: dict, place: int = -1) -> dict:
    """What a run noted at one of its evaluations: the last, unless one is named."""
    return {
        name: values[place] if isinstance(values, list) else values
        for name, values in history.items()
    }


def at_step(history: dict, step: int) -> dict:
    """What a run noted at a step. Raises ValueError where nothing was measured."""
    if step not in history["step"]:
        raise ValueError(f"no step {step}: measured was at {history['step']}")
    return entry(history, history["step"].index(step))


def stop_at_least_loss(history: dict) -> dict:
    """What a run noted when its loss on held-out conversations was least."""
    losses = history["conversation_loss"]
    return entry(history, losses.index(min(losses)))


def stop_in_format(history: dict, share: float = 0.95) -> dict:
    """What a run noted when this share of questions was first answered in format.

    At its end where it never came to that.
    """
    places = [i for i, each in enumerate(history["in_format"]) if each >= share]
    return entry(history, places[0] if places else -1)
