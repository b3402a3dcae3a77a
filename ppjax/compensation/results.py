"""What reconstruction leaves: a Hugging Face directory and its figures."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from ppjax.base import atomic, flags, json_lines, processes, versions
from ppjax.base import progress as progress_lib
from ppjax.compensation import config as config_lib
from ppjax.exporting import hf_export, model_card, pruned_source, published, record
from ppjax.exporting import verify as verify_lib
from ppjax.learning import data as data_lib
from ppjax.learning import heldout as heldout_lib
from ppjax.learning import references
from ppjax.models import base_model

FILE = 'results/compensation.json'
# Of a run of several stages, the one that recovery then goes on from.
STAGE_FOLDER = 'refitted'
_TARGETS = {
    'residual': (
        "every layer brings the pruned model's residual stream to the dense one's"
    ),
    'ffn': "every layer adds what the dense model's adds to its own stream",
    'own_ffn': "every layer adds what the dense model's would add to the pruned stream",
}


def of_run(run: pathlib.Path) -> dict[str, Any] | None:
    """The figures of a run directory whose hf/ is the refitted model, else None."""
    found = json_lines.stored_object(run / FILE)
    if found is None or found.get('identity') != record.identity(run / 'hf'):
        return None
    return found


@dataclasses.dataclass(frozen=True)
class Exported:
    """Where the refitted model goes, and what decides it.

    Attributes:
        cfg: the settings, resolved.
        source: what was refitted.
        hashes: name -> sha256 of what the run reads.
        folder: the run directory.
    """

    cfg: config_lib.CompensateConfig
    source: pruned_source.PrunedSource
    hashes: dict[str, str]
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
        refitted: base_model.BaseModel,
        layers: Sequence[dict[str, float]],
        data: data_lib.Data,
        likelihood: Mapping[str, heldout_lib.Likelihood],
        *,
        own: int,
    ) -> None:
        """Writes hf/, and last results/compensation.json.

        Args:
            refitted: the model.
            layers: how each was fitted.
            data: the texts.
            likelihood: of held-out texts, by model; empty if there are none.
            own: how many of the texts the dense model wrote.

        Raises:
            InputError: if the disk is full or cannot be written, a weight is not
                finite in the precision to export, or the export is not the model.
        """
        cfg, source = self.cfg, self.source
        dtype = cfg.export_dtype or source.stored_dtype
        parameters = map(hf_export.parameter_count, (source.files, refitted))
        figures: dict[str, Any] = {
            'method': 'ridge',
            'target': cfg.target,
            'bias': cfg.bias,
            'identity': self.identity,
            'export_dtype': dtype,
            'parameters': dict(zip(('dense', 'pruned'), parameters, strict=True)),
            'texts': {
                'source': cfg.calibration,
                'rows': len(data.train) - own,
                'own_answers': own,
            },
            'layers': list(layers),
        }
        if likelihood:
            figures |= references.likelihood(cfg.heldout, data.heldout, likelihood)
        tokenizer = source.files.tokenizer()
        system_prompt = source.system_prompt or data.system_prompt
        before = pruned_source.card_before(
            source,
            dtype,
            published.command('compensate', dataclasses.replace(cfg, overwrite=False)),
            has_template=bool(tokenizer.chat_template),
        )

        def check(folder: pathlib.Path) -> None:
            if not cfg.verify or not processes.is_first():
                return
            figures['verify'] = verify_lib.checked(
                refitted,
                folder,
                dtype=dtype,
                tokenizer=tokenizer,
                system_prompt=system_prompt,
                date=cfg.date,
                tolerance=cfg.verify_tolerance,
                what='the refitted model',
            )

        # One of this very run may stand there, whose figures were not written yet; or
        # in a run of several stages that of the mask alone.
        processes.first_decides(
            lambda: record.may_write(self.model_dir, self.identity, overwrite=True)
        )
        progress_lib.say(f'Writing {self.model_dir} ...')
        hf_export.export_model(
            refitted,
            self.model_dir,
            dtype=dtype,
            tokenizer=tokenizer,
            model_card=model_card.with_reconstruction(before, self._facts(figures)),
            system_prompt=system_prompt,
            identity=self.identity,
            check=check,
        )
        figures |= {
            'settings': dataclasses.asdict(cfg),
            'versions': versions.versions(),
        }
        atomic.write_json(self.folder / FILE, figures)

    def _facts(self, figures: Mapping[str, Any]) -> model_card.Reconstruction:
        refitted = [layer for layer in figures['layers'] if layer['refitted']]
        dampings = [layer['damping'] for layer in refitted]
        return model_card.Reconstruction(
            target=_TARGETS[self.cfg.target],
            biased=self.cfg.bias,
            dampings=(min(dampings), max(dampings)) if dampings else None,
            layers_left=len(figures['layers']) - len(refitted),
            calibration=str(self.cfg.calibration),
            calibration_rows=figures['texts']['rows'],
            own_answers=figures['texts']['own_answers'],
            likelihood=figures,
            settings=published.settings_text(self.cfg),
        )
