"""Adapters as PEFT's files, which `peft.PeftModel.from_pretrained` loads."""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors_numpy

from ppjax.base import atomic, processes
from ppjax.models import loading
from ppjax.recovery import lora

_MODULE = 'base_model.model.{}.lora_{}.weight'


def save(
    path: str | pathlib.Path,
    adapters: lora.Adapters,
    *,
    alpha: int,
    targets: Sequence[str],
    base_name: str,
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, whole or not at all.

    Args:
        path: of the folder; an older one is replaced.
        adapters: A and B of every target.
        alpha: the scale is alpha / r.
        targets: names in `lora.TARGETS`.
        base_name: of the model that they are added to.

    Raises:
        InputError: if the disk is full or cannot be written.
    """
    tensors: dict[str, np.ndarray] = {}
    rank = 0
    for attribute, pair in jax.tree.map(processes.fetch, adapters).items():
        module = loading.BLOCK_WEIGHTS[attribute].hf_name.removesuffix('.weight')
        rank = pair['a'].shape[-1]
        for layer, (a, b) in enumerate(zip(pair['a'], pair['b'], strict=True)):
            name = module.format(layer)
            tensors[_MODULE.format(name, 'A')] = np.ascontiguousarray(a.T)
            tensors[_MODULE.format(name, 'B')] = np.ascontiguousarray(b.T)
    config: dict[str, Any] = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base_name,
        'inference_mode': True,
        'r': rank,
        'lora_alpha': alpha,
        'lora_dropout': 0.0,
        'target_modules': list(targets),
        'bias': 'none',
        'fan_in_fan_out': False,
        'init_lora_weights': True,
        'use_rslora': False,
        'use_dora': False,
    }
    with atomic.directory(path) as folder:
        (folder / 'adapter_config.json').write_text(
            json.dumps(config, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
        )
        content = safetensors_numpy.save(tensors, metadata={'format': 'pt'})
        (folder / 'adapter_model.safetensors').write_bytes(content)
