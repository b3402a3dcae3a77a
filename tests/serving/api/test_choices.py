"""Answers put together from tokens: text, stop strings, which tokens go with it."""

import random

import hypothesis
from hypothesis import strategies
import pytest

from ppjax.serving import jobs
from ppjax.serving.api import choices, stops, texts
from tests.serving import fakes

_WILD = 'Ahoy 😂 mąte, żółw naïve 漢字 👩‍👩‍👧 <|im_end|> "x"\n\n  y ﷽'


def _job(**changes) -> jobs.Job:
    settings = {'member': fakes.DENSE, 'prompt': (1,), 'max_tokens': 99}
    return jobs.Job(**(settings | {'stop_ids': frozenset({2})} | changes))


def _read(
    own: texts.Texts, ids: list[int], stop: tuple[str, ...] = (), end: str = 'length'
) -> tuple[list[choices.Update], choices.Choice]:
    """All updates of an answer of these tokens, which are all asked for."""
    choice = choices.Choice(0, _job(top_logprobs=0), own, stop)
    updates = []
    for token in ids:
        if found := choice.push(jobs.Token(token, -1.0)):
            updates.append(found)
        if choice.is_cut:
            break
    updates.append(choice.push(jobs.Ended(end, cached_tokens=7)))
    return updates, choice


def test_pieces_of_any_tokens_make_up_their_text(own):
    rng = random.Random(0)
    for _ in range(100):
        ids = [rng.randrange(own.vocab_size) for _ in range(40)]
        stream = texts.Stream(own)
        assert ''.join(map(stream.push, ids)) + stream.flush() == own.text(ids)


def test_a_character_is_given_out_whole(own):
    ids = own.tokenizer.encode(_WILD, add_special_tokens=False)
    stream = texts.Stream(own)
    pieces = [stream.push(token) for token in ids]
    assert ''.join(pieces) == own.text(ids)
    assert not [piece for piece in pieces if '\ufffd' in piece]


def test_bytes_of_tokens_make_up_their_text(own):
    ids = own.tokenizer.encode(_WILD, add_special_tokens=False)
    assert b''.join(map(own.content, ids)).decode() == _WILD


@hypothesis.given(
    text=strategies.text('abc', max_size=30),
    wanted=strategies.lists(strategies.text('abc', min_size=1, max_size=4), max_size=3),
    seed=strategies.integers(0, 99),
)
def test_stop_strings_are_found_wherever_pieces_end(text, wanted, seed):
    finder, rng, given = stops.StopFinder(wanted), random.Random(seed), ''
    left = text
    while left and not finder.found:
        size = rng.randint(1, 4)
        piece, left = left[:size], left[size:]
        given += finder.push(piece)
        # Nothing of a stop string was given out.
        assert not [stop for stop in wanted if stop in given]
    if not finder.found:
        given += finder.flush()
    places = [place for stop in wanted if (place := text.find(stop)) >= 0]
    first = min(places, default=len(text))
    # A stop that ends sooner may begin later, in a piece of its own.
    ends = [text.find(stop) + len(stop) for stop in wanted if stop in text]
    assert bool(finder.found) == bool(places)
    if not places:
        assert given == text
    else:
        assert text.startswith(given + finder.found)
        assert first <= len(given) <= max(ends)


@pytest.mark.parametrize(
    ('stop', 'given'),
    [
        (('matey',), 'Ahoy, '),
        (('y! ',), 'Ahoy, mate'),
        (('zzz', 'Ahoy'), ''),
        (('sails on!', 'nope'), 'Ahoy, matey! It sails on.'),
        (('on.',), 'Ahoy, matey! It sails '),
    ],
)
def test_an_answer_ends_before_its_stop_string(own, stop, given):
    ids = own.tokenizer.encode('Ahoy, matey! It sails on.', add_special_tokens=False)
    updates, choice = _read(own, ids, stop)
    assert ''.join(update.text for update in updates) == given
    finish = updates[-1].finish
    is_cut = given != 'Ahoy, matey! It sails on.'
    assert (finish.by, choice.is_cut) == ('string' if is_cut else 'length', is_cut)
    assert finish.stop == (
        next(x for x in stop if x in own.text(ids)) if is_cut else ''
    )
    assert finish.cached_tokens == 7
    # The tokens that came with it spell at least its text, and begin within it.
    spelled = b''.join(own.content(token.id) for u in updates for token in u.tokens)
    assert spelled.decode().startswith(given)
    last = [token for update in updates for token in update.tokens][-1:]
    assert all(len(spelled) - len(own.content(t.id)) < len(given) for t in last)


def test_every_update_has_the_tokens_of_its_text(own):
    wild = _WILD.replace('<|im_end|>', '')
    ids = own.tokenizer.encode(wild, add_special_tokens=False)
    updates, _ = _read(own, ids, ('never so',))
    assert [t.id for update in updates for t in update.tokens] == ids
    offset = 0
    for update in updates:
        assert update.offset == offset
        offset += len(update.text)


def test_a_stop_token_counts_and_is_not_shown(own):
    ids = own.tokenizer.encode('Aye.', add_special_tokens=False)
    updates, _ = _read(own, [*ids, 2], end='stop')
    assert ''.join(update.text for update in updates) == 'Aye.'
    finish = updates[-1].finish
    assert (finish.reason, finish.by) == ('stop', 'token')
    assert finish.tokens == len(ids) + 1


def test_what_the_engine_gave_up_is_told(own):
    choice = choices.Choice(0, _job(), own, ())
    with pytest.raises(choices.FailedError, match='out of memory'):
        choice.push(jobs.Ended('error', error='out of memory'))
