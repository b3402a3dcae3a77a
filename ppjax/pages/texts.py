"""Sections of a page as text for a terminal."""

import textwrap

from ppjax.pages import formats, templates, views

_WIDTH = 88
_LONGEST_CELL = 80

# Not every terminal can show these, and a figure without its sign is another one.
_PLAIN = str.maketrans({'–': '-', '−': '-'})


def _plain(text: str) -> str:
    return formats.printable(templates.clip(text, 1000).translate(_PLAIN))


def _cell(shown: views.TableCell) -> str:
    if not shown.detail:
        return shown.text
    reads_on = shown.detail.startswith(('of ', '±'))
    return f'{shown.text} {shown.detail if reads_on else f"({shown.detail})"}'


def table(shown: views.Table) -> str:
    """Its title, if it has one, and aligned columns: the first to the left."""
    rows = [['', *shown.columns]]
    rows += [[label, *map(_cell, cells)] for label, cells in shown.rows]
    rows = [[_plain(templates.clip(x, _LONGEST_CELL)) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_plain(shown.title)] if shown.title else []
    for first, *cells in rows:
        padded = [cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True)]
        lines.append('  '.join([first.ljust(widths[0]), *padded]).rstrip())
    return '\n'.join(lines)


def section(part: views.Section) -> str:
    """Its tables and what is said of them, without plots, answers and settings."""
    intro, note = (textwrap.fill(_plain(x), _WIDTH) for x in (part.intro, part.note))
    tables = map(table, part.tables)
    paragraphs = [f'{_plain(part.title)}\n{intro}', *tables, note]
    return '\n\n'.join(paragraph for paragraph in paragraphs if paragraph)
