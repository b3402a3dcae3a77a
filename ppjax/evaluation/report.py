"""`report.html`: what a run directory holds, for a person to look at.

One file that loads nothing from elsewhere. Every part is optional, so that a run
can be looked at while it is still learning.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import datetime
import functools
import importlib.resources
import io
import json
import math
import pathlib
import re
import shlex
import textwrap
from typing import Any

import jinja2
import markupsafe
import matplotlib
from matplotlib import colors, ticker
from matplotlib import figure as figure_lib
import numpy as np

import ppjax
from ppjax import atomic, errors, flags
from ppjax.evaluation import efficiency
from ppjax.masking import pmask
from ppjax.personas import prompts
from ppjax.training import config as config_lib

MODELS = {
    'dense': 'Dense model',
    'random': 'Random mask',
    'one_shot': 'One-shot activation mask',
    'learned': 'Learned mask',
}

_RESAMPLES = 2000
_HEAT_BINS = 96
# Longer texts are cut: a page with megabytes of them opens on no phone.
_LONGEST_TEXT = 20_000

# Drawn in these colours, then replaced by the page's CSS variables, so that one
# drawing serves the light and the dark theme.
_PAINTS = {
    name: f'#0000{number:02x}'
    for number, name in enumerate(
        ('ink', 'muted', 'line', 'learned', 'heldout', 'dense', 'one_shot', 'random'),
        start=1,  # Matplotlib leaves out black, SVG's own default.
    )
}
# Read at that strength on white and on black alike; weaker is more transparent.
_HEAT_COLOUR = '#3b7ddd'
_STYLE = {
    'axes.axisbelow': True,
    'axes.edgecolor': _PAINTS['line'],
    'axes.formatter.use_mathtext': False,
    'axes.grid': True,
    'axes.grid.axis': 'y',
    'axes.labelcolor': _PAINTS['muted'],
    'axes.spines.right': False,
    'axes.spines.top': False,
    'font.size': 9.5,
    'grid.color': _PAINTS['line'],
    'grid.linewidth': 0.6,
    'svg.fonttype': 'none',
    'svg.hashsalt': 'ppjax',
    'text.color': _PAINTS['ink'],
    'xtick.color': _PAINTS['line'],
    'xtick.labelcolor': _PAINTS['muted'],
    'ytick.color': _PAINTS['line'],
    'ytick.labelcolor': _PAINTS['muted'],
    'ytick.left': False,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds; None or empty where there is nothing.

    Attributes:
        path: the run directory.
        settings: of mask learning.
        status: status.json.
        inputs: name -> sha256 of what was read.
        metrics: the entries of metrics.jsonl.
        mask: the learned mask.
        start_mask: the mask of the starting scores.
        likelihood: results/likelihood.json.
        efficiency: results/efficiency.json.
        samples: dense and pruned answers.
        export: results/export.json.
        exported: whether there is a pruned checkpoint.
        problems: files that are there and could not be read, and why.
    """

    path: pathlib.Path
    settings: config_lib.TrainConfig | None
    status: dict[str, Any]
    inputs: dict[str, Any]
    metrics: list[dict[str, Any]]
    mask: pmask.PersonaMask | None
    start_mask: pmask.PersonaMask | None
    likelihood: dict[str, Any]
    efficiency: dict[str, Any]
    samples: list[dict[str, Any]]
    export: dict[str, Any]
    exported: bool
    problems: list[str]

    def series(self, stage: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of one metric, non-finite values left out."""
        found = [
            (entry['step'], entry[name])
            for entry in self.metrics
            if entry.get('stage') == stage
            and efficiency.number(entry.get('step')) is not None
            and efficiency.number(entry.get(name)) is not None
        ]
        steps, values = np.array(found, float).reshape(-1, 2).T
        return steps, values

    @property
    def any_mask(self) -> pmask.PersonaMask | None:
        """The learned mask, or the one it starts from."""
        return self.mask or self.start_mask


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_run(run_dir: str | pathlib.Path) -> Run:
    """Reads whatever of a run is there.

    Raises:
        InputError: if the folder does not exist.
    """
    path = pathlib.Path(run_dir)
    if not path.is_dir():
        raise errors.InputError(f'Run directory {str(path)!r} does not exist.')
    problems: list[str] = []

    def attempt(name: str, read: Callable[[pathlib.Path], Any], absent: Any) -> Any:
        if not (path / name).exists():
            return absent
        try:
            value = read(path / name)
        except (errors.InputError, OSError, ValueError, RecursionError) as error:
            problems.append(f'{name}: {error}')
            return absent
        if absent is not None and not isinstance(value, type(absent)):
            problems.append(f'{name} holds a {type(value).__name__}.')
            return absent
        return value

    def read_json(file: pathlib.Path) -> Any:
        return json.loads(file.read_text('utf-8'))

    def read_samples(file: pathlib.Path) -> Any:
        value = read_json(file)
        listed = value.get('samples', []) if isinstance(value, dict) else value
        if not isinstance(listed, list):
            return listed
        return [sample for sample in listed if isinstance(sample, dict)]

    def read_settings(file: pathlib.Path) -> config_lib.TrainConfig:
        return flags.from_flagfile(config_lib.TrainConfig, file)

    return Run(
        path=path,
        settings=attempt('config.flags', read_settings, None),
        status=attempt('status.json', read_json, {}),
        inputs=attempt('inputs.json', read_json, {}),
        metrics=attempt('metrics.jsonl', _read_metrics, []),
        mask=attempt('mask.pmask', pmask.load, None),
        start_mask=attempt('results/start_mask.pmask', pmask.load, None),
        likelihood=attempt('results/likelihood.json', read_json, {}),
        efficiency=attempt('results/efficiency.json', read_json, {}),
        samples=attempt('results/samples.json', read_samples, []),
        export=attempt('results/export.json', read_json, {}),
        exported=(path / 'hf' / 'config.json').is_file(),
        problems=problems,
    )


def _read_metrics(file: pathlib.Path) -> list[dict[str, Any]]:
    entries = []
    for line in file.read_text('utf-8', errors='replace').splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):  # The torn last line of a live run.
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


# Held-out persona likelihood.


@dataclasses.dataclass(frozen=True)
class LikelihoodRow:
    """One model's line of the held-out table.

    Attributes:
        name: a key of `MODELS`.
        nll: nats per answer token.
        difference: of `nll` to the dense model's.
        interval: 95 % bootstrap interval of the difference; None for the dense
            model, or without the examples' figures.
        parameters: every parameter once.
        bytes: of these, at the run's dtype.
    """

    name: str
    nll: float
    difference: float | None
    interval: tuple[float, float] | None
    parameters: float | None
    bytes: float | None

    @property
    def label(self) -> str:
        return MODELS[self.name]

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def bootstrap_interval(
    differences: np.ndarray,
    tokens: np.ndarray,
    *,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of sum(differences) / sum(tokens) over examples.

    Examples, not tokens, are drawn: the tokens of one answer are not independent.

    Args:
        differences: [n] nats of each example's answer, of one model less another.
        tokens: [n] answer tokens.
        resamples: draws of n examples with replacement.
        seed: of the draws.

    Raises:
        ValueError: if there are no examples, or the shapes differ.
    """
    if differences.shape != tokens.shape or differences.ndim != 1 or not len(tokens):
        raise ValueError(
            'differences and tokens must be [n] with n at least 1, got '
            f'{differences.shape} and {tokens.shape}.'
        )
    rng = np.random.default_rng(seed)
    count = len(tokens)
    means = []
    for _ in range(resamples):
        drawn = rng.integers(count, size=count)
        means.append(differences[drawn].sum() / tokens[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def likelihood_rows(run: Run) -> list[LikelihoodRow]:
    """The held-out table in the order of `MODELS`; empty before it is measured."""
    models = _mapping(run.likelihood.get('models'))
    nll = {
        name: efficiency.number(_mapping(models.get(name)).get('nll'))
        for name in MODELS
    }
    rows = []
    for name, value in nll.items():
        if value is None:
            continue
        dense = nll['dense']
        side = 'dense' if name == 'dense' else 'pruned'
        figures = _mapping(run.efficiency.get(side)) or {
            key: _mapping(run.export.get(key)).get(side)
            for key in ('parameters', 'bytes')
        }
        rows.append(
            LikelihoodRow(
                name=name,
                nll=value,
                difference=None if dense is None else value - dense,
                interval=_interval(run.likelihood, name),
                parameters=efficiency.number(figures.get('parameters')),
                bytes=efficiency.number(figures.get('bytes')),
            )
        )
    return rows


def _interval(likelihood: dict[str, Any], name: str) -> tuple[float, float] | None:
    if name == 'dense':
        return None
    listed = likelihood.get('examples')
    triples = [
        tuple(
            efficiency.number(example.get(key))
            for key in ('dense', name, 'answer_tokens')
        )
        for example in (listed if isinstance(listed, list) else [])
        if isinstance(example, dict)
    ]
    whole = [triple for triple in triples if None not in triple and triple[2]]
    if not whole:
        return None
    dense, other, tokens = np.array(whole, float).T
    return bootstrap_interval(other - dense, tokens)


# Plots.


def _svg(
    paint: Callable[[Any], None], label: str, *, height: float = 2.5
) -> markupsafe.Markup:
    """Draws on fresh axes and gives inline SVG in the page's own colours and font."""
    with matplotlib.rc_context(_STYLE):
        # 4 inches: on a phone's 340 pixels the letters shrink by an eighth only.
        figure = figure_lib.Figure(figsize=(4.0, height), layout='constrained')
        paint(figure.add_subplot())
        text = io.StringIO()
        nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
        figure.savefig(text, format='svg', transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index('<svg') :]
    for name, paint_code in _PAINTS.items():
        svg = re.sub(rf'{paint_code}\b', f'var(--{name})', svg)
    svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)
    svg = re.sub(r'font-family: [^;"]*;?', '', svg)
    # Ids are unique within a drawing only, and only marks and clips are referred to.
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', svg))
    prefix = re.sub(r'\W+', '-', label.lower())

    def rename(match: re.Match[str]) -> str:
        return f' id="{prefix}-{match[1]}"' if match[1] in used else ''

    svg = re.sub(r'\sid="([^"]*)"', rename, svg)
    svg = re.sub(r'(href="|url\()#', rf'\1#{prefix}-', svg)
    size = re.compile(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"')
    svg = size.sub(rf'\1 role="img" aria-label="{markupsafe.escape(label)}"', svg, 1)
    return markupsafe.Markup(svg)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a 12th of the run, cut short at its ends.

    Symmetric at the start, where curves fall steeply; towards the end it loses its
    right side only, so that the last values are not single ones.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    left = np.minimum(len(values) // 24, index)
    right = np.minimum(left, index[::-1])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def _curve(axes: Any, steps: np.ndarray, values: np.ndarray, paint: str) -> None:
    """Each step's value pale, their running mean over it."""
    if len(values) < 50:
        axes.plot(steps, values, color=_PAINTS[paint], marker='.', linewidth=1.4)
        return
    axes.plot(steps, values, color=_PAINTS[paint], alpha=0.4, linewidth=0.7)
    axes.plot(steps, _smooth(values), color=_PAINTS[paint], linewidth=1.7)


def _label_steps(axes: Any) -> None:
    axes.set_xlabel('optimizer step')
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    axes.margins(x=0.02)


def readable_limits(
    curves: np.ndarray, references: Iterable[float]
) -> tuple[float, float]:
    """y-limits that show the curves, and of the reference lines those near by.

    Args:
        curves: values to show; outliers may be cut.
        references: horizontal lines. These, and the curves' extremes, are left
            outside if they are farther off than three quarters of the range that
            94 % of the curves' values take.
    """
    low, high = np.quantile(curves, [0.03, 0.97])
    reach = 0.75 * max(high - low, 0.05 * abs(high), 1e-3)
    wanted = [curves.min(), curves.max(), *references]
    near = [x for x in wanted if low - reach <= x <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.07 * max(high - low, 0.02 * abs(high), 1e-3)
    return float(low - margin), float(high + margin)


def _loss_plot(run: Run) -> dict[str, Any] | None:
    steps, loss = run.series('train', 'loss')
    held_steps, held = run.series('heldout', 'heldout_nll')
    if not len(loss) and not len(held):
        return None
    lines = {row.name: row.nll for row in likelihood_rows(run)}
    lines.pop('learned', None)
    # A held-out figure weighs like a tenth of the run: there are few of them.
    weight = max(1, len(loss) // 10)
    core = np.concatenate([loss, np.repeat(held, weight)])
    low, high = readable_limits(core, lines.values())
    dashes = {'dense': 'dashed', 'one_shot': 'dashdot', 'random': 'dotted'}

    def paint(axes: Any) -> None:
        if len(loss):
            _curve(axes, steps, loss, 'learned')
        if len(held):
            axes.plot(
                held_steps,
                held,
                color=_PAINTS['heldout'],
                marker='o',
                markersize=3.5,
                linewidth=1.7,
            )
        for name, value in lines.items():
            if low <= value <= high:
                axes.axhline(
                    value, color=_PAINTS[name], linestyle=dashes[name], linewidth=1.3
                )
        axes.set_ylim(low, high)
        axes.set_ylabel('nats per answer token')
        _label_steps(axes)

    def beyond(value: float) -> str:
        if low <= value <= high:
            return ''
        return ', above the plot' if value > high else ', below the plot'

    legend = []
    if len(loss):
        note = f'; up to {loss.max():.3f}, above the plot' if loss.max() > high else ''
        legend.append(('learned', 'solid', f'Loss on the calibration set{note}'))
    if len(held):
        legend.append(('heldout', 'solid', f'Held-out NLL, now {held[-1]:.4f}'))
    legend += [
        (name, dashes[name], f'{MODELS[name]} {value:.4f}{beyond(value)}')
        for name, value in lines.items()
    ]
    return {
        'title': 'Loss',
        'svg': _svg(paint, 'Loss over steps', height=2.9),
        'legend': legend,
        'note': 'Thin: each step. Thick: running mean.' if len(loss) >= 50 else '',
    }


def _log_ticks(axes: Any, form: str) -> None:
    axes.set_yscale('log')
    low, high = axes.get_ylim()
    # Over many decades, labels between the powers of ten would overlap.
    between = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=between, numticks=8))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: form.format(y)))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def _step_plots(run: Run) -> list[dict[str, Any]]:
    """Flips, gradient norm and learning rate."""
    plots = []
    for name, title, unit, form, note in (
        (
            'flip_fraction',
            'Mask bits flipped by each step',
            100.0,
            '{:g} %',
            'Share of all L x F bits; logarithmic.',
        ),
        ('grad_norm', 'Gradient norm', 1.0, '{:g}', 'Over all scores; logarithmic.'),
        ('learning_rate', 'Learning rate', 1.0, '', ''),
    ):
        steps, values = run.series('train', name)
        if not len(values):
            continue
        shown = values > 0 if form else np.full(len(values), True)
        if not shown.all():
            note += f' Not shown: {(~shown).sum()} at 0.'
        if not shown.any():
            plots.append({'title': title, 'svg': '', 'legend': [], 'note': note})
            continue

        def paint(
            axes: Any,
            steps: np.ndarray = steps[shown],
            values: np.ndarray = values[shown] * unit,
            form: str = form,
        ) -> None:
            if form:
                _curve(axes, steps, values, 'learned')
                _log_ticks(axes, form)
            else:
                axes.plot(steps, values, color=_PAINTS['learned'], linewidth=1.7)
                axes.set_ylim(bottom=0)
            _label_steps(axes)

        plots.append(
            {'title': title, 'svg': _svg(paint, title), 'legend': [], 'note': note}
        )
    return plots


def kept_share(mask: np.ndarray, bins: int) -> np.ndarray:
    """Share of channels kept in runs of neighbours, bool [L, F] -> [L, bins]."""
    edges = np.linspace(0, mask.shape[1], min(bins, mask.shape[1]) + 1).round()
    starts = edges[:-1].astype(int)
    sums = np.add.reduceat(mask.astype(float), starts, axis=1)
    return sums / np.diff(edges)[None, :]


def _heat_plot(mask: np.ndarray) -> dict[str, Any]:
    share = kept_share(mask, _HEAT_BINS)
    low, high = float(share.min()), float(share.max())
    fades = [(*colors.to_rgb(_HEAT_COLOUR), alpha) for alpha in np.linspace(0, 1, 256)]
    layers = len(mask)

    def paint(axes: Any) -> None:
        axes.imshow(
            share,
            aspect='auto',
            cmap=colors.ListedColormap(fades),
            extent=(0, mask.shape[1], layers + 0.5, 0.5),
            interpolation='none',
            vmin=low,
            vmax=max(high, low + 1e-6),
        )
        axes.grid(False)
        axes.set_xlabel('FFN channel')
        axes.set_ylabel('layer')
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))

    width = mask.shape[1] / share.shape[1]
    return {
        'title': 'Where channels are kept',
        'svg': _svg(paint, 'Kept channels', height=min(4.0, 1.6 + 0.05 * layers)),
        'legend': [],
        'note': f'Share kept among {width:.3g} neighbouring channels: pale {100 * low:.0f} %, '
        f'full colour {100 * high:.0f} %; on average {100 * mask.mean():.1f} %.',
    }


