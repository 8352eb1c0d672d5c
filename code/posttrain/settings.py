"""What a settings class asks of its own fields: ValueErrors that name the field and the
way out.
"""

from __future__ import annotations

from dataclasses import fields


class SettingError(ValueError):
    """A setting that is not there, or a value that it cannot take: the message says
    which, and the way out.
    """


def settings_from(kind: type, given: list[str], **others: object) -> object:
    """A settings class made of NAME=VALUE texts, each of its field's own kind.

    Raises SettingError for a name that the class lacks, and for a value that it
    refuses.
    """
    plain = {
        each.name: type(each.default)
        for each in fields(kind)
        if type(each.default) in (int, float, str, bool)
    }
    found = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise SettingError(f"{text!r} sets nothing: write it as NAME=VALUE")
        if name not in plain:
            raise SettingError(
                f"{kind.__name__} has no setting {name!r}: use one of "
                f"{', '.join(plain)}"
            )
        found[name] = value_of(name, value, plain[name])
    try:
        return kind(**others | found)
    except ValueError as error:
        raise SettingError(str(error)) from None


def value_of(name: str, text: str, kind: type) -> object:
    """A setting's value from its text. Raises SettingError for another kind."""
    try:
        if kind is bool:
            return dict(true=True, false=False)[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}
        raise SettingError(f"{name} is {text!r}: use {wanted[kind]}") from None


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
