"""Judgements by any server that speaks OpenAI's chat completions.

The judge writes one token, and its score is read off the probabilities of the likeliest
candidates for it. That is right only where a number is one token: of a model that
writes "85" as "8" and "5" the first digit alone would be seen, and no score would be
above 9. So the model is first asked for a number, and refused if it splits it; a scale
of single digits any model can judge on.
"""

from collections.abc import Generator, Sequence
import contextlib
import itertools
import math
import re
from typing import Any

from ppjax.base import errors
from ppjax.chat_api import client as client_lib
from ppjax.chat_api import replies
from ppjax.data import markup
from ppjax.evaluation.judges import judge_scoring

# The most that the protocol allows.
_TOP = 20
_SEED = 0
_NUMBER_CALL = 'number check'
_NUMBER_QUESTION = 'Write the number 85 and nothing else.'
_NUMBER_TOKENS = 8
_LAST_DIGIT = 9
# What a server names when it dislikes a setting, and not a key or a model.
_SETTINGS = re.compile(r'logprobs?|\bseed\b|temperature')


class OpenAIJudge:
    """Asks for one token with its 20 likeliest alternatives.

    Source: Persona-Pruner, arXiv:2606.14695, appendix A.2, and Betley et al.'s judge
        that it takes up (`max_tokens=1`, greedy, `top_logprobs=20`, `seed=0`).
    """

    def __init__(self, client: client_lib.ChatClient):
        """Sends nothing yet."""
        self._client = client
        self._numbers_checked = False
        self._gives_logprobs = False
        self._answered = False

    @property
    def identity(self) -> str:
        """By the model and its settings: a server may come back elsewhere."""
        return f'openai {self._client.model} first token of top {_TOP} seed {_SEED}'

    def judge(
        self, requests: Sequence[judge_scoring.JudgeRequest]
    ) -> Generator[judge_scoring.Verdict, None, None]:
        """Verdicts as they come; what the server did not answer is a failed one.

        Until something was answered, the first request goes alone: whoever finds its
        verdict to be of no use has paid for no other.

        Raises:
            InputError: if the model splits numbers, or the server takes no such
                requests, gives no logprobs, or stays away.
        """
        numbers = {request.key: request.numbers for request in requests}
        split = any(highest > _LAST_DIGIT for _, highest in numbers.values())
        if split and not self._numbers_checked:
            self._check_numbers()
        calls = [
            client_lib.ChatRequest(
                # An answer's markers would end the judge's turn for it.
                request.key,
                _body(markup.spaced(request.prompt), max_tokens=1),
            )
            for request in requests
        ]
        alone = 0 if self._answered else 1
        for part in filter(None, (calls[:alone], calls[alone:])):
            with contextlib.closing(self._ask(part)) as answers:
                for answer in answers:
                    verdict = self._verdict(answer, numbers[answer.key])
                    self._answered |= not verdict.failure
                    yield verdict

    def _verdict(
        self,
        answer: client_lib.Completion,
        numbers: tuple[int, int] = judge_scoring.ALL_NUMBERS,
    ) -> judge_scoring.Verdict:
        if answer.choice is None:
            return judge_scoring.failed(answer.key, answer.failure)
        logprobs = replies.first_token_logprobs(answer.choice)
        if logprobs is not None:
            self._gives_logprobs = True
            # Rounding may take a certain token's just over 0.
            tokens = [(text, math.exp(min(value, 0.0))) for text, value in logprobs]
            return judge_scoring.from_top_tokens(answer.key, tokens, numbers)
        if replies.refused(answer.choice):
            # The server's filter spoke, and not the model.
            refusal = [(judge_scoring.REFUSAL, 1.0)]
            return judge_scoring.from_top_tokens(answer.key, refusal, numbers)
        if self._gives_logprobs:  # So it is about this row alone.
            return judge_scoring.failed(answer.key, 'the reply holds no logprobs')
        raise errors.InputError(
            f'{self._client.url} answered without logprobs; the judge reads its score '
            f'off them, so it needs another server or model than '
            f'{self._client.model!r}: vLLM, llama.cpp and those of OpenAI that do not '
            'reason give them.'
        )

    def _ask(
        self, calls: Sequence[client_lib.ChatRequest]
    ) -> Generator[client_lib.Completion, None, None]:
        try:
            with contextlib.closing(self._client.ask(calls)) as answers:
                yield from answers
        except client_lib.Refused as error:
            if error.status not in (400, 403, 422) or not _SETTINGS.search(error.said):
                raise
            raise errors.InputError(
                f'{error} The judge needs a server that takes logprobs=true, '
                f'top_logprobs={_TOP}, temperature=0 and seed={_SEED}: vLLM (with '
                f'--max-logprobs {_TOP} or more), llama.cpp, or a model of OpenAI '
                'that does not reason.'
            ) from None

    def _check_numbers(self) -> None:
        """Asks for a number of two digits; a reply without one proves nothing.

        Raises:
            InputError: if it comes as two tokens, or as `judge` does.
        """
        body = _body(_NUMBER_QUESTION, max_tokens=_NUMBER_TOKENS)
        (answer,) = self._ask([client_lib.ChatRequest(_NUMBER_CALL, body)])
        if answer.choice is None:
            return  # The requests themselves will fare alike.
        self._verdict(answer)
        for left, right in itertools.pairwise(replies.tokens_of(answer.choice)):
            left = judge_scoring.bare(left)
            if _is_digit(left) and _is_digit(right):
                raise errors.InputError(
                    f'The judge {self._client.model!r} at {self._client.url} writes '
                    f'numbers digit by digit ({left!r}, {right!r}), so its '
                    'first token is no score; take a model with whole numbers as '
                    'tokens (GPT-4o, Llama 3), or judge with a local model.'
                )
        self._numbers_checked = True


def _body(prompt: str, *, max_tokens: int) -> dict[str, Any]:
    return {
        'messages': [{'role': 'user', 'content': prompt}],
        'max_tokens': max_tokens,
        'temperature': 0,
        'logprobs': True,
        'top_logprobs': _TOP,
        'seed': _SEED,
    }


def _is_digit(text: str) -> bool:
    return len(text) == 1 and text.isascii() and text.isdigit()
