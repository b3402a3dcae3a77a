"""What a run of Neeko leaves: its blocks in one file and for PEFT, and their figures."""

from collections.abc import Mapping
import hashlib
import pathlib
from typing import Any

import numpy as np

from ppjax.base import atomic, errors, json_lines, processes, reading
from ppjax.base import progress as progress_lib
from ppjax.exporting import model_card, published
from ppjax.learning import heldout as heldout_lib
from ppjax.recovery import config, methods, peft_files
from ppjax.recovery import results as results_lib
from ppjax.recovery.neeko import blocks as blocks_lib
from ppjax.recovery.neeko import gate as gate_lib
from ppjax.recovery.neeko import run as run_lib

# A folder for each persona's block, as PEFT loads it.
ADAPTERS = 'adapters'
FILES = (
    blocks_lib.FILE,
    f'{ADAPTERS}/*/adapter_config.json',
    f'{ADAPTERS}/*/adapter_model.safetensors',
)


def sha256_of(path: pathlib.Path) -> str:
    """Of a file's content."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def hashes_of(start: str) -> dict[str, str]:
    """What decides the blocks beside data and model: those that there were before.

    Raises:
        InputError: if there is no such file.
    """
    reading.require_file(start, 'File of blocks')
    return {'neeko start': sha256_of(pathlib.Path(start))}


def is_finished(run: run_lib.NeekoRun) -> bool:
    """Whether `write` came to its end.

    Raises:
        InputError: if the file of blocks is not as it was written.
    """
    found = json_lines.stored_object(results_lib.file_of(run))
    if not found or found.get('identity') != results_lib.identity_of(run):
        return False
    if not run.made.exists():
        return False
    if sha256_of(run.made) != found.get('neeko_sha256'):
        raise errors.InputError(
            f'{run.made} is not as it was written; --overwrite makes it anew.'
        )
    return True


def write(
    run: run_lib.NeekoRun,
    trained: methods.Trained,
    likelihood: Mapping[str, heldout_lib.Likelihood],
) -> None:
    """Writes adapters/ and the file of blocks, and last the figures.

    Raises:
        InputError: if the disk is full or cannot be written, or a block is not finite.
    """
    identity = results_lib.identity_of(run)
    # The same blocks have the same bytes, wherever they were made.
    settings = published.settings_text(run.cfg, config.RESUMABLE)
    try:
        blocks = run.all_blocks(trained, identity['run_sha256'], settings)
    except ValueError as error:
        raise errors.InputError(f'The blocks cannot be kept: {error}') from None
    figures = results_lib.figures_of(run, trained, likelihood)
    progress_lib.say(f'Writing {run.made} ...')
    for number, digest in enumerate(blocks.digests):
        peft_files.save(
            run.directory.path / ADAPTERS / digest,
            blocks.block(number),
            alpha=blocks.alpha,
            targets=blocks.targets,
            base_name=model_card.hub_id(blocks.base_model),
        )
    blocks_lib.save(run.made, blocks)
    figures |= {
        'neeko_sha256': processes.first_decides(lambda: sha256_of(run.made)),
        'personas': _personas(run, blocks, likelihood),
        'cosines': np.round(gate_lib.similarities(blocks.gate), 6).tolist(),
    }
    atomic.write_json(results_lib.file_of(run), figures)


def _personas(
    run: run_lib.NeekoRun,
    blocks: blocks_lib.PersonaBlocks,
    likelihood: Mapping[str, heldout_lib.Likelihood],
) -> list[dict[str, Any]]:
    """Of each block: whose it is, what it learned from, and its held-out figures."""
    steps = run.steps_of()
    before = len(blocks.prompts) - len(steps)
    owners = np.array([example.persona for example in run.data.heldout])
    found = []
    for number, digest in enumerate(blocks.digests):
        own = owners == digest
        entry: dict[str, Any] = {
            'persona': digest,
            'system_prompt': blocks.prompts[number],
            'adapter': f'{ADAPTERS}/{digest}',
            'conversations': blocks.conversations[number],
            'steps': steps[number - before] if number >= before else 0,
        }
        if own.any():
            entry['nll'] = {
                name: float(x.nll[own].sum() / x.tokens[own].sum())
                for name, x in likelihood.items()
            }
        found.append(entry)
    return found
