"""Does an exported directory compute what the masked dense model does?

And does the dense model compute what transformers makes of its files?

The directory is reloaded in fresh processes, so that nothing but its files can
make it right: by our loader, and by transformers where PyTorch is installed.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.data import chat
from ppjax.exporting import hf_export
from ppjax.models import attention, base_model, folded, loading, open_checkpoint
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib
from ppjax.models import tokens as tokens_lib

_QUESTIONS = (
    'What did you do this morning?',
    'How do I keep bread fresh for longer?',
    'Tell me what worries you most, in one sentence.',
    'What is 17 times 4?',
)
# Lengths of the sequences that are compared, in tokens.
_MIN_LENGTH, _MAX_LENGTH = 64, 128


@dataclasses.dataclass(frozen=True)
class Verification:
    """The largest absolute differences of logits from the masked dense model's.

    Attributes:
        ppjax: of the directory reloaded by this package.
        transformers: of the directory reloaded by transformers in PyTorch; None
            where PyTorch is not installed, or the model is no stock one.
        dense: of the dense model's own directory, loaded by transformers, from what
            this package makes of it unmasked; None without PyTorch or directory.
    """

    ppjax: float
    transformers: float | None
    dense: float | None = None

    def of_export(self) -> dict[str, float | None]:
        """Loader -> the exported directory's difference."""
        return {'ppjax': self.ppjax, 'transformers': self.transformers}

    def recorded(self, tolerance: float, tokens: np.ndarray) -> dict[str, Any]:
        """What results say of it; `tokens` [B, T] are those that were compared."""
        return {
            'tolerance': tolerance,
            'prompts': tokens.shape[0],
            'tokens_per_prompt': tokens.shape[1],
            'max_logit_difference': self.of_export(),
            'dense_logit_difference': self.dense,
            'torch': None
            if self.transformers is None
            else importlib.metadata.version('torch'),
        }

    def require(self, tolerance: float, than: str = 'the masked dense model') -> None:
        """Refuses differences beyond a tolerance.

        Args:
            tolerance: the largest one that passes.
            than: what the directory was compared with.

        Raises:
            InputError: naming the loader and its difference.
        """
        # Written so that a difference that is no number fails.
        if self.dense is not None and not self.dense <= tolerance:
            raise errors.InputError(
                'The base model, loaded by transformers, differs from what is made of '
                f'it here by up to {self.dense:.3g} in its logits, more than '
                f'--verify_tolerance={tolerance:g}: its config.json or its weights say '
                'two things at once.'
            )
        for loader, difference in self.of_export().items():
            if difference is not None and not difference <= tolerance:
                raise errors.InputError(
                    f'The exported model, reloaded by {loader}, differs from {than} '
                    f'by up to {difference:.3g} in its logits, more than '
                    f'--verify_tolerance={tolerance:g}. A few times that can be '
                    'rounding: the same command with a larger one goes on.'
                )


def verify(
    base: base_model.BaseModel,
    masks: masks_lib.Masks,
    directory: str | pathlib.Path,
    *,
    dtype: str,
    tokens: np.ndarray,
) -> Verification:
    """Compares logits in float32 arithmetic, the dense model's own as well.

    Args:
        base: the dense model.
        masks: what of it is masked.
        directory: and all else: see `verify_export`.

    Raises:
        InputError: if the directory cannot be reloaded.
    """
    own = base.reader.path
    dense = None
    if has_torch() and own.is_dir():
        unmasked = masked_logits(base, masks_lib.DENSE, tokens, dtype='float32')
        dense = _difference(own, 'transformers', unmasked, tokens)
    found = verify_export(base, masks, directory, dtype=dtype, tokens=tokens)
    return dataclasses.replace(found, dense=dense)


