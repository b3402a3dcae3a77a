"""The answers that are to be ranked, from files of any make and from evaluations.

A file of answers is JSON lines, one an answer:

    {"persona": P, "question": text, "answer": text}

What `python -m ppjax.evaluate --tasks=judge` leaves behind is read as it is: its run
directory, or the folder or file of its results, hold the answers of all its models
(`results/judge.json`). The log of its answers (`evaluation/answers.jsonl`) holds no
personas and no models; of one model alone, and with the evaluation sets beside it, it
is read as well.
"""

from collections.abc import Mapping
import pathlib
from typing import Any, NamedTuple

from ppjax.base import errors, json_lines
from ppjax.evaluation import config as evaluation_config
from ppjax.evaluation.answers import answers as evaluation_answers
from ppjax.personas import inputs

_RESULT = f'{evaluation_config.RESULTS["judge"]}.json'
# Where it is, seen from a run directory and from its folder of results.
_RESULTS = (pathlib.Path('results', _RESULT), pathlib.Path(_RESULT))
# Longer names make tables that fit no terminal.
_LONGEST_NAME = 80


class Asked(NamedTuple):
    """A question to a persona, without outer line breaks, which say nothing."""

    persona: str
    question: str


Answers = dict[Asked, str]


def read(
    sources: str, eval_sets: str | None = None, notes: inputs.Notes = inputs.no_notes
) -> dict[str, Answers]:
    """The answers of several models.

    Args:
        sources: of --answers: with commas between them, NAME=FILE for a model's file,
            NAME=PATH:MODEL for one model of an evaluation, which need not be said if
            it is called NAME or is the only one; PATH for all models of one.
        eval_sets: files and folders of evaluation sets with commas between them, whose
            personas logged answers are looked up in.
        notes: takes lines about sets that contradict themselves.

    Returns:
        Model -> its answers, in the order of the sources.

    Raises:
        InputError: naming the first source that is unusable, or a name that several
            models have.
    """
    personas: dict[tuple[str, str], str] = {}
    if eval_sets:
        paths = [part.strip() for part in eval_sets.split(',') if part.strip()]
        personas = {
            (one.group, one.question): one.persona
            for one in evaluation_answers.questions_of(paths, notes)
        }
    found: dict[str, Answers] = {}
    parts = [sources] if pathlib.Path(sources).exists() else sources.split(',')
    for part in filter(None, map(str.strip, parts)):
        for name, own in _source(part, personas).items():
            if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
                raise errors.InputError(
                    f'--answers: {name!r} is no name of a model; wanted up to '
                    f'{_LONGEST_NAME} printable characters.'
                )
            if name in found:
                raise errors.InputError(
                    f'--answers: several models are called {name!r}; give one of them '
                    'another name, as in NAME=PATH.'
                )
            found[name] = own
    return found


def _source(part: str, personas: Mapping[tuple[str, str], str]) -> dict[str, Answers]:
    name, equals, path = part.partition('=')
    if not equals or pathlib.Path(part).expanduser().exists():
        name, path = '', part
    name, file = name.strip(), pathlib.Path(path.strip()).expanduser()
    wanted = ''
    if name and not file.exists():
        above, colon, model = path.strip().rpartition(':')
        if colon and pathlib.Path(above).expanduser().exists():
            file, wanted = pathlib.Path(above).expanduser(), model
    evaluation = _evaluation(file)
    if evaluation is None:
        if not name:
            raise errors.InputError(
                f'--answers: {part!r} has no name of a model before it, as in '
                'NAME=FILE, and is no evaluation.'
            )
        if wanted:
            raise errors.InputError(
                f'--answers: {file} is one model, and has no {wanted!r} in it.'
            )
        return {name: _of_rows(file, personas)}
    models = _of_evaluation(evaluation)
    if not name:
        return models
    own = models.get(wanted or name)
    if own is None and not wanted and len(models) == 1:
        (own,) = models.values()
    if own is None:
        raise errors.InputError(
            f'--answers: {evaluation} has the models {", ".join(models)}, and no '
            f'{wanted or name!r}; say which, as in {name}={file}:{next(iter(models))}.'
        )
    return {name: own}


