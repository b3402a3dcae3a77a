"""The files of the page at `/`: written for it, and all that it loads."""

import functools
import importlib.resources

_TYPES = {
    'index.html': 'text/html; charset=utf-8',
    'chat.css': 'text/css; charset=utf-8',
    'chat.js': 'text/javascript; charset=utf-8',
}
NAMES = tuple(_TYPES)

# What the page needs and nothing else: texts of models and of cards are shown there.
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; script-src "
    # Pictures that want a key are fetched by the script.
    "'self'; connect-src 'self'; img-src 'self' blob:; form-action 'none'; base-uri "
    "'none'; frame-ancestors 'none'",
    'Cache-Control': 'no-cache',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}


@functools.cache
def read(name: str) -> tuple[str, bytes]:
    """A file's media type and content.

    Raises:
        KeyError: if it is none of `NAMES`.
    """
    kind = _TYPES[name]
    return kind, importlib.resources.files(__package__).joinpath(name).read_bytes()
