"""What a load on a server came to: figures, and the table for people."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from ppjax.benchmarking import serve_client, serve_plan
from ppjax.pages import formats, texts, views

_FIRST = (50, 95, 99)
_NEXT = (50, 95)
_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Answered:
    """A request and its reply.

    Attributes:
        asked: what was wanted.
        due: when the request should have gone out, of `time.perf_counter`.
        reply: what came.
        is_first_of_persona: whether nobody had asked that persona before in this run.
    """

    asked: serve_plan.Asked
    due: float
    reply: serve_client.Reply
    is_first_of_persona: bool

    @property
    def first_token(self) -> float | None:
        """Seconds to the first text, from when it was due: a client that is late, or
        waits for a connection, is no excuse.
        """
        first = self.reply.first
        return None if first is None else first - self.due


def percentiles(values: Iterable[float], wanted: Sequence[int]) -> dict[str, Any]:
    """p50 and others, and of how many; None where there are none."""
    found = np.asarray(list(values), np.float64)
    said = (
        {f'p{x}': float(np.percentile(found, x)) for x in wanted}
        if found.size
        else {f'p{x}': None for x in wanted}
    )
    return {**said, 'count': int(found.size)}


def of(answered: Sequence[Answered], began: float) -> dict[str, Any]:
    """Figures of one load.

    Args:
        answered: all of it, failures too.
        began: when the load did, of `time.perf_counter`.

    Returns:
        Rates over the time from then to the last reply's end. Times are of whole
        answers alone.
    """
    whole = [one for one in answered if not one.reply.failure]
    seconds = max((one.reply.ended for one in answered), default=began) - began
    tokens = sum(one.reply.tokens for one in whole)
    firsts = {
        is_cold: [
            one.first_token
            for one in whole
            if one.is_first_of_persona == is_cold and one.first_token is not None
        ]
        for is_cold in (True, False)
    }
    failures = Counter(one.reply.failure for one in answered if one.reply.failure)
    return {
        'requests': len(answered),
        'personas_asked': len({one.asked.persona for one in answered}),
        'finished': len(whole),
        'errors': dict(sorted(failures.items())),
        'seconds': seconds,
        'requests_per_s': len(whole) / seconds if seconds else 0.0,
        'tokens': tokens,
        'tokens_per_s': tokens / seconds if seconds else 0.0,
        'tokens_are_counted_by_server': all(one.reply.counted for one in whole),
        'first_token_s': percentiles(firsts[True] + firsts[False], _FIRST),
        'first_token_cold_s': percentiles(firsts[True], _FIRST),
        'first_token_warm_s': percentiles(firsts[False], _FIRST),
        'per_token_s': percentiles(
            (
                (one.reply.last - one.reply.first) / (one.reply.tokens - 1)
                for one in whole
                if one.reply.first is not None
                and one.reply.last is not None
                and one.reply.tokens > 1
            ),
            _NEXT,
        ),
        'sent_late_s': percentiles(
            (one.reply.sent - one.due for one in answered), _NEXT
        ),
    }


def sameness(
    answers: Mapping[tuple[str, str], Sequence[str]],
) -> dict[str, Any]:
    """Whether a question had one answer, whoever was asked beside it.

    Args:
        answers: (model, prompt) -> its whole answers, in the order asked.
    """
    repeated = {key: own for key, own in answers.items() if len(own) > 1}
    differing = [key for key, own in repeated.items() if len(set(own)) > 1]
    return {
        'questions': len(answers),
        'asked_again': len(repeated),
        'differing': len(differing),
        'examples': [
            {
                'model': model,
                'prompt': prompt,
                'texts': sorted(set(answers[model, prompt])),
            }
            for model, prompt in differing[:_MOST_NAMED]
        ],
    }


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """The loads' figures for a terminal; times in milliseconds."""
    columns = (
        *('finished', 'errors', 'requests/s', 'tokens/s'),
        *(
            'first token p50',
            'p95',
            'p99',
            'cold p50',
            'next token p50',
            'p95',
            'memory',
        ),
    )

    def shown(cell: Mapping[str, Any]) -> list[str]:
        def ms(name: str, *wanted: int) -> list[str]:
            found = [cell[name][f'p{x}'] for x in wanted]
            return ['' if x is None else f'{1000 * x:.0f}' for x in found]

        resident = (cell.get('resident_bytes') or {}).get('max')
        return [
            str(cell['finished']),
            ', '.join(f'{n} x {name}' for name, n in cell['errors'].items()),
            f'{cell["requests_per_s"]:.2f}',
            f'{cell["tokens_per_s"]:.1f}',
            *ms('first_token_s', *_FIRST),
            *ms('first_token_cold_s', 50),
            *ms('per_token_s', *_NEXT),
            '' if resident is None else formats.quantity(resident, 'B'),
        ]

    def label(cell: Mapping[str, Any]) -> str:
        how = (
            f'{cell["concurrency"]} at a time'
            if cell['rate'] is None
            else f'{cell["rate"]:g}/s'
        )
        return f'{cell["personas"]} personas, {how}'

    return texts.table(
        views.Table(
            'serve',
            columns,
            [
                (label(cell), [views.TableCell(x) for x in shown(cell)])
                for cell in cells
            ],
        )
    )
