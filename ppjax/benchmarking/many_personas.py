"""Many personas' masks learned in one run, beside one run after the other.

Every run is a process of its own, `python -m ppjax.train`, so that its peak memory is
its own.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.masking import pmask


def _run(arguments: Sequence[str]) -> dict[str, float]:
    """Runs training to its end.

    Returns:
        Its seconds, set-up and compilation included, and peak resident memory in GiB.

    Raises:
        InputError: if it fails; it has said why.
    """
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, '-m', 'ppjax.train', *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise errors.InputError('A run failed; its own message says why.')
    return {
        'seconds': time.monotonic() - began,
        # Linux counts in KiB.
        'peak_memory_gib': usage.ru_maxrss / 2**20,
    }


def _examples_per_s(run: pathlib.Path) -> float:
    """Median over the steps of one persona, but for the first, which compiles."""
    lines = (run / 'metrics.jsonl').read_text('utf-8').splitlines()
    entries = [json.loads(line) for line in lines]
    rates = [entry['examples_per_s'] for entry in entries if 'examples_per_s' in entry]
    return statistics.median(rates[1:] or rates)


def compare(
    names: Sequence[str],
    *,
    base_model: str,
    calibration: str,
    steps: int,
    batch_size: int,
    align: int,
    output_dir: str,
) -> dict[str, Any]:
    """Learns every persona's mask twice, and compares.

    Args:
        names: of the personas.
        base_model: see `base_model.open_base_model`.
        calibration: with `{persona}` for the name.
        steps: of each persona.
        batch_size: examples a step of each persona.
        align: the number kept of every layer's channels is a multiple of it.
        output_dir: where the runs go; those found there are not measured again but
            refused.

    Raises:
        InputError: if a run fails, or the folder exists.
    """
    folder = pathlib.Path(output_dir)
    if folder.exists():
        raise errors.InputError(
            f'--output_dir={folder} exists; runs of before would not be measured.'
        )
    common = [
        f'--base_model={base_model}',
        f'--steps={steps}',
        f'--batch_size={batch_size}',
        f'--align={align}',
        f'--checkpoint_every={steps}',
    ]
    progress_lib.say(f'{len(names)} personas in one run:')
    together = _run(
        [
            *common,
            f'--personas={",".join(names)}',
            f'--personas_per_step={len(names)}',
            f'--calibration={calibration}',
            f'--output_dir={folder / "together"}',
        ]
    )
    together['examples_per_s'] = sum(
        _examples_per_s(folder / 'together' / 'personas' / name) for name in names
    )
    alone, different = {}, {}
    for name in names:
        progress_lib.say(f'{name} alone:')
        own = folder / name
        alone[name] = _run(
            [
                *common,
                f'--calibration={calibration.replace("{persona}", name)}',
                f'--output_dir={own}',
            ]
        )
        alone[name]['examples_per_s'] = _examples_per_s(own)
        joint = pmask.load(folder / 'together' / 'personas' / name / 'mask.pmask').mask
        different[name] = int((joint != pmask.load(own / 'mask.pmask').mask).sum())
    seconds = sum(own['seconds'] for own in alone.values())
    return {
        'together': together,
        'alone': alone,
        'different_mask_bits': different,
        'mask_bits': int(joint.size),
        'ratio_to_reference': {
            'seconds': together['seconds'] / seconds,
            'examples_per_s': together['examples_per_s']
            / statistics.mean(own['examples_per_s'] for own in alone.values()),
            'peak_memory_of_all_at_once': together['peak_memory_gib']
            / sum(own['peak_memory_gib'] for own in alone.values()),
        },
    }
