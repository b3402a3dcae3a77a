"""Evaluation sets, and models that speak without being read."""

import json
import pathlib

import pytest

from ppjax.evaluation.answers import judged_answers
from ppjax.evaluation.dialogues import speakers
from ppjax.personas import prompts
from tests.evaluation.answers import sets


@pytest.fixture
def eval_sets(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / 'sets'
    folder.mkdir()
    for name, questions in sets.QUESTIONS.items():
        persona = f'The {name} of the old harbour speaks slowly.'
        system = prompts.persona_prompt(persona)
        (folder / f'{name}.json').write_text(
            json.dumps(
                {
                    'instruction': [{'pos': system, 'neg': ''}],
                    'eval_prompt': prompts.judge_template(persona),
                    'user_id': name,
                    'questions': questions,
                    'persona_description': persona,
                    'system_prompt': system,
                }
            )
        )
    return folder


@pytest.fixture
def spoken(monkeypatch) -> list[tuple[str, int]]:
    """(model, questions) of every call that makes a model speak, in order.

    What it says is short and its own: no weights are read.
    """
    calls: list[tuple[str, int]] = []

    def answer(cfg, model, asked):
        calls.append((model.name, len(asked)))
        return [
            speakers.Said(f'{model.name}: {question.question}', 5, True)
            for question in asked
        ]

    monkeypatch.setattr(judged_answers, 'answer', answer)
    return calls
