"""The base model in PyTorch, for comparisons side by side."""

import pathlib
import tempfile
from typing import Any

import numpy as np

from ppjax import errors
from ppjax.models import base_model, hf_export, verify


def load(base: base_model.BaseModel) -> Any:
    """transformers' model with the same weights, float32, on the CPU.

    Written out and read back as an export is, so that every model ppjax reads can be
    compared, GGUF files too.

    Raises:
        InputError: if PyTorch is not installed.
    """
    if not verify.has_torch():
        raise errors.InputError(
            'This compares with PyTorch, which is not installed: pip install torch.'
        )
    import transformers

    cfg = base.config
    with tempfile.TemporaryDirectory() as folder:
        target = pathlib.Path(folder) / 'dense'
        hf_export.export_pruned(
            base,
            np.ones((cfg.num_layers, cfg.d_ff), bool),
            target,
            dtype='float32',
            tokenizer=base.tokenizer(),
            model_card='',
            system_prompt='',
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            target, dtype='float32', local_files_only=True
        )
    return model.eval()