def verify_export(
    model: base_model.BaseModel,
    masks: masks_lib.Masks,
    directory: str | pathlib.Path,
    *,
    dtype: str,
    tokens: np.ndarray,
) -> Verification:
    """Compares logits of a directory with the model's that it was exported from.

    Args:
        model: the model.
        masks: what of it is masked.
        directory: what was exported of them.
        dtype: what its weights were rounded to; a key of `hf_export.DTYPES`.
        tokens: [B, T] token ids, padded on the right if they are padded. Padding
            is compared like everything else: it sees the same tokens everywhere.

    Raises:
        InputError: if the directory cannot be reloaded.
    """
    want = masked_logits(model, masks, tokens, dtype=dtype)
    is_stock = model.config.out_width is None
    return Verification(
        ppjax=_difference(directory, 'ppjax', want, tokens),
        transformers=_difference(directory, 'transformers', want, tokens)
        if has_torch() and is_stock
        else None,
    )


def checked(
    model: base_model.BaseModel,
    folder: pathlib.Path,
    *,
    dtype: str,
    tokenizer: Any,
    system_prompt: str,
    date: str,
    tolerance: float,
    what: str,
) -> dict[str, Any]:
    """Compares an exported directory with what it was made of; what results say of it.

    Args:
        model: what it was made of.
        folder: the directory.
        dtype: that it is stored in.
        tokenizer: of the model.
        system_prompt: that the compared texts begin with.
        date: that templates are told.
        tolerance: the largest difference of logits that passes.
        what: `model` is, for people.

    Raises:
        InputError: if they differ by more.
    """
    tokens = prompts(
        tokenizer, system_prompt, date=date, vocab_size=model.config.vocab_size
    )
    progress_lib.say(announced(tokens))
    found = verify_export(model, masks_lib.DENSE, folder, dtype=dtype, tokens=tokens)
    found.require(tolerance, what)
    return found.recorded(tolerance, tokens)


def _difference(
    path: str | pathlib.Path, loader: str, want: np.ndarray, tokens: np.ndarray
) -> float:
    got = reloaded_logits(path, tokens, loader=loader)
    if got.shape != want.shape:
        raise errors.InputError(
            f'{path}, reloaded by {loader}, gives logits {got.shape}, '
            f'wanted {want.shape}.'
        )
    return float(np.max(np.abs(got - want)))


def prompts(
    tokenizer: Any, system_prompt: str, *, date: str, vocab_size: int
) -> np.ndarray:
    """Prompts of a persona as int32 [B, T], with 64 <= T <= 128 and no padding.

    Long prompts keep their end, where they differ; short ones are repeated.

    Args:
        tokenizer: of transformers.
        system_prompt: the persona prompt; '' if there is none.
        date: that chat templates which print one are told.
        vocab_size: tokens that the model embeds.
    """
    renderer = (
        chat.ChatRenderer(tokenizer, date=date, vocab_size=vocab_size)
        if tokenizer.chat_template
        else None
    )
    rows = []
    for question in _QUESTIONS:
        messages = [{'role': 'user', 'content': question}]
        if system_prompt:
            messages.insert(0, {'role': 'system', 'content': system_prompt})
        if renderer is not None:
            ids = renderer.prompt(messages)
        else:
            ids = tokenizer.encode('\n\n'.join(m['content'] for m in messages))
            tokens_lib.refuse_unembedded(ids, vocab_size, tokenizer)
        rows.append(ids[-_MAX_LENGTH:])
    length = max(_MIN_LENGTH, *(len(row) for row in rows))
    return np.stack([np.resize(np.asarray(row, np.int32), length) for row in rows])


def announced(tokens: np.ndarray) -> str:
    """A line for people, before tokens [B, T] are compared."""
    return f'Verifying on {tokens.shape[0]} prompts of {tokens.shape[1]} tokens ...'


def has_torch() -> bool:
    """Whether PyTorch, and with it the comparison with transformers, is there."""
    return importlib.util.find_spec('torch') is not None


