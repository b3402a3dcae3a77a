"""Learns masks for RoleBench roles and tabulates their held-out persona NLL.

    python launch/rolebench.py --rolebench=FILE --output_dir=runs/rolebench

FILE holds RoleBench rows `{"role", "question", "generated": [...]}`, one a line. The
persona texts are ours (launch/rolebench_personas.jsonl). Each role's rows are
shuffled with a fixed seed and split 440 / 60; the first generated answer is learned.
`train_all_answers.jsonl` has every answer to the same 440 questions, so that longer
runs need not repeat any.
With --shared_steps, one mask is learned first for all roles that are learned, and each
starts from it. It learns all answers to questions that no role is measured on.
With --measure_on=dev, all masks learn from 380 of a role's 440 rows and are measured on
the other 60, so that settings can be chosen before the held-out rows are looked at.
Every run can be interrupted; the same command goes on. The result is
`rolebench.json` (`rolebench-dev.json`) and a Markdown table on stdout.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import json
import pathlib
import random
import subprocess
import sys
from typing import Any

from absl import app, flags, logging

from ppjax.base import atomic, json_lines
from ppjax.personas import prompts

_HERE = pathlib.Path(__file__).parent
# Of each role's rows, and of its training rows those that settings are chosen on.
_TRAIN_ROWS, _TEST_ROWS, _DEV_ROWS = 440, 60, 60

_ROLEBENCH = flags.DEFINE_string(
    'rolebench', None, 'RoleBench rows as JSONL.', required=True
)
_OUTPUT = flags.DEFINE_string('output_dir', 'runs/rolebench', 'Where runs go.')
_SPARSITIES = flags.DEFINE_list('sparsities', ['0.25', '0.5'], 'Sparsities to learn.')
_STEPS = flags.DEFINE_list('steps', ['90', '90'], 'Steps for each of --sparsities.')
_SHARED_STEPS = flags.DEFINE_list(
    'shared_steps',
    [],
    'Steps of the mask that all roles start from, for each of --sparsities; without, '
    'roles start from activations.',
)
_SCORE_SCALE = flags.DEFINE_float(
    'score_scale',
    0.3,
    "Of the roles' own steps from the shared mask: it is good already, and fewer "
    'channels should change at a step than from activations.',
)
_MEASURE_ON = flags.DEFINE_enum(
    'measure_on',
    'test',
    ['test', 'dev'],
    'Held-out rows, or rows to choose settings on.',
)
_ROLES = flags.DEFINE_list('roles', [], 'Roles to learn; all by default.')


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


def learn(roles: Iterable[str], rows: pathlib.Path, *options: str) -> None:
    """Learns roles' masks with configs/rolebench.flags, or goes on.

    Args:
        roles: folders of their rows.
        rows: of a role's calibration and held-out rows, with {persona} for the role.
        options: more flags.
    """
    command = [
        sys.executable,
        '-m',
        'ppjax.train',
        f'--flagfile={_HERE.parent / "configs" / "rolebench.flags"}',
        f'--personas={",".join(roles)}',
        # As if each were learned alone, and in the memory of one.
        '--personas_per_step=1',
        f'--calibration={rows / "train.jsonl"}',
        f'--heldout={rows / "test.jsonl"}',
        *options,
    ]
    subprocess.run(command, check=True)


def measure(
    mask: pathlib.Path, heldout: pathlib.Path, directory: pathlib.Path
) -> float:
    """A mask's held-out NLL, as `ppjax.evaluate` measures it, or has measured it."""
    command = [
        sys.executable,
        '-m',
        'ppjax.evaluate',
        '--base_model=smollm2-135m',
        '--dtype=bfloat16',
        '--tasks=likelihood',
        f'--mask={mask}',
        f'--heldout={heldout}',
        f'--output_dir={directory}',
    ]
    # Its own table would stand before ours.
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = directory / 'results' / 'persona_likelihood.json'
    models = json.loads(results.read_text('utf-8'))['models']
    return float(models['masked']['nll']['mean'])


