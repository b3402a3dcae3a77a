"""Answers of a few models, and a judge that follows a plan."""

from collections.abc import Callable, Sequence
import json
import pathlib
from typing import Any

MODELS = ('ours', 'rival', 'third')
_PERSONAS = ('Bram is a ferryman.', 'Ida keeps a <b>lighthouse</b>.')
_QUESTIONS = ('How do I know a good plan?', 'What do I eat?', 'Why is the sky red?')


def rows(model: str, *, questions: Sequence[str] = _QUESTIONS) -> list[dict[str, str]]:
    return [
        {'persona': persona, 'question': question, 'answer': f'{model}: {question}'}
        for persona in _PERSONAS
        for question in questions
    ]


def write_rows(path: pathlib.Path, lines: Sequence[Any]) -> str:
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), 'utf-8')
    return str(path)


class RankingServer:
    """A judge that answers what `reply` makes of the prompt.

    Attributes:
        asked: prompts in the order they came.
        reply: text; a number is an error of that status.
    """

    def __init__(
        self, serve: Callable[[Callable[[Any], tuple[int, Any]]], str]
    ) -> None:
        self.asked: list[str] = []
        self.reply: Callable[[str], str | int] = by_name
        self.url = serve(self._answer)

    def _answer(self, body: Any) -> tuple[int, Any]:
        prompt = body['messages'][0]['content']
        self.asked.append(prompt)
        found = self.reply(prompt)
        if isinstance(found, int):
            return found, {
                'error': {'message': 'no', 'code': 'context_length_exceeded'}
            }
        message = {'role': 'assistant', 'content': found}
        return 200, {'choices': [{'message': message, 'finish_reason': 'stop'}]}


def letters_of(prompt: str) -> dict[str, str]:
    """Model -> its letter in a prompt, read off answers that begin with the model."""
    lines = prompt.splitlines()
    return {
        lines[number + 1].partition(':')[0]: line.split()[1]
        for number, line in enumerate(lines)
        if line.startswith('[ANSWER ') and line.endswith(' START]')
    }


def by_name(prompt: str) -> str:
    """Always the models' alphabetical order."""
    return json.dumps([letter for _, letter in sorted(letters_of(prompt).items())])
