"""Fields of a request's JSON object, each checked as it is read.

A field that is null was not given. Of several names of one thing the first that is
given counts. Fields that nobody asks for are ignored.
"""

from typing import Any

from ppjax.personas import inputs
from ppjax.serving.api import problems


class Fields:
    """A JSON object.

    Methods raise `ApiError` with the name of the field that is wrong.
    """

    def __init__(self, body: dict[str, Any]):
        self._given = {name: value for name, value in body.items() if value is not None}

    def find(self, *names: str) -> tuple[str, Any]:
        """(the first name that is given, its value); (the first name, None) if none."""
        name = next((name for name in names if name in self._given), names[0])
        return name, self._given.get(name)

    def number(
        self,
        *names: str,
        default: float,
        least: float,
        most: float,
        above: bool = False,
    ) -> float:
        """A number within bounds.

        Args:
            names: of the field.
            default: where it is not given.
            least: the least it may be.
            most: the most it may be.
            above: whether it must be more than `least`.
        """
        name, value = self.find(*names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise problems.wrong(name, f'{name!r} must be a number.')
        # Whatever is not finite is in no range.
        if not least <= value <= most or (above and value == least):
            bound = f'{"(" if above else "["}{least:g}, {most:g}]'
            raise problems.wrong(name, f'{name!r} must be in {bound}, got {value!r}.')
        return float(value)

    def whole(self, *names: str, least: int, most: int) -> int | None:
        """A whole number within bounds; None where it is not given."""
        name, value = self.find(*names)
        if value is None:
            return None
        # JavaScript knows no other numbers.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise problems.wrong(name, f'{name!r} must be a whole number.')
        if not least <= value <= most:
            raise problems.wrong(
                name, f'{name!r} must be in [{least}, {most}], got {value}.'
            )
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        name, value = self.find(*names)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise problems.wrong(name, f'{name!r} must be true or false.')
        return value

    def text(self, *names: str) -> str | None:
        """A string; None where it is not given."""
        name, value = self.find(*names)
        return None if value is None else text_of(value, name)

    def table(self, name: str) -> 'Fields':
        """An object; an empty one where it is not given."""
        _, value = self.find(name)
        if value is None:
            return Fields({})
        if not isinstance(value, dict):
            raise problems.wrong(name, f'{name!r} must be an object.')
        return Fields(value)

    def texts(self, *names: str, most: int, longest: int) -> tuple[str, ...]:
        """Strings of all the names together, each once; a string stands for a list.

        Args:
            names: of the fields.
            most: how many there may be.
            longest: characters that one may have.
        """
        found: dict[str, None] = {}
        for name in names:
            value = self._given.get(name)
            if value is None:
                continue
            listed = value if isinstance(value, list) else [value]
            for part in listed:
                text = text_of(part, name)
                if len(text) > longest:
                    raise problems.wrong(
                        name, f'{name!r}: one has more than {longest} characters.'
                    )
                if text:  # Found at once, it would leave no answer.
                    found[text] = None
            if len(found) > most:
                raise problems.wrong(name, f'{name!r} has more than {most} strings.')
        return tuple(found)

    def is_given(self, name: str) -> bool:
        """Whether a field says something: null, false and what is empty do not."""
        return bool(self._given.get(name))


def text_of(value: Any, name: str) -> str:
    """A value that is a string of characters."""
    if not isinstance(value, str):
        raise problems.wrong(name, f'{name!r} must be a string.')
    if not inputs.is_text(value):
        raise problems.wrong(
            name, f'{name!r} holds half of a character (a lone surrogate).'
        )
    return value
