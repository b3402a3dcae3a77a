"""The models that an evaluation compares, in their order: the reference first."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import pathlib

import numpy as np

from ppjax.base import errors
from ppjax.base import progress as progress_lib
from ppjax.evaluation import config as config_lib
from ppjax.masking import apply, pmask
from ppjax.models import base_model, costs, structure
from ppjax.parallel import sharding
from ppjax.training import trained_run


@dataclasses.dataclass
class Candidate:
    """One model, loaded when it is first needed.

    Attributes:
        name: its key in results; ours are 'dense', 'masked' (a mask on the dense
            model) and 'pruned' (exported), where flags give it no other.
        base: the files of its weights, without blocks that a mask drops.
        read: makes it from these.
        mask: of channels, or None.
        system_prompt: that it was made for; '' if it does not say.
    """

    name: str
    base: base_model.BaseModel
    read: Callable[[], apply.LoadedModel]
    mask: pmask.PersonaMask | None = None
    system_prompt: str = ''
    _loaded: apply.LoadedModel | None = None

    @property
    def keep(self) -> int:
        """k, the channels of a layer that work."""
        return self.base.config.d_ff if self.mask is None else self.mask.keep

    @functools.cached_property
    def sizes(self) -> list[costs.BlockSize]:
        """Of its blocks; what is masked or filled up with zeros is gone."""
        groups = self.base.config.num_kv_heads
        if self.mask is not None:
            return [costs.BlockSize(int(row.sum()), groups) for row in self.mask.chosen]
        return list(structure.of_weights(self.base).sizes)

    @property
    def identity(self) -> str:
        """By the weights and the mask."""
        digest = 'no mask'
        if self.mask is not None:
            content = np.packbits(self.mask.mask).tobytes() + self.mask.gain_bytes()
            digest = hashlib.sha256(content).hexdigest()[:16]
        return f'{self.base.fingerprint()} {digest}'

    def load(self) -> apply.LoadedModel:
        """The model in memory."""
        if self._loaded is None:
            progress_lib.say(f'Loading the {self.name} model ...')
            self._loaded = self.read()
        return self._loaded


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What is compared, in the order that results and pages keep.

    Attributes:
        models: one or more, of different names. Differences are to the first, which
            is the dense one if it is there; the last is the one in question.
        run: whose models they are; None elsewhere.
    """

    models: tuple[Candidate, ...]
    run: trained_run.TrainedRun | None

    def __getitem__(self, name: str) -> Candidate:
        return next(model for model in self.models if model.name == name)

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.models]

    @property
    def system_prompt(self) -> str:
        """Of the first model that names the persona it was made for."""
        return next((m.system_prompt for m in self.models if m.system_prompt), '')


def heldout_source(cfg: config_lib.EvaluateConfig, models: Candidates) -> str:
    """The held-out conversations: a path, or `demo:NAME`.

    Raises:
        InputError: if neither flags nor run name any.
    """
    if cfg.heldout:
        return cfg.heldout
    if models.run and (source := models.run.heldout_source):
        return source
    raise errors.InputError(
        'There are no held-out conversations; name a file of them with --heldout.'
    )


def find(cfg: config_lib.EvaluateConfig) -> Candidates:
    """The models that flags and run directory name.

    A run's dense model and its export are compared; without an export, or at another
    sparsity, its mask on the dense model.

    Raises:
        InputError: if one is absent or unreadable, or the mask has another base.
    """
    run = None
    if cfg.is_run:
        own = trained_run.TrainedRun
        named = cfg.mask or cfg.model
        run = (own.open if named else own.open_finished)(cfg.run, flag='output_dir')
    name = cfg.base_model or (run.settings.base_model if run else None)
    read = functools.partial(
        apply.load_masked, dtype=cfg.dtype, mesh=sharding.inference_mesh(cfg.mesh)
    )
    found = []
    base = None
    if name:
        base = base_model.open_base_model(name)
        found.append(
            Candidate(config_lib.DENSE, base, functools.partial(read, base_model=name))
        )
    mask_files, exports = cfg.masks, cfg.models
    if run and not (mask_files or exports):
        if run.exported and cfg.mask_sparsity is None:
            exports = {config_lib.PRUNED: str(run.exported)}
        else:
            mask_files = {config_lib.MASKED: str(run.mask_file)}
    for called, path in mask_files.items():
        assert base is not None
        found.append(_masked(called, path, base, found[0], read, cfg.mask_sparsity))
    for called, path in exports.items():
        files, system_prompt = apply.open_exported(path)
        if base is not None and files.config.vocab_size != base.config.vocab_size:
            raise errors.InputError(
                f'{path} embeds {files.config.vocab_size} tokens, the dense '
                f'model {base.name} {base.config.vocab_size}: it was made from another '
                'base model.'
            )
        pruned = functools.partial(read, model=path)
        found.append(Candidate(called, files, pruned, system_prompt=system_prompt))
    return Candidates(tuple(found), run)


def _masked(
    name: str,
    path: str,
    base: base_model.BaseModel,
    dense: Candidate,
    read: Callable[..., apply.LoadedModel],
    sparsity: float | None,
) -> Candidate:
    file = pmask.load_for(pathlib.Path(path).expanduser(), base, sparsity=sparsity)
    if file.granularity == pmask.BLOCKS:
        shorter = file.pruned(base)
        own = functools.partial(read, base_model=base.name, mask_path=path)
        return Candidate(name, shorter, own, system_prompt=file.system_prompt)

    def on_dense() -> apply.LoadedModel:
        # The dense weights serve both.
        return dataclasses.replace(
            dense.load(),
            masks=file.decoder_masks(),
            system_prompt=file.system_prompt,
        )

    return Candidate(name, base, on_dense, file, file.system_prompt)
