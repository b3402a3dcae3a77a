"""`python -m ppjax.run`: from nothing but a persona to a pruned model.

python -m ppjax.run --persona=card.png --base_model=DIR --instructions=FILE \\
    --output_dir=runs/mine

Synthesis, mask learning, export and report, one after the other in one run
directory. The same command goes on where it stopped; a stage whose settings and
inputs are those of the last time is not done again.
"""

import contextlib
import dataclasses
import time
from typing import Any, TypeVar

from ppjax.base import compile_cache, errors, flags, run_directory
from ppjax.base import progress as progress_lib
from ppjax.data import calibration
from ppjax.evaluation import reporting
from ppjax.exporting import config as export_config
from ppjax.exporting import export
from ppjax.synthesis import config as synthesis_config
from ppjax.synthesis import pipeline, sources
from ppjax.training import config as train_config
from ppjax.training import loop

Settings = TypeVar('Settings')


@dataclasses.dataclass(frozen=True)
class RunConfig(synthesis_config.SynthesisSettings, train_config.LearningSettings):
    """Flags of `python -m ppjax.run`."""

    verify: bool = flags.setting(
        True, "Compare the exported model's logits with the masked dense model's."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rewriter == 'none':
            raise errors.InputError(
                '--rewriter=none leaves nothing to learn from; python -m '
                'ppjax.synthesize makes a selection alone.'
            )


_RESUMABLE = synthesis_config.RESUMABLE | train_config.RESUMABLE | frozenset({'verify'})


def _part(settings: type[Settings], cfg: RunConfig, **more: Any) -> Settings:
    """The settings of one stage."""
    names = {field.name for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    given = dataclasses.asdict(cfg)
    return settings(**{name: given[name] for name in names & given.keys()} | more)


def _opened(
    cfg: RunConfig, directory: run_directory.RunDirectory
) -> contextlib.AbstractContextManager[bool]:
    # With --overwrite each stage decides for itself what still holds.
    every = frozenset(field.name for field in dataclasses.fields(cfg))
    return directory.opened(
        cfg,
        {},
        resumable=every if cfg.overwrite else _RESUMABLE,
        overwrite=False,
        makes=(),
    )


def main(cfg: RunConfig) -> int:
    """Runs all stages."""
    compile_cache.enable()
    # Before anything is made: the likeliest mistake is in what people write.
    sources.read_persona(cfg, notes=lambda note: None)
    directory = run_directory.RunDirectory(cfg.output_dir)
    began = time.monotonic()

    def begin(number: int, stage: str, text: str) -> None:
        directory.status(state='running', stage=stage)
        spent = time.monotonic() - began
        progress_lib.say(f'\n[{number}/4] {text} ({spent:.0f} s so far)')

    with _opened(cfg, directory), directory.stage('run'):
        begin(1, 'synthesize', 'Calibration data')
        made = pipeline.synthesize(
            _part(synthesis_config.SynthesisSettings, cfg), stage='synthesize'
        )
        assert made.train is not None
        begin(2, 'train', 'Mask learning')
        mask = loop.learn_mask(
            _part(
                train_config.TrainConfig,
                cfg,
                calibration=str(made.train),
                heldout=None if made.test is None else str(made.test),
            ),
            calibration.read_rows(made.train),
            [] if made.test is None else calibration.read_rows(made.test),
            stage='train',
        )
        if mask is None:
            directory.status(state='paused')
            return 0
        begin(3, 'export', 'Export')
        export.export(
            export_config.ExportConfig(
                output_dir=cfg.output_dir, verify=cfg.verify, overwrite=cfg.overwrite
            ),
            again=False,
        )
        begin(4, 'report', 'Report')
        reporting.report_on(reporting.ReportConfig(output_dir=cfg.output_dir))
        directory.done(stage='run')
    return 0


if __name__ == '__main__':
    flags.run(RunConfig, main)
