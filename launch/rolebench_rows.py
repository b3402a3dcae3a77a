"""RoleBench's rows as chats, and what of each role is learned and what measured on.

FILE of --rolebench holds `{"role", "question", "generated": [...]}`, one a line; the
persona texts are ours (rolebench_personas.jsonl). Each role's rows are shuffled with a
fixed seed and split 440 / 60; `train.jsonl` has the first answer to each question,
`train_all_answers.jsonl` all of them. `dev` splits the 440 again, 380 / 60. `apart` has
each role's rows, and those of all roles together, without any question that one of the
roles is measured on.

    python launch/rolebench_rows.py --rolebench=FILE --output_dir=runs/rolebench
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import pathlib
import random
from typing import Any

from ppjax.base import atomic, flags, json_lines, settings
from ppjax.personas import prompts

_HERE = pathlib.Path(__file__).parent
# Of each role's rows, and of its training rows those that settings are chosen on.
_TRAIN_ROWS, _TEST_ROWS, _DEV_ROWS = 440, 60, 60


# The answers to one question, a chat each.
Chats = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Files of calibration rows.

    Attributes:
        train: to learn from, an answer to each question.
        every: all answers to the same questions.
        measured: to measure on, an answer to each of other questions.
    """

    train: pathlib.Path
    every: pathlib.Path
    measured: pathlib.Path


def read_chats(rows: Sequence[dict[str, Any]], role: str, persona: str) -> list[Chats]:
    """One role's rows as chats under its persona prompt, question by question."""
    system = prompts.persona_prompt(persona)
    groups: list[Chats] = []
    questions = set()
    for number, row in enumerate(rows):
        question = str(row['question']).strip()
        answers = [str(answer).strip() for answer in row['generated']]
        # The same question twice could stand in both splits.
        if row['role'] != role or not any(answers[:1]) or question.lower() in questions:
            continue
        questions.add(question.lower())
        chats: Chats = []
        for answer in dict.fromkeys(filter(None, answers)):
            query_id = f'rolebench-{number}' + (f'-{len(chats)}' if chats else '')
            messages = [
                {'role': 'system', 'content': system},
                {'role': 'user', 'content': question},
                {'role': 'assistant', 'content': answer},
            ]
            chats.append({'messages': messages, 'query_id': query_id})
        groups.append(chats)
    return groups


def write_split(
    learned: Sequence[Chats], measured: Sequence[Chats], folder: pathlib.Path
) -> Split:
    """Writes one split of a role's questions."""

    def write(name: str, chats: Iterable[dict[str, Any]]) -> pathlib.Path:
        path = folder / f'{name}.jsonl'
        json_lines.write(path, chats)
        return path

    return Split(
        write('train', [chats[0] for chats in learned]),
        write('train_all_answers', [chat for chats in learned for chat in chats]),
        write('test', [chats[0] for chats in measured]),
    )


def write_splits(groups: list[Chats], folder: pathlib.Path) -> dict[str, Split]:
    """Writes what a role learns from and is measured on, for `test` and `dev`."""
    groups = list(groups)
    random.Random(0).shuffle(groups)
    train = groups[:_TRAIN_ROWS]
    test = groups[_TRAIN_ROWS : _TRAIN_ROWS + _TEST_ROWS]
    return {
        'test': write_split(train, test, folder),
        'dev': write_split(train[:-_DEV_ROWS], train[-_DEV_ROWS:], folder / 'dev'),
    }


def write_shared(
    splits: dict[str, dict[str, Split]], measure_on: str, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Writes each role's rows, all answers, without questions any role is measured on.

    Held-out questions are never learned; those that settings are chosen on are, once
    the held-out ones are measured, as in the roles' own training rows.
    """

    def question(line: str) -> str:
        return json.loads(line)['messages'][1]['content'].lower()

    measured = {
        question(line)
        for both in splits.values()
        for kind in {'test', measure_on}
        for line in both[kind].measured.read_text('utf-8').splitlines()
    }
    paths = []
    for name, both in splits.items():
        lines = both[measure_on].every.read_text('utf-8').splitlines(keepends=True)
        paths.append(folder / f'{name}.jsonl')
        kept = [line for line in lines if question(line) not in measured]
        atomic.write_text(paths[-1], ''.join(kept))
    return paths


def write_mixture(paths: Sequence[pathlib.Path], path: pathlib.Path) -> None:
    """Writes as many rows of each file, drawn at random, and in a random order."""
    draw = random.Random(0)
    files = [each.read_text('utf-8').splitlines(keepends=True) for each in paths]
    count = min(map(len, files))
    lines = [line for own in files for line in draw.sample(own, count)]
    draw.shuffle(lines)
    atomic.write_text(path, ''.join(lines))


def folder_name(role: str) -> str:
    """What a role's folder is called: 'Jack Sparrow' is jack_sparrow."""
    return ''.join(c if c.isalnum() else '_' for c in role).lower()


def write_all(
    rolebench: str | pathlib.Path, output: pathlib.Path
) -> tuple[dict[str, str], dict[str, dict[str, Split]]]:
    """Writes the splits of every role that has a persona text.

    Args:
        rolebench: the file of rows.
        output: gets a folder for each role.

    Returns:
        (folder -> name of the role, folder -> its splits).
    """
    source = pathlib.Path(rolebench).read_text('utf-8')
    rows = [json.loads(line) for line in source.splitlines()]
    table = (_HERE / 'rolebench_personas.jsonl').read_text('utf-8')
    roles, splits = {}, {}
    for persona in map(json.loads, table.splitlines()):
        name = folder_name(persona['name'])
        roles[name] = persona['name']
        groups = read_chats(rows, persona['name'], persona['persona'])
        splits[name] = write_splits(groups, output / name)
    return roles, splits


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is split, and where to."""

    rolebench: str = flags.setting(None, 'RoleBench rows as JSONL.', path=True)
    output_dir: str = flags.setting(
        'runs/rolebench', 'Gets a folder for each role.', path=True
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'rolebench')


def main(cfg: Settings) -> int:
    """Writes all splits, and says where."""
    output = pathlib.Path(cfg.output_dir)
    roles, splits = write_all(cfg.rolebench, output)
    for name, role in roles.items():
        print(f'{role}: {splits[name]["test"].train.parent}')
    apart = output / 'apart'
    write_mixture(write_shared(splits, 'test', apart), apart / 'all_roles.jsonl')
    print(f'Without questions that any of them is measured on: {apart}')
    return 0


if __name__ == '__main__':
    flags.run(Settings, main)
