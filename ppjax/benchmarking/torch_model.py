"""The base model in PyTorch, for comparisons side by side."""

from collections.abc import Mapping
import pathlib
import tempfile
from typing import Any

import numpy as np
import transformers

from ppjax.base import errors
from ppjax.exporting import hf_export, verify
from ppjax.models import base_model


def write(
    base: base_model.BaseModel,
    target: pathlib.Path,
    *,
    dtype: str,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> None:
    """Writes a model out as an export is, so that others can read GGUF files too.

    Args:
        base: the model.
        target: a folder.
        dtype: of its weights there.
        tokenizer: the model's own by default, which one that was sliced need not have.
    """
    cfg = base.config
    hf_export.export_pruned(
        base,
        np.ones((cfg.num_layers, cfg.d_ff), bool),
        target,
        dtype=dtype,
        tokenizer=base.tokenizer() if tokenizer is None else tokenizer,
        model_card='',
        system_prompt='',
    )


def check_installed() -> None:
    """Raises:
    InputError: if PyTorch is not installed.
    """
    if not verify.has_torch():
        raise errors.InputError(
            'This compares with PyTorch, which is not installed: pip install torch.'
        )


def device() -> Any:
    """The GPU where PyTorch has one, as ours is there too; else the CPU."""
    import torch

    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def wait_for(where: Any) -> None:
    """Returns once a PyTorch device has done what it was told."""
    import torch

    if where.type == 'cuda':
        torch.cuda.synchronize(where)


def random(hf_config: Mapping[str, Any], *, dtype: str) -> Any:
    """A model with random weights, on the GPU where PyTorch has one.

    Args:
        hf_config: what its config.json holds.
        dtype: of its weights.

    Raises:
        InputError: if PyTorch is not installed.
    """
    check_installed()
    import torch

    with device():
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf_config), dtype=getattr(torch, dtype)
        ).eval()


def load(
    base: base_model.BaseModel,
    tokenizer: transformers.PreTrainedTokenizerBase | None = None,
) -> Any:
    """transformers' model with the same weights, float32, on the CPU.

    Args:
        base: the model.
        tokenizer: see `write`.

    Raises:
        InputError: if PyTorch is not installed.
    """
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / 'dense'
        write(base, target, dtype='float32', tokenizer=tokenizer)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            target, dtype='float32', local_files_only=True
        )
    return model.eval()
