"""Books of cards: what is read of them, and what conversations bring up."""

import time

import hypothesis
from hypothesis import strategies as st
import pytest

from ppjax.personas import cards, lore_search, lorebooks


def _book(*entries, **fields):
    """The book of a card with these entries."""
    card = {
        'name': 'Ida',
        'description': 'Ida is a baker.',
        'character_book': {'entries': list(entries)} | fields,
    }
    return cards.to_persona(card, 'card').book


def _entry(content, *keys, **fields):
    return {'keys': list(keys), 'content': content} | fields


def _found(book, *messages, count=len):
    assert book
    return [entry.content for entry in lore_search.found(book, messages, count)]


def test_an_entry_comes_with_its_key():
    book = _book(
        _entry("{{char}}'s oven.", 'oven', '{{user}}'), _entry('Geese.', 'goose')
    )
    assert _found(book, 'A Goose!') == ['Geese.']
    assert _found(book, 'Ovens', 'and a mongoose') == ["Ida's oven.", 'Geese.']
    assert _found(book, 'the user is here') == ["Ida's oven."]
    assert _found(book, 'nothing') == []


@pytest.mark.parametrize(
    ('fields', 'said', 'comes'),
    [
        ({}, 'STORMS', True),
        ({'case_sensitive': True}, 'STORM', False),
        ({'case_sensitive': True}, 'storms', True),
        ({'extensions': {'case_sensitive': True}}, 'STORM', False),
        ({'extensions': {'match_whole_words': True}}, 'storms', False),
        ({'extensions': {'match_whole_words': True}}, 'A Storm!', True),
        ({'matchWholeWords': 'true'}, 'brainstorm', False),
        ({'enabled': True, 'extensions': None}, 'storm', True),
        ({'content': '@@dont_activate\nx'}, 'storm', False),
        ({'extensions': {'scan_depth': 0}}, 'storm', False),
        ({'content': '@@scan_depth 0\nx'}, 'storm', False),
        ({'content': '@@scan_depth many\nx'}, 'storm', True),
    ],
)
def test_options_of_an_entry(fields, said, comes):
    book = _book(_entry('x', 'storm') | fields, _entry('Other.', 'other'))
    assert bool(_found(book, said)) == comes


@pytest.mark.parametrize(
    ('logic', 'said', 'comes'),
    [
        (None, 'sea', False),
        (None, 'sea and ship', True),
        (0, 'sea and ship', True),
        (1, 'sea and ship', True),
        (1, 'sea, ship and net', False),
        (2, 'sea', True),
        (2, 'sea and net', False),
        (3, 'sea and net', False),
        (3, 'sea, ship, net', True),
        (77, 'sea', False),
        (0, 'ship', False),
    ],
)
def test_second_keys(logic, said, comes):
    entry = _entry('x', 'sea', selective=True, secondary_keys=['ship', 'net'])
    own = {} if logic is None else {'extensions': {'selectiveLogic': logic}}
    assert bool(_found(_book(entry | own), said)) == comes
    # Without the switch they are nothing.
    assert _found(_book(entry | {'selective': False}), 'sea') == ['x']


def test_only_the_last_messages_count():
    entry = _entry('x', 'storm')
    said = ['storm', 'a', 'b']
    assert _found(_book(entry), *said) == []
    assert _found(_book(entry, scan_depth=3), *said) == ['x']
    assert _found(_book(entry, scan_depth='3'), *said) == ['x']
    assert _found(_book(entry, scan_depth=0), 'storm') == []
    assert _book(entry, scan_depth=10**40).scan_depth == lorebooks.MOST_DEPTH
    assert _book(entry, scan_depth=None).scan_depth == lorebooks.SCAN_DEPTH


def test_entries_stand_by_their_order_and_constant_ones_are_not_among_them():
    book = _book(
        _entry('Late.', 'a', insertion_order=9),
        _entry('Always.', 'a', constant=True),
        _entry('Early.', 'a', insertion_order=1, position='before_char'),
    )
    assert _found(book, 'a') == ['Early.', 'Late.']
    assert [entry.before for entry in book.entries] == [False, False, True]
    # With nothing that waits for a key there is no book.
    assert _book(_entry('Always.', 'a', constant=True)) is None
    assert _book(_entry('Never.')) is None


def test_a_budget_drops_those_of_low_priority():
    entries = [
        _entry('aaaa', 'k', insertion_order=1, priority=5),
        _entry('bbbb', 'k', insertion_order=2, priority=9),
        _entry('cc', 'k', insertion_order=3, priority=1),
    ]
    assert _found(_book(*entries, token_budget=6), 'k') == ['bbbb', 'cc']
    assert _found(_book(*entries, token_budget=8), 'k') == ['aaaa', 'bbbb']
    assert _found(_book(*entries, token_budget=0), 'k') == ['aaaa', 'bbbb', 'cc']
    asked = []
    _found(_book(*entries), 'k', count=lambda text: asked.append(text) or 0)
    assert not asked


