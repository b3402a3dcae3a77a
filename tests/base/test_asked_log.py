"""What is asked once, logged, and known to the next run."""

import contextlib
import dataclasses
import json

from ppjax.base import asked_log


@dataclasses.dataclass(frozen=True)
class _Reply:
    text: str
    failure: str = ''


def _ask(path, items, reply, steps=None):
    def replies(todo):
        asked.extend(todo)
        for index in reversed(range(len(todo))):
            if (found := reply(todo[index])) is not None:
                yield index, found

    asked: list[str] = []
    log = asked_log.AskedLog(
        path, 'a log', lambda entry: (entry['key'], _Reply(entry['text']))
    )
    with contextlib.closing(log):
        found = log.ask(
            items,
            [item.lower() for item in items],
            replies,
            lambda key, item, reply: {'key': key, 'item': item, 'text': reply.text},
            silent=_Reply('', 'silent'),
            progress=steps,
        )
    return asked, found


def test_the_first_of_one_key_is_asked_and_what_failed_is_asked_again(tmp_path):
    path = tmp_path / 'log.jsonl'
    steps = []
    rules = {'A': _Reply('of A\ud800'), 'b': _Reply('', 'busy'), 'C': None}
    asked, found = _ask(
        path, ['A', 'b', 'a', 'C'], rules.__getitem__, lambda *step: steps.append(step)
    )
    assert asked == ['A', 'b', 'C']
    first = _Reply('of A\ufffd')
    assert found == [first, _Reply('', 'busy'), first, _Reply('', 'silent')]
    assert steps == [(0, 4), (1, 4), (3, 4)]
    (line,) = path.read_text('utf-8').splitlines()
    assert json.loads(line) == {'key': 'a', 'item': 'A', 'text': 'of A\ufffd'}
    steps.clear()
    asked, found = _ask(path, ['b', 'A'], _Reply, lambda *step: steps.append(step))
    assert asked == ['b']
    assert found == [_Reply('b'), first]
    assert steps == [(1, 2), (2, 2)]
    assert _ask(path, ['a', 'B'], _Reply) == ([], [first, _Reply('b')])
