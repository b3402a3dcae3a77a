"""The story of `python -m ppjax.report`: what is missing is measured, and shown."""

from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any

from ppjax.base import flags, progress, ranges, settings
from ppjax.compensation import results as compensation
from ppjax.data import calibration
from ppjax.evaluation import efficiency, results_store
from ppjax.evaluation.page import report, run_results, terminal
from ppjax.masking import apply, pmask
from ppjax.masking import granularity as granularity_lib
from ppjax.models import base_model, generation
from ppjax.models import masks as masks_lib
from ppjax.recovery import records as recovery
from ppjax.training import config as train_config
from ppjax.training import trained_run


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Flags of `python -m ppjax.report`."""

    output_dir: str = flags.setting(None, 'Run directory to report on.', path=True)
    samples: int = flags.setting(
        3,
        'Held-out queries that the dense and the pruned model answer; 0 for none.',
        least=0,
    )
    max_new_tokens: int = flags.setting(96, 'Longest answer, in tokens.', least=1)
    prompt_length: int = flags.setting(
        256, 'Tokens of the prompt that FLOPs are for.', least=1
    )
    answer_length: int = flags.setting(
        128, 'Tokens of the answer that FLOPs are for.', least=1
    )
    overwrite: bool = flags.setting(
        False, 'Answer again, even if the same answers are there.'
    )

    def __post_init__(self) -> None:
        settings.require_given(self, 'output_dir')
        ranges.check(self)


def report_on(cfg: ReportConfig) -> int:
    """Measures what is missing, writes the page, prints the gist."""
    trained = trained_run.TrainedRun.open(cfg.output_dir, flag='output_dir')
    _write_efficiency(cfg, trained.path, trained.settings)
    _write_samples(cfg, trained)
    page = report.write_report(trained.path)
    run = run_results.read_run(trained.path)
    parts = (
        terminal.likelihood_text(run),
        *terminal.sample_texts(run),
        terminal.paths(run, page),
    )
    print('\n\n'.join(parts), flush=True)
    return 0


def _write_efficiency(
    cfg: ReportConfig, run_dir: pathlib.Path, trained: train_config.TrainConfig
) -> None:
    path = run_dir / 'results' / 'efficiency.json'
    lengths = {'prompt_length': cfg.prompt_length, 'answer_length': cfg.answer_length}
    names = ('base_model', 'granularity', 'sparsity', 'align', 'dtype')
    settings = {name: getattr(trained, name) for name in names} | lengths
    mask_file = run_dir / 'mask.pmask'
    if trained.budget == 'global' and mask_file.is_file():
        # As wide as the widest layer, which learning decides.
        settings['keep'] = pmask.load(mask_file).keep

    def measure() -> dict[str, Any]:
        model = base_model.open_base_model(trained.base_model).config
        granularity = granularity_lib.KINDS[trained.granularity]
        size = model.num_layers, model.d_ff
        keep = granularity.keep_size(
            *size, sparsity=trained.sparsity, align=trained.align
        )
        keep = settings.get('keep', keep)
        layers, channels = granularity.pruned_size(*size, keep)
        found = efficiency.measure(
            model,
            channels,
            dtype=trained.dtype,
            layers=layers,
            prompt_length=cfg.prompt_length,
            answer_length=cfg.answer_length,
        )
        return dataclasses.asdict(found) | {'convention': efficiency.CONVENTION}

    results_store.measured(path, settings, measure, overwrite=cfg.overwrite)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` different indices, evenly over range(count)."""
    wanted = min(wanted, count)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def _write_samples(cfg: ReportConfig, run: trained_run.TrainedRun) -> None:
    if not cfg.samples:
        return
    if not run.is_finished:
        progress.say('The mask is not learned yet: no answers to compare.')
        return
    rows = run.heldout_rows()
    if not rows:
        progress.say('The run has no --heldout queries: no answers to compare.')
        return
    trained, mask = run.settings, run.mask_file
    path = run.path / 'results' / 'samples.json'
    settings = {
        'base_model': trained.base_model,
        'mask_sha256': hashlib.sha256(mask.read_bytes()).hexdigest(),
        'heldout': trained.heldout,
        'heldout_sha256': calibration.content_hash(rows),
        'max_length': trained.max_length,
        'date': trained.date,
        'dtype': trained.dtype,
        'samples': cfg.samples,
        'max_new_tokens': cfg.max_new_tokens,
    }
    refitted = None
    found = compensation.of_run(run.path) or recovery.of_run(run.path)
    if found is not None:
        refitted = run.exported
        settings |= found['identity']
    results_store.measured(
        path,
        settings,
        lambda: {'samples': _answer(cfg, trained, mask, refitted, rows)},
        overwrite=cfg.overwrite,
    )


def _answer(
    cfg: ReportConfig,
    trained: train_config.TrainConfig,
    mask: pathlib.Path,
    refitted: pathlib.Path | None,
    rows: Sequence[calibration.Row],
) -> list[dict[str, str]]:
    """Greedy answers of the dense and the pruned model to some of the rows.

    Args:
        cfg: the settings.
        trained: those of mask learning.
        mask: the learned mask's file.
        refitted: directory of the model with rows refitted, or recovered, where
            there is one.
        rows: held out.
    """
    progress.say(f'Loading {trained.base_model} ...')
    loaded = apply.load_masked(
        base_model=trained.base_model, mask_path=str(mask), dtype=trained.dtype
    )
    dense_decoder = loaded.decoder
    pruned_model = loaded
    if refitted is not None:
        pruned_model = apply.load_masked(model=str(refitted), dtype=trained.dtype)
    if loaded.decoder.cfg != loaded.base.config:  # Whole blocks are gone from it.
        dense_decoder = apply.load_masked(
            base_model=trained.base_model, dtype=trained.dtype
        ).decoder
    renderer = loaded.renderer(trained.date)
    # As in mask learning, where rows with markup and longer ones are dropped.
    rows = [row for row in rows if renderer.takes(row)]
    prompts = [renderer.prompt(row.messages[:-1]) for row in rows]
    fitting = [i for i, p in enumerate(prompts) if len(p) <= trained.max_length]
    chosen = [fitting[i] for i in spread(len(fitting), cfg.samples)]
    progress.say(
        f'Answering {len(chosen)} held-out queries with the dense and the pruned '
        'model ...'
    )
    dense, pruned = (
        generation.generate(
            decoder,
            masks,
            [prompts[i] for i in chosen],
            max_new_tokens=cfg.max_new_tokens,
            stop_ids=loaded.stop_ids(),
        )
        for decoder, masks in (
            (dense_decoder, masks_lib.DENSE),
            (pruned_model.decoder, pruned_model.masks),
        )
    )

    def text(tokens: list[int]) -> str:
        return loaded.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ).strip()

    return [
        {
            'query_id': rows[i].query_id,
            'query': rows[i].query,
            'reference': rows[i].answer,
            'dense': text(before),
            'pruned': text(after),
        }
        for i, before, after in zip(chosen, dense, pruned, strict=True)
    ]