def test_entries_bring_up_others_where_the_book_says_so():
    entries = [
        _entry('The mill burnt.', 'fire'),
        _entry('Old Joss had it.', 'mill'),
        _entry('Joss drank.', 'joss', extensions={'exclude_recursion': True}),
        _entry('There is a river.', constant=True),
        _entry('It floods.', 'river'),
    ]
    assert _found(_book(*entries), 'fire') == ['The mill burnt.']
    assert _found(_book(*entries, recursive_scanning=True), 'fire') == [
        'The mill burnt.',
        'Old Joss had it.',
        'It floods.',
    ]


def test_a_long_chain_of_entries_ends():
    chain = [_entry(f'x{number + 1}.', f'x{number}.') for number in range(60)]
    brought_up = _found(_book(*chain, recursive_scanning=True), 'x0.')
    assert 1 < len(brought_up) < 20


def test_patterns():
    book = _book(
        _entry('Slashes.', '/ov.n\\b/i'), _entry('Named.', r'o(?<x>v)', use_regex=True)
    )
    assert _found(book, 'the OVEN') == ['Slashes.']
    assert _found(book, 'ovens') == ['Named.']
    # Neither what is no pattern nor one of enormous size is one.
    assert _found(_book(_entry('x', '/(/', '/' + 'a?' * 1500 + '/')), '( aaa') == []


def test_a_pattern_that_never_ends_is_given_up():
    book = _book(*[_entry('x', '/^(a|a)*$/') for _ in range(50)], _entry('y', 'aaa'))
    start = time.monotonic()
    assert _found(book, 'a' * 40 + 'b') == ['y']
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    'book',
    [None, [], 'x', {'entries': None}, {'entries': 5}, {'entries': [None, 'x', {}]}],
)
def test_what_is_no_book(book):
    card = {'name': 'a', 'description': 'b', 'character_book': book}
    assert cards.to_persona(card, 'card').book is None


def test_odd_values_are_read_as_far_as_they_mean_something():
    odd = _entry(
        'x', 'k', 7, None, '\ud800',
        insertion_order='first', priority=True, position=True, selective='maybe',
        secondary_keys=5, extensions={'selectiveLogic': 'x', 'scan_depth': {}},
    )  # fmt: skip
    book = _book(odd, scan_depth=[], token_budget='many', recursive_scanning='no')
    assert book == lorebooks.Book(
        (lorebooks.Entry('x', (lorebooks.Key('k'),), scan_depth=2),)
    )
    assert 'content' not in repr(book)


def test_post_history_is_resolved():
    card = {
        'name': 'Ida',
        'description': 'Ida bakes.',
        'post_history_instructions': '{{original}} Stay {{char}}, {{user}}. ',
    }
    persona = cards.to_persona(card, 'card', user_name='Tom')
    assert persona.post_history == 'Stay Ida, Tom.'
    assert 'Stay' not in repr(persona)
    assert 'Stay' not in persona.system_prompt


_FIELDS = [
    'keys', 'key', 'secondary_keys', 'keysecondary', 'selective', 'selectiveLogic',
    'constant', 'position', 'insertion_order', 'order', 'priority', 'use_regex',
    'case_sensitive', 'matchWholeWords', 'scan_depth', 'scanDepth', 'enabled',
    'extensions', 'exclude_recursion',
]  # fmt: skip
_leaf = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, '1e999', 'nan', '/a+/i', '/(/', '{{char}}', 'a', '']),
    st.text(max_size=4),
)
_value = _leaf | st.lists(_leaf, max_size=3)
_fields = st.dictionaries(
    st.sampled_from(_FIELDS), _value | st.dictionaries(st.sampled_from(_FIELDS), _value)
)


@hypothesis.settings(max_examples=150, derandomize=True)
@hypothesis.given(
    entries=st.lists(_fields, max_size=4),
    own=st.dictionaries(
        st.sampled_from(['scan_depth', 'token_budget', 'recursive_scanning']), _value
    ),
    said=st.lists(st.text(max_size=9), max_size=3),
)
def test_whatever_a_book_holds_it_is_read_and_looked_into(entries, own, said):
    entries = [{'content': f'c{n}'} | entry for n, entry in enumerate(entries)]
    book = _book(*entries, **own)
    if book is None:
        return
    found = _found(book, *said, 'a aa Ida')
    kept = [entry.content for entry in book.entries if not entry.constant]
    assert sorted(found) == sorted(set(found) & set(kept))
