"""`masks.html`: a comparison of masks with its plots and tables."""

from collections.abc import Mapping

from ppjax.analysis import config as config_lib
from ppjax.analysis import plots, study, tables
from ppjax.base import flags
from ppjax.pages import formats, templates, views

_NOTE = (
    'Jaccard similarity is what two masks both keep over what either keeps, layers put '
    'one behind the other. Masks that keep any as many channels of every layer share '
    'some too: that is “by chance”, and what is above it is what masks have in common.'
)
_SEEDS = (
    'The similarities of all pairs of personas, in one {name} and in another (Figure '
    '4a of the paper). What is the same for every {name}, such as scores that start '
    'from activations, adds to r. Pairs that share a persona are not independent, as '
    'p takes them to be; with personas permuted (Mantel) it does not.'
)
_TEXTS = (
    'Similarity of masks against cosines between embeddings of the personas’ texts, {of} '
    '(Figure 4b of the paper).'
)
_EMBEDDINGS = {
    'base': 'means of the base model’s last hidden states',
    'local': 'means of last hidden states of {model}',
    'openai': 'from {model}',
}


def sections(cfg: config_lib.MasksConfig, found: study.Study) -> list[views.Section]:
    """What the page shows, and masks.md and the terminal as far as it is tables."""
    made = [_closeness(found)]
    if found.repeated and len(found.personas) > 1:
        name = found.kind
        made.append(
            views.Section(
                f'Between {name}s',
                _SEEDS.format(name=name),
                plots=plots.seed_plots(found),
                tables=[tables.seeds(found)],
            )
        )
    heat, tree = plots.heat_plots(found), plots.tree_plot(found)
    matrix = tables.personas(found)
    made.append(
        views.Section(
            'Which masks are alike',
            'Pairs of personas, and all masks by average linkage (Figure 5 of the '
            'paper).',
            plots=[plot for plot in (*heat, tree) if plot],
            tables=[matrix] if matrix else [],
        )
    )
    if found.alignment is not None:
        of = _EMBEDDINGS[cfg.embeddings].format(model=cfg.embedding_model)
        made.append(
            views.Section(
                'What texts are about',
                _TEXTS.format(of=of),
                plots=[plots.alignment_plot(found.alignment)],
                tables=[tables.alignment(found.alignment)],
            )
        )
    if found.layers is not None:
        made.append(
            views.Section(
                'By layer',
                'Means over pairs of masks.',
                plots=[plots.layers_plot(found.layers)],
                tables=[tables.layers(found.layers)],
            )
        )
    made.append(
        views.Section('Masks', 'What was compared.', tables=[tables.masks(found)])
    )
    return made


def _closeness(found: study.Study) -> views.Section:
    note = 'Intervals: 95 %, personas drawn with replacement.'
    if len(found.personas) < 3:
        note = 'Fewer than three personas: no intervals.'
    if found.repeated and found.closeness.between_other is not None:
        note += (
            f' Masks of two personas and one {found.kind} may be alike for that alone, '
            f'so those of one persona are compared with two {found.kind}s.'
        )
    return views.Section(
        'Within and between personas',
        _NOTE,
        tables=[tables.closeness(found)],
        note=note,
    )


def render(
    cfg: config_lib.MasksConfig,
    found: study.Study,
    parts: list[views.Section],
    versions: Mapping[str, str],
) -> str:
    """The page as HTML text.

    Args:
        cfg: of the comparison.
        found: it.
        parts: see `sections`.
        versions: what it was made with.
    """
    first = found.masks[0].mask
    kept = [1 - mask.mask.total / mask.mask.mask.size for mask in found.masks]
    sparsity = formats.percent(min(kept))
    if max(kept) > min(kept):
        sparsity += f' to {formats.percent(max(kept))}'
    return templates.render(
        'ppjax.analysis',
        'masks.html.jinja',
        base=first.base_model,
        fingerprint=first.base_fingerprint[:12],
        masks=len(found.masks),
        personas=found.personas,
        repetitions=found.repetitions,
        sparsity=sparsity,
        granularity=first.granularity,
        notes=found.notes,
        sections=parts,
        settings=flags.to_flagfile(cfg, omit=('overwrite',)),
        output_dir=cfg.output_dir,
        versions=list(versions.items()),
    )
