"""`report.html`: what a run directory holds, for a person to look at.

One file that loads nothing from elsewhere. Every part is optional, so that a run
can be looked at while it is still learning.
"""

from collections.abc import Sequence
import datetime
import json
import math
import pathlib
import re
import shlex
import textwrap
from typing import Any

import numpy as np

from ppjax.base import atomic, flags
from ppjax.evaluation import bootstrap, efficiency
from ppjax.evaluation.page import (
    plots,
    report_evaluation,
    report_views,
    run_results,
)
from ppjax.pages import formats, templates, views
from ppjax.personas import prompts


def persona_of(system_prompt: str) -> str:
    """The persona text within a persona prompt, or the prompt if it is another."""
    return prompts.persona_in(system_prompt) or system_prompt


# Capitalised words at the start, up to a verb or comma: 'Old Bram Tidewater has ...'.
_NAME_WORD = r"""['"“‘]?[^\W\d_a-z][\w.'’”"-]*"""
_NAME = re.compile(
    r'((?!(?:An?|The|You|I|He|She|They|It|This|My|Your)\b)'
    rf'{_NAME_WORD}(?: {_NAME_WORD}){{0,4}})(?=,| (?:is|was|has)\b)'
)


def name_of(persona: str) -> str:
    """The name that a persona text starts with, or ''."""
    found = _NAME.match(persona[:200])
    return found[1] if found else ''


def _headline(run: run_results.ReportedRun) -> dict[str, str]:
    """The persona's name, if it has one, and its first sentence."""
    mask, settings = run.any_mask, run.settings
    persona = persona_of(mask.system_prompt).strip() if mask else ''
    sentence = re.split(r'(?<=[.!?])\s', persona, maxsplit=1)[0]
    source = settings.calibration if settings else ''
    slug = source.removeprefix('demo:') if source.startswith('demo:') else ''
    short = textwrap.shorten(sentence, 80, placeholder=' …')
    title = name_of(persona) or slug or short or run.path.resolve().name
    return {
        'title': title,
        'sentence': templates.clip(sentence, 400) if title != sentence else '',
        'prompt': templates.clip(mask.system_prompt) if mask else '',
    }


