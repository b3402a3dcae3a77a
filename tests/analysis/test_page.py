"""Page and tables: what they show, and whose names they survive."""

import csv
from html import parser as html_parser
import io
import re

import numpy as np
import pytest

from ppjax.analysis import config, labels, page, study, tables
from ppjax.pages import markdown

_HOSTILE = '"\'><script>alert(1)</script>&|$x$ \x1b漢'


def _config(**changes):
    return config.MasksConfig(**({'masks': 'x', 'output_dir': 'out'} | changes))


class _Checker(html_parser.HTMLParser):
    """Collects tags, text, ids and what drawings are called."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.ids, self.labels = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        own = dict(attributes)
        self.ids += [own['id']] if 'id' in own else []
        if tag == 'svg' and own.get('role') == 'img':
            self.labels.append(own['aria-label'])

    def handle_data(self, data):
        self.text.append(data)


def _render(cfg, found):
    html = page.render(cfg, found, page.sections(cfg, found), {'jax': '1'})
    checker = _Checker()
    checker.feed(html)
    return html, checker


@pytest.fixture
def masks(compare, planted):
    return compare(*((name, f'seed {s}', kept) for (name, s), kept in planted.items()))


@pytest.fixture
def texts(serve_json):
    """Settings with an embedding server whose vectors go by the persona's number."""

    def answer(body):
        number = int(re.search(r'persona(\d)', body['input'])[1])
        return 200, {'data': [{'embedding': [1.0, float(number**2)]}]}

    return _config(
        embeddings='openai', embedding_model='e', embedding_url=serve_json(answer)
    )


def test_everything_is_shown(masks, texts):
    found = study.of_masks(texts, masks, labels.SEED)
    html, checker = _render(texts, found)
    assert re.findall(r'<h2>(.*?)</h2>', html) == [
        'Within and between personas',
        'Between seeds',
        'Which masks are alike',
        'What texts are about',
        'By layer',
        'Masks',
        'Reproduce',
    ]
    assert checker.labels == [
        *(f'Scatter, Seed {a} and seed {b}' for a, b in ((0, 1), (0, 2), (1, 2))),
        *(f'Heat map, seed {x}' for x in range(3)),
        'Dendrogram of masks',
        'Scatter, Texts and masks',
        'Similarity by layer',
    ]
    assert checker.tags.count('figure') == 3 + 3 + 1 + 1 + 1
    assert len(set(checker.ids)) == len(checker.ids)
    # It loads nothing from elsewhere.
    assert not re.search(r'(src|href)="(?!#|data:)', html)
    shown = ' '.join(checker.text)
    means = found.closeness
    low, high = means.within.interval
    assert f'{means.within.value:.4f}' in shown
    assert f'{low:.4f} to {high:.4f}' in shown
    assert f'+{means.difference.value:.4f}' in shown
    assert f'+{found.seed_pairs[0].found.r:.3f}' in shown
    assert f'+{found.alignment.found.r:.3f}' in shown
    assert f'{found.layers.within[2]:.4f}' in shown
    assert '50.0\N{NO-BREAK SPACE}%' in shown
    # Into the heat maps, and beside the leaves.
    cell = f'{found.by_repetition["seed 1"][0, 1]:.2f}'.removeprefix('0')
    assert f'>{cell}<' in html
    assert 'persona2, seed 2' in shown


def test_one_mask_a_persona(compare):
    masks = compare(('jack', '1', [[1, 1, 0, 0]]), ('walt', '1', [[0, 1, 1, 0]]))
    cfg = _config()
    html, checker = _render(cfg, study.of_masks(cfg, masks, labels.NUMBER))
    titles = re.findall(r'<h2>(.*?)</h2>', html)
    assert 'Between' not in ' '.join(titles[1:])
    assert 'No persona has two masks' in html
    assert 'no intervals' in html
    assert checker.labels[0] == 'Heat map of similarities'


def test_blocks_of_one_persona(make_mask, compare):
    masks = compare(('jack', '1', [[1, 1, 0]]), ('jack', '2', [[1, 0, 1]]))
    for mask in masks:
        object.__setattr__(mask.mask, 'granularity', 'blocks')
    cfg = _config()
    html, checker = _render(cfg, study.of_masks(cfg, masks, labels.NUMBER))
    assert 'By layer' not in html
    assert checker.labels == ['Dendrogram of masks']
    assert 'of blocks' in html


def test_what_is_not_defined_is_said(compare):
    masks = compare(
        *(
            (name, seed, np.eye(3, dtype=bool)[[place]])
            for place, name in enumerate(('jack', 'walt', 'ida'))
            for seed in ('seed 0', 'seed 1')
        )
    )
    cfg = _config()
    found = study.of_masks(cfg, masks, labels.SEED)
    html, _ = _render(cfg, found)
    assert 'none: all similarities are equal' in html
    assert 'r is not defined: all similarities are equal' in html
    assert 'nan' not in html.lower().replace('dominant', '')


def test_many_masks(compare):
    rng = np.random.default_rng(0)
    masks = compare(
        *((f'p{x}', '1', rng.random((2, 30)).argsort(axis=1) < 15) for x in range(70))
    )
    cfg = _config()
    found = study.of_masks(cfg, masks, labels.NUMBER)
    html, checker = _render(cfg, found)
    assert checker.labels == ['Heat map of similarities', 'Similarity by layer']
    assert tables.personas(found) is None
    assert len(html) < 400_000


@pytest.mark.filterwarnings('ignore:Glyph')
def test_what_users_name_is_text(compare):
    masks = compare(
        ('jack', 'seed 0', [[1, 1, 0, 0]]), ('walt', 'seed 0', [[0, 1, 1, 0]])
    )
    for mask in masks:
        object.__setattr__(mask, 'persona', _HOSTILE + mask.persona)
    cfg = _config()
    html, checker = _render(cfg, study.of_masks(cfg, masks, labels.NUMBER))
    assert 'script' not in checker.tags
    assert '<script>' not in html
    assert any('<script>' in text for text in checker.text)
    assert '\x1b' not in html


def test_csv_has_a_line_for_each_pair(masks, texts):
    found = study.of_masks(texts, masks, labels.SEED)
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(found))))
    assert len(lines) == 9 * 8 // 2
    assert sum(line['pair'] == 'within' for line in lines) == 9
    last = lines[-1]
    assert (last['persona_a'], last['repetition_a']) == ('persona2', 'seed 1')
    assert (last['persona_b'], last['repetition_b']) == ('persona2', 'seed 2')
    assert float(last['jaccard']) == pytest.approx(found.similarity[7, 8], abs=1e-6)
    assert float(last['chance']) == pytest.approx(1 / 3, abs=1e-6)
    assert float(last['text_cosine']) == pytest.approx(1)
    first = next(x for x in lines if (x['persona_a'], x['persona_b']) ==
                 ('persona0', 'persona1'))  # fmt: skip
    assert float(first['text_cosine']) == pytest.approx(2**-0.5, abs=1e-6)
    plain = study.of_masks(_config(), masks, labels.SEED)
    assert tables.as_csv(plain).splitlines()[1].endswith(',')


def test_markdown(masks):
    cfg = _config()
    found = study.of_masks(cfg, masks, labels.SEED)
    every = [x for part in page.sections(cfg, found) for x in part.tables]
    text = markdown.of_tables(every)
    low, high = found.closeness.within.interval
    assert (
        f'| One persona, two seeds | {found.closeness.within.value:.4f} '
        f'({low:.4f} to {high:.4f}) | 9 |' in text
    )
    assert '| Any two masks, by chance | 0.3333 | 36 |' in text
    assert '### Correlation between seeds' in text