def masked_logits(
    base: base_model.BaseModel,
    masks: masks_lib.Masks,
    tokens: np.ndarray,
    *,
    dtype: str,
) -> np.ndarray:
    """Logits [B, T, V] of the masked dense model.

    Weights are rounded to `dtype` first, as an export does, and then widened; gains
    are multiplied into their weights before.
    """
    kind = hf_export.DTYPES[dtype][0]
    if any(x.dtype != np.bool_ for x in masks.given().values()):
        base = folded.folded_model(base, masks._replace(blocks=None))
        masks = masks_lib.Masks(blocks=masks.blocks)
    rounded = loading.load_decoder(base.reader, base.config, dtype=kind)
    return logits(rounded, tokens, masks.as_float32())


def reloaded_logits(
    directory: str | pathlib.Path, tokens: np.ndarray, *, loader: str
) -> np.ndarray:
    """Logits [B, T, V] of a directory, computed in a fresh process on the CPU.

    Args:
        directory: an unpruned or pruned Hugging Face directory.
        tokens: [B, T] token ids.
        loader: 'ppjax' or 'transformers'.

    Raises:
        InputError: with the last line of what the process said, if it fails.
    """
    environment = os.environ | {
        # This process may hold the accelerator, which TPUs do not share.
        'JAX_PLATFORMS': 'cpu',
        'CUDA_VISIBLE_DEVICES': '',
        # A directory that lacks a file must fail, not be mended from the Hub.
        'HF_HUB_OFFLINE': '1',
        # The child must import the package that this process imported.
        'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
    }
    with tempfile.TemporaryDirectory() as scratch:
        inputs = pathlib.Path(scratch, 'inputs.npz')
        outputs = pathlib.Path(scratch, 'outputs.npz')
        np.savez(inputs, tokens=tokens)
        arguments = (loader, str(directory), str(inputs), str(outputs))
        child = subprocess.run(
            [sys.executable, '-m', 'ppjax.exporting.verify', *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors='replace',
            check=False,
        )
        if child.returncode:
            said = child.stderr.strip().splitlines() or [f'exit {child.returncode}']
            raise errors.InputError(
                f'{directory} cannot be reloaded by {loader}: {said[-1]}'
            )
        with np.load(outputs) as file:
            return file['logits']


def logits(
    decoder: decoder_lib.Decoder, tokens: np.ndarray, masks: masks_lib.Masks
) -> np.ndarray:
    """Logits [B, T, V] of tokens [B, T], in float32."""

    @jax.jit
    def forward(
        decoder: decoder_lib.Decoder, tokens: jax.Array, masks: masks_lib.Masks
    ) -> jax.Array:
        batch, length = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
        attend = attention.causal(batch, length)
        hidden, _, _ = decoder(tokens, positions, masks, attend)
        return decoder.unembed(hidden)

    decoder = jax.tree.map(lambda weight: weight.astype(jnp.float32), decoder)
    return np.asarray(forward(decoder, jnp.asarray(tokens, jnp.int32), masks))


def _by_ppjax(directory: str, tokens: np.ndarray) -> np.ndarray:
    reader = open_checkpoint.open_checkpoint(directory)
    cfg = loading.config_of(reader)
    decoder = loading.load_decoder(reader, cfg, dtype=jnp.float32)
    return logits(decoder, tokens, masks_lib.DENSE)


def _by_transformers(directory: str, tokens: np.ndarray) -> np.ndarray:
    # PyTorch is optional, and slow to import.
    torch: Any = importlib.import_module('torch')
    transformers: Any = importlib.import_module('transformers')
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    # transformers warns and goes on with random weights.
    for problem in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
        if info[problem]:
            raise errors.InputError(f'{problem}: {sorted(info[problem])}')
    with torch.inference_mode():
        output = model.eval()(torch.from_numpy(np.int64(tokens)), use_cache=False)
    return output.logits.numpy()


_LOADERS = {'ppjax': _by_ppjax, 'transformers': _by_transformers}


def _child(arguments: list[str]) -> int:
    loader, directory, inputs, outputs = arguments
    with np.load(inputs) as file:
        tokens = file['tokens']
    try:
        np.savez(outputs, logits=_LOADERS[loader](directory, tokens))
    except errors.InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(_child(sys.argv[1:]))
