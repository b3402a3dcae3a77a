"""Learns masks for RoleBench roles and tabulates their held-out persona NLL.

    python launch/rolebench.py --rolebench=FILE --output_dir=runs/rolebench

FILE holds RoleBench rows `{"role", "question", "generated": [...]}`, one a line. The
persona texts are ours (launch/rolebench_personas.jsonl). Each role's rows are
shuffled with a fixed seed and split 440 / 60; the first generated answer is learned.
`train_all_answers.jsonl` has every answer to the same 440 questions, so that longer
runs need not repeat any.
With --shared_steps, one mask is learned first for all roles together, and each role
starts from it. It learns from no question that any role is measured on.
Every run can be interrupted; the same command goes on. The result is
`rolebench.json` and a Markdown table on stdout.
"""

from collections.abc import Sequence
import json
import pathlib
import random
import subprocess
import sys
from typing import Any

from absl import app, flags, logging

from ppjax import atomic
from ppjax.personas import prompts

_HERE = pathlib.Path(__file__).parent
_TRAIN_ROWS, _TEST_ROWS = 440, 60

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
_ROLES = flags.DEFINE_list('roles', [], 'Roles to learn; all by default.')


# Calibration file, held-out file.
Split = tuple[pathlib.Path, pathlib.Path]


def write_split(
    rows: list[dict[str, Any]], role: str, persona: str, folder: pathlib.Path
) -> Split:
    """Writes one role's calibration and held-out files.

    Beside them train_all_answers.jsonl, which holds every answer to the questions of
    the calibration file.

    Returns:
        (calibration file, held-out file).
    """
    system = prompts.persona_prompt(persona)
    # Of each question, a chat for each answer.
    groups: list[list[dict[str, Any]]] = []
    questions = set()
    for number, row in enumerate(rows):
        question = str(row['question']).strip()
        answers = [str(answer).strip() for answer in row['generated']]
        # The same question twice could stand in both splits.
        if row['role'] != role or not answers[0] or question.lower() in questions:
            continue
        questions.add(question.lower())
        chats: list[dict[str, Any]] = []
        for answer in dict.fromkeys(filter(None, answers)):
            query_id = f'rolebench-{number}' + (f'-{len(chats)}' if chats else '')
            messages = [
                {'role': 'system', 'content': system},
                {'role': 'user', 'content': question},
                {'role': 'assistant', 'content': answer},
            ]
            chats.append({'messages': messages, 'query_id': query_id})
        groups.append(chats)
    random.Random(0).shuffle(groups)
    train = groups[:_TRAIN_ROWS]
    splits = {
        'train': [chats[0] for chats in train],
        'train_all_answers': [chat for chats in train for chat in chats],
        'test': [chats[0] for chats in groups[_TRAIN_ROWS : _TRAIN_ROWS + _TEST_ROWS]],
    }
    paths = {name: folder / f'{name}.jsonl' for name in splits}
    for name, part in splits.items():
        lines = [json.dumps(chat, ensure_ascii=False) + '\n' for chat in part]
        atomic.write_text(paths[name], ''.join(lines))
    return paths['train'], paths['test']


def write_shared(splits: Sequence[Split], folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes each role's calibration rows without any role's held-out questions."""

    def question(line: str) -> str:
        return json.loads(line)['messages'][1]['content'].lower()

    heldout = {
        question(line)
        for _, test in splits
        for line in test.read_text('utf-8').splitlines()
    }
    paths = []
    for train, _ in splits:
        lines = train.read_text('utf-8').splitlines(keepends=True)
        kept = [line for line in lines if question(line) not in heldout]
        paths.append(folder / f'{train.parent.name}.jsonl')
        atomic.write_text(paths[-1], ''.join(kept))
    return paths


def learn(
    calibration: Sequence[pathlib.Path], run: pathlib.Path, *options: str
) -> pathlib.Path:
    """Learns a mask with configs/rolebench.flags, or goes on; the mask file."""
    command = [
        sys.executable,
        '-m',
        'ppjax.train',
        f'--flagfile={_HERE.parent / "configs" / "rolebench.flags"}',
        f'--calibration={",".join(map(str, calibration))}',
        f'--output_dir={run}',
        *options,
    ]
    subprocess.run(command, check=True)
    return run / 'mask.pmask'


def markdown(results: list[dict[str, object]]) -> str:
    """The results as a table, in nats per answer token."""
    lines = [
        '| role | sparsity | dense | random | one-shot | learned | '
        + 'learned - dense | of the way from one-shot to dense |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for row in results:
        nll = {name: row[name] for name in ('dense', 'random', 'one_shot', 'learned')}
        dense, one_shot, learned = nll['dense'], nll['one_shot'], nll['learned']
        way = (one_shot - learned) / (one_shot - dense)  # type: ignore[operator]
        figures = ' | '.join(f'{value:.3f}' for value in nll.values())
        difference = learned - dense  # type: ignore[operator]
        lines.append(
            f'| {row["role"]} | {row["sparsity"]:.0%} | {figures} | '
            f'{difference:+.3f} | {way:.0%} |'
        )
    return '\n'.join(lines)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    output = pathlib.Path(_OUTPUT.value)
    source = pathlib.Path(_ROLEBENCH.value).read_text('utf-8')
    rows = [json.loads(line) for line in source.splitlines()]
    table = _HERE / 'rolebench_personas.jsonl'
    personas = [json.loads(line) for line in table.read_text('utf-8').splitlines()]
    splits: dict[str, Split] = {}
    for persona in personas:
        name = ''.join(c if c.isalnum() else '_' for c in persona['name']).lower()
        splits[persona['name']] = write_split(
            rows, persona['name'], persona['persona'], output / name
        )
    shared_steps = _SHARED_STEPS.value or ['0'] * len(_SPARSITIES.value)
    results = []
    for sparsity, steps, shared in zip(
        _SPARSITIES.value, _STEPS.value, shared_steps, strict=True
    ):
        start = ['--score_init=activation']
        if int(shared):
            print(f'== all roles, sparsity {sparsity}', file=sys.stderr, flush=True)
            mask = learn(
                write_shared(list(splits.values()), output / 'shared'),
                output / 'shared' / f'sparsity_{sparsity}',
                f'--sparsity={sparsity}',
                f'--steps={shared}',
            )
            start = [f'--score_init={mask}', f'--score_scale={_SCORE_SCALE.value}']
        for role, (train, test) in splits.items():
            if _ROLES.value and role not in _ROLES.value:
                continue
            run = train.parent / f'sparsity_{sparsity}'
            print(f'== {role}, sparsity {sparsity}', file=sys.stderr, flush=True)
            learn(
                [train],
                run,
                f'--heldout={test}',
                f'--sparsity={sparsity}',
                f'--steps={steps}',
                *start,
            )
            measured = json.loads((run / 'results' / 'likelihood.json').read_text())
            results.append(
                {'role': role, 'sparsity': float(sparsity), 'shared_steps': int(shared)}
                | {key: value['nll'] for key, value in measured['models'].items()}
                | {
                    key: measured['settings'][key]
                    for key in ('steps', 'batch_size', 'score_init', 'score_scale')
                }
                | {'heldout': measured['heldout'], 'versions': measured['versions']}
            )
            atomic.write_json(output / 'rolebench.json', results)
    print(markdown(results))


if __name__ == '__main__':
    app.run(main)
