"""What a settings class asks of its own fields: ValueErrors that name the field and the
way out.
"""

from __future__ import annotations


def at_least(settings: object, **least: float) -> None:
    """Raise ValueError for a field that is below its least value."""
    for name, bound in least.items():
        if not getattr(settings, name) >= bound:
            raise ValueError(
                f"{name} is {getattr(settings, name)}: use at least {bound}"
            )


def above_zero(settings: object, *names: str) -> None:
    """Raise ValueError for a field that is not above 0."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(
                f"{name} is {getattr(settings, name)}: use a number above 0"
            )


def one_of(settings: object, **choices: tuple) -> None:
    """Raise ValueError for a field that is none of its choices."""
    for name, allowed in choices.items():
        if getattr(settings, name) not in allowed:
            raise ValueError(
                f"{name} is {getattr(settings, name)!r}: use one of {allowed}"
            )
