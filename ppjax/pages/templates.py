"""Templates: macros and style that pages share, and how values are shown."""

from collections.abc import Callable
import functools
import importlib.resources
from typing import Any

import jinja2

_SHARED = ('macros.html.jinja', 'style.html.jinja')


# Longer texts are cut: a page with megabytes of them opens on no phone.
_LONGEST_TEXT = 20_000


def clip(text: Any, limit: int = _LONGEST_TEXT) -> str:
    """Text cut to a number of characters, which says how many are missing."""
    text = str(text)
    if len(text) <= limit:
        return text
    return f'{text[:limit]} … ({len(text) - limit} more characters)'


def load(package: str, name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template; of a page, it may import the shared ones by their file names.

    What a page shows is escaped, if its name ends in `.html.jinja`.

    Args:
        package: that holds it.
        name: of its file.
        **filters: that it uses beside `clip`.
    """
    return _environment(package, name, tuple(filters.items())).get_template(name)


@functools.cache
def _environment(
    package: str, name: str, filters: tuple[tuple[str, Callable[..., Any]], ...]
) -> jinja2.Environment:
    owners = dict.fromkeys(_SHARED, __package__) | {name: package}
    environment = jinja2.Environment(
        autoescape=name.endswith('.html.jinja'),
        loader=jinja2.DictLoader(
            {
                file: (importlib.resources.files(owner) / file).read_text('utf-8')
                for file, owner in owners.items()
            }
        ),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {'clip': clip} | dict(filters)
    return environment