def _evaluation(path: pathlib.Path) -> pathlib.Path | None:
    """The result of an evaluation that a path names; None if it is a file of rows.

    Raises:
        InputError: if it is a folder without one.
    """
    if not path.is_dir():
        if path.suffix == '.csv':
            raise errors.InputError(
                f'--answers: {path} holds no personas; give {_RESULT}, which '
                'evaluate writes beside it, or the folder of both.'
            )
        return path if path.suffix == '.json' else None
    for inside in _RESULTS:
        if (path / inside).is_file():
            return path / inside
    raise errors.InputError(
        f'--answers: {path} holds no {_RESULTS[0]}; python -m ppjax.evaluate '
        '--tasks=judge writes it.'
    )


def _of_evaluation(path: pathlib.Path) -> dict[str, Answers]:
    """The answers of all models; questions that one could not be asked are not there.

    Raises:
        InputError: if it is no result of judging.
    """
    result = json_lines.read_object(path, 'Evaluation')
    found: dict[str, Answers] = {}
    try:
        asked = [
            (group, question, _asked(persona, question))
            for persona, _, question, group in result['settings']['questions']
        ]
        counts: dict[str, int] = {}
        for row in result['answers']:
            model, group, question, answer, failure = json_lines.typed(
                row,
                model=str,
                group=str,
                question=str,
                answer=str,
                roleplay_failure=str,
            )
            place = counts[model] = counts.get(model, -1) + 1
            if asked[place][:2] != (group, question):
                raise ValueError(question)
            own = found.setdefault(model, {})
            if answer or not failure:
                _add(own, asked[place][2], answer, f'{path}: {model}')
    except errors.InputError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        found = {}
    if not found:
        raise errors.InputError(
            f'--answers: {path} is no result of python -m ppjax.evaluate --tasks=judge.'
        )
    return found


def _of_rows(path: pathlib.Path, personas: Mapping[tuple[str, str], str]) -> Answers:
    """One model's answers.

    Raises:
        InputError: naming the first line that holds none.
    """
    found: Answers = {}
    for where, row in json_lines.read(path, 'Answers'):
        asked, answer = _row(row, where, personas)
        _add(found, asked, answer, where)
    if not found:
        raise errors.InputError(f'--answers: {path} holds no answers.')
    return found


def _row(
    row: Any, where: str, personas: Mapping[tuple[str, str], str]
) -> tuple[Asked, str]:
    if not isinstance(row, dict):
        raise errors.InputError(f'{where}: no JSON object.')
    persona, answer = row.get('persona'), row.get('answer')
    if 'persona' not in row and 'group' in row and 'text' in row:  # A log's.
        answer = row['text']
        persona = personas.get((row['group'], row.get('question', '')))
        if persona is None:
            raise errors.InputError(
                f'{where}: the log says no personas; name the evaluation sets with '
                '--eval_sets, or the run directory instead of the log.'
            )
    texts = {'persona': persona, 'question': row.get('question'), 'answer': answer}
    for name, text in texts.items():
        if not inputs.is_text(text) or (name != 'answer' and not text.strip()):
            raise errors.InputError(
                f'{where}: "{name}" is missing or no text; wanted {{"persona": text, '
                '"question": text, "answer": text}.'
            )
    assert isinstance(answer, str)
    return _asked(texts['persona'], texts['question']), answer


def _asked(persona: Any, question: Any) -> Asked:
    return Asked(_plain(persona), _plain(question))


def _plain(text: str) -> str:
    return inputs.unix_lines(json_lines.encodable(text)).strip()


def _add(answers: Answers, asked: Asked, answer: str, where: str) -> None:
    """Raises:
    InputError: if there is another answer to the question.
    """
    answer = _plain(answer)
    if answers.setdefault(asked, answer) != answer:
        raise errors.InputError(
            f'{where}: another answer to {inputs.excerpt(asked.question)!r} of the '
            'same persona came before; a file is to hold one model, and one answer a '
            'question.'
        )