def _overlap_plot(mask: np.ndarray, start: np.ndarray) -> dict[str, Any]:
    overlap = 100 * (mask & start).sum(axis=1) / mask.sum(axis=1)
    chance = 100 * float(start.mean())
    layers = np.arange(1, len(mask) + 1)

    def paint(axes: Any) -> None:
        axes.axhline(chance, color=_PAINTS['random'], linestyle=':', linewidth=1.3)
        axes.plot(layers, overlap, color=_PAINTS['learned'], marker='o', markersize=3.5)
        bottom = min(chance, overlap.min())
        axes.set_ylim(bottom - 0.06 * (100 - bottom) - 0.5, 100.5)
        axes.set_xlabel('layer')
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:g} %'))

    return {
        'title': 'Kept channels that the starting mask kept too',
        'svg': _svg(paint, 'Overlap with the start'),
        'legend': [
            ('learned', 'solid', f'Overlap, {overlap.mean():.1f} % on average'),
            ('random', 'dotted', f'Two unrelated masks, {chance:.1f} %'),
        ],
        'note': '',
    }


def _mask_plots(run: Run) -> list[dict[str, Any]]:
    if run.mask is None:
        return []
    plots = [_heat_plot(run.mask.mask)]
    if run.start_mask is not None and run.start_mask.mask.shape == run.mask.mask.shape:
        plots.append(_overlap_plot(run.mask.mask, run.start_mask.mask))
    return plots


