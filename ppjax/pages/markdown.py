"""Tables of a page as Markdown."""

from collections.abc import Sequence

from ppjax.pages import formats, views


def of_tables(tables: Sequence[views.Table]) -> str:
    """Each with its title above it."""
    parts = []
    for table in tables:
        lines = [
            f'### {table.title}\n',
            f'| | {" | ".join(map(_plain, table.columns))} |',
            f'|---|{"---:|" * len(table.columns)}',
        ]
        for label, cells in table.rows:
            texts = [
                f'{cell.text} ({cell.detail})' if cell.detail else cell.text
                for cell in cells
            ]
            lines.append(f'| {_plain(label)} | {" | ".join(texts)} |')
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def _plain(text: str) -> str:
    return formats.printable(text).replace('|', '\\|')
