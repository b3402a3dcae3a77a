"""The base model in PyTorch, for comparisons side by side."""

from collections.abc import Mapping
import pathlib
import tempfile
from typing import Any

import numpy as np

from ppjax import errors
from ppjax.models import base_model, hf_export, verify


def write(base: base_model.BaseModel, target: pathlib.Path, *, dtype: str) -> None:
    """Writes a model out as an export is, so that others can read GGUF files too."""
    cfg = base.config
    hf_export.export_pruned(
        base,
        np.ones((cfg.num_layers, cfg.d_ff), bool),
        target,
        dtype=dtype,
        tokenizer=base.tokenizer(),
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
    import transformers

    with torch.device('cuda' if torch.cuda.is_available() else 'cpu'):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**hf_config), dtype=getattr(torch, dtype)
        ).eval()


def load(base: base_model.BaseModel) -> Any:
    """transformers' model with the same weights, float32, on the CPU.

    Raises:
        InputError: if PyTorch is not installed.
    """
    check_installed()
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / 'dense'
        write(base, target, dtype='float32')
        model = transformers.AutoModelForCausalLM.from_pretrained(
            target, dtype='float32', local_files_only=True
        )
    return model.eval()