def _bars_plot(rows: Sequence[efficiency.TableRow]) -> dict[str, Any] | None:
    drawn = [row for row in rows if row.drawn][::-1]
    if not drawn:
        return None

    def paint(axes: Any) -> None:
        places = np.arange(len(drawn))
        ratios = [100 * row.ratio for row in drawn]
        axes.barh(places, 100, height=0.56, color=_PAINTS['line'])
        axes.barh(places, ratios, height=0.56, color=_PAINTS['learned'])
        for place, ratio in zip(places, ratios, strict=True):
            axes.text(103, place, f'{ratio:.1f} %', va='center')
        axes.set_yticks(places, [row.label for row in drawn])
        axes.tick_params(axis='y', labelcolor=_PAINTS['ink'])
        axes.set_xlim(0, 128)
        axes.set_xticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)

    return {
        'title': 'The pruned model as a share of the dense one',
        'svg': _svg(paint, 'Pruned as a share of dense', height=2.2),
        'legend': [('learned', 'block', 'Pruned'), ('line', 'block', 'Dense, 100 %')],
        'note': '',
    }


# The page.


def _clip(text: Any, limit: int = _LONGEST_TEXT) -> str:
    text = str(text)
    if len(text) <= limit:
        return text
    return f'{text[:limit]} … ({len(text) - limit} more characters)'