def result_of(role: str, run: pathlib.Path) -> dict[str, Any]:
    """What a learned run has measured, and under which settings."""
    text = (run / 'results' / 'likelihood.json').read_text('utf-8')
    measured = json.loads(text)
    nll = {name: float(own['nll']) for name, own in measured['models'].items()}
    dense, one_shot, learned = nll['dense'], nll['one_shot'], nll['learned']
    return {
        'role': role,
        'nll': nll,
        'to_dense': learned - dense,
        'way': (one_shot - learned) / (one_shot - dense),
        'settings': measured['settings'],
        'heldout': measured['heldout'],
        'versions': measured['versions'],
    }


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The results as a table, in nats per answer token."""
    columns = ('dense', 'random', 'one_shot', 'shared', 'learned')
    lines = [
        '| role | sparsity | own steps | dense | random | one-shot | shared | learned | '
        + 'learned - dense | of the way from one-shot to dense |',
        '|' + '---|' * 10,
    ]
    for row in results:
        nll, settings = row['nll'], row['settings']
        figures = [f'{nll[name]:.3f}' if name in nll else '' for name in columns]
        cells = [
            row['role'],
            f'{settings["sparsity"]:.0%}',
            str(settings['steps']),
            *figures,
            f'{row["to_dense"]:+.3f}',
            f'{row["way"]:.0%}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(_OUTPUT.value)
    source = pathlib.Path(_ROLEBENCH.value).read_text('utf-8')
    rows = [json.loads(line) for line in source.splitlines()]
    table = _HERE / 'rolebench_personas.jsonl'
    personas = [json.loads(line) for line in table.read_text('utf-8').splitlines()]
    roles, splits = {}, {}
    for persona in personas:
        name = ''.join(c if c.isalnum() else '_' for c in persona['name']).lower()
        roles[name] = persona['name']
        groups = read_chats(rows, persona['name'], persona['persona'])
        splits[name] = write_splits(groups, output / name)
    dev = _MEASURE_ON.value == 'dev'
    shared_steps = _SHARED_STEPS.value or ['0'] * len(_SPARSITIES.value)
    results = []
    learned = {
        name: role
        for name, role in roles.items()
        if not _ROLES.value or role in _ROLES.value
    }
    own = output / '{persona}' / ('dev' if dev else '')
    for sparsity, steps, shared in zip(
        _SPARSITIES.value, _STEPS.value, shared_steps, strict=True
    ):
        # Several settings are tried on the same rows.
        tried = f'-scale_{_SCORE_SCALE.value}' if dev and int(shared) else ''
        run = output / ('dev' if dev else '') / f'sparsity_{sparsity}{tried}'
        options = [
            f'--sparsity={sparsity}',
            f'--steps={steps}',
            f'--output_dir={run}',
        ]
        if int(shared):
            common = output / 'shared' / ('dev' if dev else '')
            write_shared(splits, _MEASURE_ON.value, common)
            options += [
                f'--shared_steps={shared}',
                f'--shared_calibration={common / "{persona}.jsonl"}',
                f'--score_scale={_SCORE_SCALE.value}',
            ]
        print(f'== sparsity {sparsity}', file=sys.stderr, flush=True)
        learn(learned, own, *options)
        for name, role in learned.items():
            split = splits[name][_MEASURE_ON.value]
            result = result_of(role, run / 'personas' / name)
            result['shared_steps'] = int(shared)
            if int(shared):
                mask = run / 'shared' / 'mask' / 'mask.pmask'
                directory = split.train.parent / f'shared_{sparsity}'
                result['nll']['shared'] = measure(mask, split.measured, directory)
            results.append(result)
            atomic.write_json(
                output / ('rolebench-dev.json' if dev else 'rolebench.json'), results
            )
    print(markdown(results))


if __name__ == '__main__':
    app.run(main)
