"""What pruning leaves: a Hugging Face directory, its structure and its figures."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from ppjax.base import atomic, flags, processes, versions
from ppjax.base import progress as progress_lib
from ppjax.baselines import budget, methods
from ppjax.baselines import config as config_lib
from ppjax.exporting import hf_export, model_card, published, record
from ppjax.exporting import verify as verify_lib
from ppjax.models import base_model, costs
from ppjax.models import structure as structure_lib

FILE = 'results/pruning.json'
STRUCTURE = 'structure.safetensors'


def counted(amounts: Mapping[str, budget.Amount], tokens: float) -> dict[str, Any]:
    """Sizes of models by name, for results and people.

    Args:
        amounts: the models.
        tokens: of the prompt whose FLOPs are counted.
    """
    return {
        name: {
            'setting': own.setting,
            'text': own.text,
            'parameters': own.parameters._asdict(),
            'prefill_flops': own.prefill_flops(tokens),
        }
        for name, own in amounts.items()
    }


@dataclasses.dataclass(frozen=True)
class Exported:
    """Where the pruned model goes, and what decides it.

    Attributes:
        cfg: the settings.
        base: the dense model.
        hashes: name -> sha256 of what the run reads.
        system_prompt: of the texts, if they have one.
        folder: the run directory.
    """

    cfg: config_lib.PruneConfig
    base: base_model.BaseModel
    hashes: dict[str, str]
    system_prompt: str
    folder: pathlib.Path

    @property
    def model_dir(self) -> pathlib.Path:
        """Where the model goes."""
        return self.folder / 'hf'

    @property
    def identity(self) -> dict[str, str]:
        """Of the exported weights: the run that they are from."""
        settings = flags.to_flagfile(self.cfg, omit=tuple(config_lib.RESUMABLE))
        return record.of_run(settings, self.hashes)

    def is_finished(self) -> bool:
        """Whether `write` came to its end.

        Raises:
            InputError: if hf/ is damaged, or something else.
        """
        return record.is_finished(self.folder / FILE, self.model_dir, self.identity)

    def write(
        self,
        outcome: methods.Outcome,
        target: budget.Amount | None,
        likelihood: Mapping[str, Any],
        sequences: int,
    ) -> None:
        """Writes hf/, then the structure, and last results/pruning.json.

        Args:
            outcome: what is left.
            target: what it was matched with; None if nothing.
            likelihood: of held-out answers, or empty.
            sequences: that the method went by.

        Raises:
            InputError: if the disk is full or cannot be written, or the export is not
                the model.
        """
        cfg, base = self.cfg, self.base
        dtype = cfg.export_dtype or hf_export.default_dtype(base.reader)
        whole = budget.of_sizes(base.config, 0, 'all', costs.uniform(base.config))
        amounts = {'dense': whole, 'pruned': outcome.amount}
        if target is not None:
            amounts['match'] = target
        figures: dict[str, Any] = {
            'method': cfg.method,
            'identity': self.identity,
            'export_dtype': dtype,
            'amounts': counted(amounts, cfg.prompt_length),
            'texts': {
                'source': cfg.calibration or cfg.instructions or cfg.text,
                'sequences': sequences,
            },
            'is_stock': outcome.model.config.out_width is None,
        }
        kept = outcome.structure
        if kept is not None:
            figures['blocks'] = [
                {'block': layer} | size._asdict()
                for layer, size in zip(kept.layers, kept.sizes, strict=True)
            ]
            figures['is_uniform'] = kept.is_uniform
        figures |= {'method_facts': outcome.facts} | dict(likelihood)
        tokenizer = base.tokenizer()

        def check(folder: pathlib.Path) -> None:
            if not cfg.verify or not processes.is_first():
                return
            figures['verify'] = verify_lib.checked(
                outcome.model,
                folder,
                dtype=dtype,
                tokenizer=tokenizer,
                system_prompt=self.system_prompt,
                date=cfg.date,
                tolerance=cfg.verify_tolerance,
                what='the pruned model',
            )

        processes.first_decides(
            lambda: record.may_write(self.model_dir, self.identity, overwrite=True)
        )
        progress_lib.say(f'Writing {self.model_dir} ...')
        hf_export.export_model(
            outcome.model,
            self.model_dir,
            dtype=dtype,
            tokenizer=tokenizer,
            model_card=self._card(outcome, amounts, figures),
            system_prompt=self.system_prompt,
            identity=self.identity,
            check=check,
        )
        if kept is not None:
            processes.first_decides(lambda: self._write_structure(kept))
        figures |= {
            'settings': dataclasses.asdict(cfg),
            'versions': versions.versions(),
        }
        atomic.write_json(self.folder / FILE, figures)

    def _write_structure(self, kept: structure_lib.Structure) -> None:
        arrays = {
            field.name: getattr(kept, field.name).astype(np.uint8)
            for field in dataclasses.fields(kept)
        }
        with atomic.file(self.folder / STRUCTURE) as temporary:
            temporary.write_bytes(safetensors_numpy.save(arrays))

    def _card(
        self,
        outcome: methods.Outcome,
        amounts: Mapping[str, budget.Amount],
        figures: Mapping[str, Any],
    ) -> str:
        return model_card.of_rival(
            model_card.Rival(
                base_name=self.base.name,
                license=model_card.inherited_license(self.base.reader),
                method=self.cfg.method,
                amount=outcome.amount.text,
                parameters=(
                    amounts['dense'].parameters.unique,
                    outcome.amount.parameters.unique,
                ),
                stored=hf_export.parameter_count(outcome.model),
                is_stock=figures['is_stock'],
                texts=str(figures['texts']['source']),
                sequences=figures['texts']['sequences'],
                likelihood=figures,
                command=published.command(
                    'prune', dataclasses.replace(self.cfg, overwrite=False)
                ),
                settings=published.settings_text(self.cfg),
            )
        )