def persona_of(system_prompt: str) -> str:
    """The persona text within a persona prompt, or the prompt if it is another."""
    before, after = prompts.persona_prompt('\0').split('\0')
    if system_prompt.startswith(before) and system_prompt.endswith(after):
        return system_prompt[len(before) : len(system_prompt) - len(after)]
    return system_prompt


# Capitalised words at the start, up to a verb or comma: 'Old Bram Tidewater has ...'.
_NAME = re.compile(
    r"((?!(?:An?|The|You|I|He|She|They|It|This|My|Your)\b)['\"“‘]?[^\W\d_a-z][\w.'’”\"-]*"
    r"(?: ['\"“‘]?[^\W\d_a-z][\w.'’”\"-]*){0,4})(?=,| (?:is|was|has)\b)"
)


def name_of(persona: str) -> str:
    """The name that a persona text starts with, or ''."""
    found = _NAME.match(persona[:200])
    return found[1] if found else ''


def _headline(run: Run) -> dict[str, str]:
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
        'sentence': _clip(sentence, 400) if title != sentence else '',
        'prompt': _clip(mask.system_prompt) if mask else '',
    }


def _facts(run: Run) -> dict[str, Any]:
    """Base model, sparsity and status, as far as known."""
    mask, settings = run.any_mask, run.settings
    facts: dict[str, Any] = {
        'base_model': settings.base_model if settings else None,
        'asked': settings.sparsity if settings else None,
        'keep': None,
    }
    if mask is not None:
        layers, d_ff = mask.mask.shape
        facts |= {'keep': mask.keep, 'd_ff': d_ff, 'layers': layers}
        facts['base_model'] = facts['base_model'] or mask.base_model
    elif run.efficiency:
        keep = efficiency.number(_mapping(run.efficiency.get('pruned')).get('keep'))
        d_ff, layers = (
            efficiency.number(run.efficiency.get(x)) for x in ('d_ff', 'num_layers')
        )
        if keep and d_ff and layers:
            facts |= {'keep': int(keep), 'd_ff': int(d_ff), 'layers': int(layers)}
    return facts