def _facts(run: run_results.ReportedRun) -> dict[str, Any]:
    """Base model, sparsity and status, as far as known."""
    mask, settings = run.any_mask, run.settings
    facts: dict[str, Any] = {
        'base_model': settings.base_model if settings else None,
        'asked': settings.sparsity if settings else None,
        'keep': None,
        'granularity': settings.granularity if settings else 'channels',
        'gains': False,
        'keeps': None,
        'widths': None,
    }
    if mask is not None:
        rows, units = mask.mask.shape
        facts |= {'keep': mask.total // rows, 'units': units, 'layers': rows}
        facts['granularity'] = mask.granularity
        facts['gains'] = mask.has_gains
        if mask.kept is not None:
            counts = mask.kept.sum(axis=1)
            facts['widths'] = f'{counts.min()} to {counts.max()}'
        if mask.ranking is not None:
            facts['keeps'] = mask.ranking.keeps.text(units)
        facts['base_model'] = facts['base_model'] or mask.base_model
    elif run.efficiency:
        pruned = run_results.mapping(run.efficiency.get('pruned'))
        d_ff, layers = (
            formats.number(run.efficiency.get(x)) for x in ('d_ff', 'num_layers')
        )
        of_blocks = facts['granularity'] == 'blocks'
        keep = formats.number(pruned.get('layers' if of_blocks else 'keep'))
        units = layers if of_blocks else d_ff
        if keep and units and layers:
            facts |= {'keep': int(keep), 'units': int(units), 'layers': int(layers)}
    return facts


def _flat(value: Any, name: str = '') -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, value) pairs."""
    if isinstance(value, dict):
        return [
            pair
            for key, part in value.items()
            for pair in _flat(part, f'{name}.{key}' if name else str(key))
        ]
    text = value if isinstance(value, str) else json.dumps(value)
    return [(name, templates.clip(text))]


def _commands(run: run_results.ReportedRun) -> dict[str, str]:
    folder = run.settings.output_dir if run.settings else str(run.path)
    place = pathlib.PurePosixPath(folder)
    facts = _facts(run)
    base = shlex.quote(facts['base_model'] or 'BASE_MODEL')

    def at(name: str) -> str:
        return shlex.quote(str(place / name))

    verb = 'run' if run.is_staged else 'train'
    return {
        'train': f'python -m ppjax.{verb} --flagfile={at("config.flags")}',
        'chat_mask': f'python -m ppjax.chat --base_model={base} '
        f'--mask={at("mask.pmask")}',
        'chat_model': f'python -m ppjax.chat --model={at("hf")}',
        'hf_literal': repr(str(place / 'hf')),
    }


def _speed(run: run_results.ReportedRun) -> str:
    parts = []
    for name, unit in (
        ('examples_per_s', 'examples'),
        ('answer_tokens_per_s', 'answer tokens'),
    ):
        _, values = run.series('train', name)
        if len(values):
            parts.append(
                f'{formats.quantity(float(np.median(values)))} {unit} a second'
            )
    return ', '.join(parts)


def _perplexity(nll: float) -> str:
    """exp(nll), infinite where that overflows; fewer decimals where they mean nothing."""
    value = math.exp(nll) if nll < 700 else math.inf
    if value < 1000:
        return f'{value:.3f}'
    return f'{value:.0f}' if value < 1e7 else f'{value:.3g}'


def likelihood_table(run: run_results.ReportedRun) -> views.Table:
    """The held-out table, for the page and for the terminal."""
    dtype = run.efficiency.get('dtype') or (run.settings.dtype if run.settings else '')
    columns = (
        'NLL, nats per token',
        'Perplexity',
        'Difference to dense',
        'Parameters',
        f'Weights in {dtype}' if dtype else 'Weights',
    )
    rows = [
        (
            row.label,
            [
                views.TableCell(f'{row.nll:.4f}'),
                views.TableCell(_perplexity(row.nll)),
                views.cell(row.difference, formats.signed, row.interval),
                views.cell(row.parameters, formats.quantity),
                views.cell(row.bytes, lambda x: formats.quantity(x, 'B')),
            ],
        )
        for row in run_results.likelihood_rows(run)
    ]
    return views.Table('likelihood', columns, rows)


def _time(value: Any) -> str:
    try:
        moment = datetime.datetime.fromisoformat(str(value))
        return f'{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC'
    except (ValueError, OverflowError):
        return templates.clip(value, 40)


def _pruned(
    rows: Sequence[run_results.LikelihoodRow],
) -> run_results.LikelihoodRow | None:
    """What the run has come to: its last model, or else the learned mask."""
    by_name = {row.name: row for row in rows}
    made = (by_name.get(name) for name in ('recovered', 'refitted', 'learned'))
    return next((row for row in made if row is not None), None)


def _verdict(rows: Sequence[run_results.LikelihoodRow]) -> str:
    """The pruned model against the dense one, in a sentence."""
    pruned = _pruned(rows)
    if pruned is None or pruned.difference is None or pruned.interval is None:
        return ''
    low, high = pruned.interval
    figures = (
        f'{formats.signed(pruned.difference)} nats per answer token, 95 % interval '
        f'{formats.signed(low)} to {formats.signed(high)}'
    )
    if low <= 0 <= high:
        return (
            'No clear difference: how well the pruned and the dense model expect the '
            f"persona's held-out answers differs by {figures}, which includes 0."
        )
    side = 'better' if high < 0 else 'less well'
    return (
        f"The pruned model expects the persona's held-out answers {side} than the "
        f'dense model does ({figures}).'
    )


def _selection(run: run_results.ReportedRun) -> dict[str, Any] | None:
    """The choice of queries, if there was one and all of its figures are there."""
    figures = run_results.mapping(run.synthesis.get('selection'))
    means = [formats.number(figures.get(x)) for x in ('mean_kept', 'mean_all')]
    counts = [formats.number(figures.get(x)) for x in ('kept', 'queries')]
    if None in means or None in counts:
        return None
    return {
        'kept': int(counts[0] or 0),
        'queries': int(counts[1] or 0),
        'mean_kept': means[0],
        'mean_all': means[1],
        'plot': plots.sensitivity_plot(figures),
        'ends': [
            (title, _queries(figures.get(name)))
            for title, name in (('Most sensitive', 'highest'), ('Least', 'lowest'))
        ],
        'rewriting': run_results.mapping(run.synthesis.get('rewriting')),
    }


def _queries(listed: Any) -> list[tuple[str, float]]:
    found = []
    for entry in listed if isinstance(listed, list) else []:
        score = formats.number(run_results.mapping(entry).get('score'))
        if score is not None:
            found.append((str(entry.get('query', '')), score))
    return found


def _missing(run: run_results.ReportedRun) -> list[str]:
    parts = {
        'learned mask': run.mask,
        'held-out likelihood': run.likelihood,
        'sizes and FLOPs': run.efficiency,
        'answers side by side': run.samples,
        'exported model': run.exported,
    }
    if run.settings is not None and not run.settings.heldout:
        # Without --heldout these two will never be there.
        del parts['held-out likelihood'], parts['answers side by side']
    return [name for name, value in parts.items() if not value]


def render(run: run_results.ReportedRun) -> str:
    """The page as HTML text."""
    rows = run_results.likelihood_rows(run)
    sizes = efficiency.table(run.efficiency)
    return templates.render(
        'ppjax.evaluation.page',
        'report.html.jinja',
        run=run,
        headline=_headline(run),
        updated=_time(run.status.get('updated') or ''),
        facts=_facts(run),
        likelihood=likelihood_table(run),
        pruned=_pruned(rows),
        models=run_results.MODELS,
        heldout=run_results.mapping(run.likelihood.get('heldout')),
        resamples=bootstrap.RESAMPLES,
        curves=plots.step_plots(run),
        after_pruning=[
            plot for plot in (plots.refit_plot(run), plots.recovery_plot(run)) if plot
        ],
        masks=plots.mask_plots(run),
        kept_blocks=[] if run.mask is None else (run.mask.indices()[0] + 1).tolist(),
        evaluation=report_evaluation.sections(run.evaluation),
        score=report_evaluation.headline(run.evaluation),
        selection=_selection(run),
        sizes=sizes,
        size_table=report_views.sizes('sizes', run.efficiency),
        bars=plots.bars_plot(sizes),
        speed=_speed(run),
        settings=flags.to_flagfile(run.settings) if run.settings else '',
        versions=_flat(run_results.mapping(run.likelihood.get('versions'))),
        inputs=_flat(run.inputs),
        export=_flat(
            {
                x: run.export[x]
                for x in ('parameters', 'bytes', 'verify')
                if x in run.export
            }
        ),
        commands=_commands(run),
        verdict=_verdict(rows),
        missing=_missing(run),
    )


def write_report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes `report.html` of what a run directory holds, atomically.

    Args:
        run_dir: may be of a run that is still going on.

    Returns:
        The file.

    Raises:
        InputError: if the folder does not exist or cannot be written to.
    """
    run = run_results.read_run(run_dir)
    path = run.path / 'report.html'
    atomic.write_text(path, render(run))
    return path
