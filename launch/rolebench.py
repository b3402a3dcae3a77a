"""Learns masks for RoleBench roles and tabulates their held-out persona NLL.

    python launch/rolebench.py --rolebench=FILE --output_dir=runs/rolebench

launch/rolebench_rows.py says what FILE holds and how it is split; the first answer to
each question is learned.
With --shared_steps, one mask is learned first for all roles that are learned, and each
starts from it. It learns all answers to questions that no role is measured on.
With --measure_on=dev, all masks learn from 380 of a role's 440 rows and are measured on
the other 60, so that settings can be chosen before the held-out rows are looked at.
Every run can be interrupted; the same command goes on. The result is
`rolebench.json` (`rolebench-dev.json`) and a Markdown table on stdout.
"""

from collections.abc import Iterable, Sequence
import json
import pathlib
import subprocess
import sys
from typing import Any

from absl import app, flags, logging

# Beside this file.
import rolebench_rows

from ppjax.base import atomic

_HERE = pathlib.Path(__file__).parent

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
    roles, splits = rolebench_rows.write_all(_ROLEBENCH.value, output)
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
            rolebench_rows.write_shared(splits, _MEASURE_ON.value, common)
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
