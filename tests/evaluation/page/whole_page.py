"""A page's reader that checks that tags nest and that it loads and runs nothing."""

from html import parser as html_parser
import re


class Page(html_parser.HTMLParser):
    """Checks that tags nest, and collects attributes and texts."""

    VOID = frozenset({'meta', 'br', 'img', 'link', 'hr', 'input'})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.cells: dict[str, list[list[str]]] = {}
        self._table = ''
        self.text = ''
        self.feed(text)
        self.close()
        assert not self.open, f'unclosed: {self.open}'

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == 'table':
            self._table = dict(attrs).get('id') or ''
            self.cells.setdefault(self._table, [])
        if tag == 'tr' and self._table:
            self.cells[self._table].append([])
        if tag in ('td', 'th') and self._table:
            self.cells[self._table][-1].append('')
        if tag == 'small' and self._table:
            self.cells[self._table][-1][-1] += ' | '

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or '') for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f'</{tag}> closes nothing'
        assert self.open.pop() == tag
        if tag == 'table':
            self._table = ''

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._table and {'td', 'th'} & set(self.open):
            self.cells[self._table][-1][-1] += data.strip()


def parse(text: str) -> Page:
    """Parses a page and checks that it loads and runs nothing."""
    assert text.startswith('<!DOCTYPE html>')
    page = Page(text)
    assert not page.tags & {'script', 'link', 'iframe', 'object', 'embed', 'base'}
    loading = {'src', 'srcset', 'href', 'xlink:href', 'data', 'poster', 'action'}
    for tag, name, value in page.attributes:
        assert not name.startswith('on'), (tag, name)
        if name in loading and tag != 'a':
            assert value.startswith(('#', 'data:')), (tag, name, value)
        if name == 'style':
            assert re.sub(r'url\(#[\w-]+\)', '', value).count('url(') == 0
    style = text[text.index('<style>') : text.index('</style>')]
    assert 'url(' not in style
    assert '@import' not in style
    ids = [value for _, name, value in page.attributes if name == 'id']
    assert len(set(ids)) == len(ids)
    for _, name, value in page.attributes:
        for target in re.findall(r'url\(#([\w-]+)\)', value):
            assert target in ids
        if name == 'xlink:href' and value.startswith('#'):
            assert value[1:] in ids
    return page