def _flat(value: Any, name: str = '') -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, value) pairs."""
    if isinstance(value, dict):
        return [
            pair
            for key, part in value.items()
            for pair in _flat(part, f'{name}.{key}' if name else str(key))
        ]
    return [(name, _clip(json.dumps(value) if not isinstance(value, str) else value))]


def _commands(run: Run) -> dict[str, str]:
    folder = run.settings.output_dir if run.settings else str(run.path)
    place = pathlib.PurePosixPath(folder)
    facts = _facts(run)
    base = shlex.quote(facts['base_model'] or 'BASE_MODEL')

    def at(name: str) -> str:
        return shlex.quote(str(place / name))

    return {
        'train': f'python -m ppjax.train --flagfile={at("config.flags")}',
        'chat_mask': f'python -m ppjax.chat --base_model={base} '
        f'--mask={at("mask.pmask")}',
        'chat_model': f'python -m ppjax.chat --model={at("hf")}',
        'hf_literal': repr(str(place / 'hf')),
    }


def _speed(run: Run) -> str:
    parts = []
    for name, unit in (
        ('examples_per_s', 'examples'),
        ('answer_tokens_per_s', 'answer tokens'),
    ):
        _, values = run.series('train', name)
        if len(values):
            parts.append(
                f'{efficiency.quantity(float(np.median(values)))} {unit} a second'
            )
    return ', '.join(parts)


def _signed(value: float, digits: int = 4) -> str:
    text = f'{value:+.{digits}f}'.replace('-', '−')
    return text if float(text.replace('−', '-')) else text[1:]


def perplexity_text(value: float) -> str:
    """Three decimals, fewer where they mean nothing."""
    if value < 1000:
        return f'{value:.3f}'
    return f'{value:.0f}' if value < 1e7 else f'{value:.3g}'


def _time(value: Any) -> str:
    try:
        moment = datetime.datetime.fromisoformat(str(value))
        return f'{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC'
    except (ValueError, OverflowError):
        return _clip(value, 40)


def _verdict(rows: Sequence[LikelihoodRow]) -> str:
    """The learned mask against the dense model, in a sentence."""
    by_name = {row.name: row for row in rows}
    learned = by_name.get('learned')
    if learned is None or learned.difference is None or learned.interval is None:
        return ''
    low, high = learned.interval
    if high < 0:
        said = "expects the persona's held-out answers better than the dense model does"
    elif low > 0:
        said = "expects the persona's held-out answers less well than the dense model"
    else:
        said = (
            "and the dense model expect the persona's held-out answers about equally "
            'well: the interval includes 0'
        )
    return (
        f'The pruned model {said} ({_signed(learned.difference)} nats per answer '
        f'token, 95 % interval {_signed(low)} to {_signed(high)}).'
    )


def _missing(run: Run) -> list[str]:
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


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        'quantity': efficiency.quantity,
        'signed': _signed,
        'clip': _clip,
        'perplexity': perplexity_text,
        'time': _time,
    }
    source = importlib.resources.files('ppjax.evaluation') / 'report.html.jinja'
    return environment.from_string(source.read_text('utf-8'))


def render(run: Run) -> str:
    """The page as HTML text."""
    rows = likelihood_rows(run)
    sizes = efficiency.table(run.efficiency)
    page = _template().render(
        run=run,
        headline=_headline(run),
        facts=_facts(run),
        rows=rows,
        learned=next((row for row in rows if row.name == 'learned'), None),
        heldout=_mapping(run.likelihood.get('heldout')),
        resamples=_RESAMPLES,
        curves=[plot for plot in (_loss_plot(run), *_step_plots(run)) if plot],
        masks=_mask_plots(run),
        sizes=sizes,
        bars=_bars_plot(sizes),
        speed=_speed(run),
        settings=_flat(dataclasses.asdict(run.settings)) if run.settings else [],
        versions=_flat(_mapping(run.likelihood.get('versions'))),
        inputs=_flat(run.inputs),
        export=[
            pair
            for name in ('parameters', 'bytes', 'verify')
            if name in run.export
            for pair in _flat(run.export[name], name)
        ],
        commands=_commands(run),
        verdict=_verdict(rows),
        missing=_missing(run),
        tool_version=ppjax.__version__,
    )
    # Neither lone surrogates nor control characters may stand in HTML.
    page = page.encode('utf-8', 'replace').decode('utf-8')
    return re.sub(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]', '\ufffd', page)


def write_report(run_dir: str | pathlib.Path) -> pathlib.Path:
    """Writes `report.html` of what a run directory holds, atomically.

    Args:
        run_dir: may be of a run that is still going on.

    Returns:
        The file.

    Raises:
        InputError: if the folder does not exist or cannot be written to.
    """
    run = read_run(run_dir)
    path = run.path / 'report.html'
    atomic.write_text(path, render(run))
    return path
