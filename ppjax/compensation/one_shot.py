"""A mask without learning: the channels that add most to the residual stream."""

import hashlib
import pathlib

import jax
import jax.numpy as jnp

from ppjax.base import processes
from ppjax.compensation import config as config_lib
from ppjax.exporting import pruned_source
from ppjax.learning import data as data_lib
from ppjax.masking import pmask, topk
from ppjax.models import base_model, loading
from ppjax.training import starts

FILE = 'mask.pmask'


def keep_size(cfg: config_lib.CompensateConfig, base: base_model.BaseModel) -> int:
    """k, where `cfg.sparsity` is given.

    Raises:
        InputError: if no such k exists.
    """
    assert cfg.sparsity is not None
    return topk.keep_size(base.config.d_ff, cfg.sparsity, cfg.align)


def masked(
    cfg: config_lib.CompensateConfig,
    dense: base_model.BaseModel,
    data: data_lib.Data,
    run: pathlib.Path,
    mesh: jax.sharding.Mesh,
) -> pruned_source.PrunedSource:
    """The model pruned by its largest channel activations on the calibration rows.

    Args:
        cfg: the settings, with `sparsity`.
        dense: the dense model.
        data: the rows.
        run: the run directory, which keeps the mask.
        mesh: the devices.

    Raises:
        InputError: if activations are not finite, or the mask there is damaged.
    """
    file = run / FILE
    if not processes.first_decides(file.exists):
        decoder = loading.load_decoder(
            dense.reader, dense.config, dtype=jnp.dtype(cfg.dtype), mesh=mesh
        )
        [own] = starts.Starts.of_personas(
            [data.train], seed=cfg.seed, mesh=mesh if mesh.size > 1 else None
        )
        mask = topk.finite_mask(own.activation(decoder), keep_size(cfg, dense))
        del decoder
        found = pmask.PersonaMask(
            mask=mask,
            base_model=cfg.base_model,
            base_fingerprint=dense.fingerprint(),
            persona_sha256=hashlib.sha256(data.system_prompt.encode()).hexdigest(),
            system_prompt=data.system_prompt,
        )
        # The others wait, and then read it.
        processes.first_decides(lambda: pmask.save(file, found))
    return pruned_source.open_source(base_model_name=cfg.base_model, mask=str(file))
