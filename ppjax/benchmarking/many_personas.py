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

import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config
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


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Learns every persona's mask twice, and compares.

    Raises:
        InputError: if a run fails, or the folder exists.
    """
    folder = pathlib.Path(cfg.output_dir)
    if folder.exists():
        raise errors.InputError(
            f'--output_dir={folder} exists; runs of before would not be measured.'
        )
    names = cfg.persona_names

    def learn(to: pathlib.Path, calibration: str, *more: str) -> dict[str, float]:
        return _run(
            [
                f'--base_model={cfg.base_model}',
                f'--steps={cfg.steps}',
                f'--batch_size={cfg.batch_size}',
                f'--align={cfg.align}',
                f'--checkpoint_every={cfg.steps}',
                f'--calibration={calibration}',
                f'--output_dir={to}',
                *more,
            ]
        )

    progress_lib.say(f'{len(names)} personas in one run:')
    joint = folder / 'together' / 'personas'
    together = learn(
        joint.parent,
        cfg.calibration,
        f'--personas={",".join(names)}',
        f'--personas_per_step={len(names)}',
    )
    together['examples_per_s'] = sum(_examples_per_s(joint / name) for name in names)
    alone, different, bits = {}, {}, 0
    for name in names:
        progress_lib.say(f'{name} alone:')
        own = folder / name
        alone[name] = learn(own, cfg.calibration.replace('{persona}', name))
        alone[name]['examples_per_s'] = _examples_per_s(own)
        masks = (pmask.load(path / 'mask.pmask').mask for path in (joint / name, own))
        differs = np.not_equal(*masks)
        different[name], bits = int(differs.sum()), differs.size
    seconds, rates, peaks = (
        [own[key] for own in alone.values()]
        for key in ('seconds', 'examples_per_s', 'peak_memory_gib')
    )
    return {
        'together': together,
        'alone': alone,
        'different_mask_bits': different,
        'mask_bits': bits,
        'ratio_to_reference': {
            'seconds': together['seconds'] / sum(seconds),
            'examples_per_s': together['examples_per_s'] / statistics.mean(rates),
            'peak_memory_of_all_at_once': together['peak_memory_gib'] / sum(peaks),
        },
    }
