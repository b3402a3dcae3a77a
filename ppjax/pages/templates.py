"""Templates: macros and style that pages share, and how values are shown."""

from collections.abc import Callable
import functools
import re
from typing import Any

import jinja2

import ppjax
from ppjax.pages import formats

# Longer texts are cut: a page with megabytes of them opens on no phone.
_LONGEST_TEXT = 20_000


def clip(text: Any, limit: int = _LONGEST_TEXT) -> str:
    """Text cut to a number of characters, which says how many are missing."""
    text = str(text)
    if len(text) <= limit:
        return text
    return f'{text[:limit]} … ({len(text) - limit} more characters)'


def render(package: str, name: str, **values: Any) -> str:
    """A page as HTML text.

    Args:
        package: that holds the page's template.
        name: of the template's file.
        **values: that it shows.
    """
    page = load(package, name).render(values)
    # Neither lone surrogates nor control characters may stand in HTML.
    page = page.encode('utf-8', 'replace').decode('utf-8')
    return re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', '\ufffd', page)


def load(package: str, name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """A template; of a page, it may import the shared ones by their file names.

    What a page shows is escaped, if its name ends in `.html.jinja`.

    Args:
        package: that holds it.
        name: of its file.
        **filters: that it uses beside those of all.
    """
    return _environment(package, tuple(filters.items())).get_template(name)


@functools.cache
def _environment(
    package: str, filters: tuple[tuple[str, Callable[..., Any]], ...]
) -> jinja2.Environment:
    owners = (package, __package__)
    environment = jinja2.Environment(
        autoescape=jinja2.select_autoescape(('html.jinja',)),
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(x, '') for x in owners]),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {'clip': clip, 'signed': formats.signed} | dict(filters)
    environment.globals['tool_version'] = ppjax.__version__
    return environment
