"""What a study comes to: rank.json, rank.md, rankings.csv, and text for a terminal."""

from collections.abc import Sequence
import csv
import io
import pathlib
from typing import Any

from ppjax.base import atomic, errors, versions
from ppjax.pages import formats, texts, views
from ppjax.pages import markdown as markdown_lib
from ppjax.ranking import dimensions, figures, study

PEOPLE = 'people'
# Relative to the run directory.
FILES = ('results/rank.json', 'results/rank.md', 'results/rankings.csv')
_TITLES = {dimension.name: dimension.title for dimension in dimensions.DIMENSIONS}
_NOTE = (
    'Ranks: 1 is the best. Dimensions: averaged over participants and items; overall: '
    'the mean of the dimensions; after ± the standard deviation over rankings, then '
    'the 95 % bootstrap interval over participants and items.'
)


def summarise(opened: study.Study) -> dict[str, Any]:
    """All figures of a study, as rank.json has them.

    Raises:
        InputError: if nothing was ranked yet.
    """
    asked = opened.questionnaire
    assert asked is not None
    rankings = opened.rankings()
    ranked = {one.participant for one in rankings}
    people = [
        one.code
        for one in opened.participants()
        if one.kind == study.PERSON and one.code in ranked
    ]
    judges = [one for one in opened.participants() if one.kind == study.JUDGE]
    if not ranked and not judges:
        raise errors.InputError(
            f'{opened.path} holds no rankings yet; python -m ppjax.rank --serve asks '
            'people for some, and --judge a model.'
        )

    def ranks(codes: Sequence[str]) -> Any:
        return figures.array(rankings, codes, asked.models, len(asked.items))

    groups: dict[str, Any] = {}
    if people:
        groups[PEOPLE] = {
            'kind': study.PERSON,
            'participants': len(people),
            'complete': sum(len(opened.done(x)) == len(asked.items) for x in people),
            **figures.summarise(ranks(people), asked.models),
        }
    agreements = {}
    for label, judge in zip(_labels(judges, ranked), judges, strict=True):
        shown = {
            number: asked.shown(judge.code, number)
            for number in range(1, len(asked.items) + 1)
        }
        own: dict[str, Any] = {
            'kind': study.JUDGE,
            'participant': judge.code,
            'consistency': figures.consistency(opened.replies(judge.code), shown),
        }
        if judge.code in ranked:
            own |= figures.summarise(ranks([judge.code]), asked.models)
            if people:
                agreements[label] = figures.agreement(
                    ranks(people), ranks([judge.code])
                )
        groups[label] = own
    return {
        'models': list(asked.models),
        'items': len(asked.items),
        'groups': groups,
        'spearman': agreements,
        'settings': {'seed': asked.seed, 'questionnaire': asked.digest},
        'versions': versions.versions(),
    }


def _labels(judges: Sequence[study.Participant], ranked: set[str]) -> list[str]:
    """A judge's name; with the rest of its code where several have it, or none."""
    names = [judge.name for judge in judges if judge.code in ranked]
    return [
        judge.name
        if names.count(judge.name) == 1
        and judge.code in ranked
        and judge.name != PEOPLE
        else f'{judge.name} ({judge.code.rpartition(":")[2]})'
        for judge in judges
    ]


def _ranked(found: dict[str, Any]) -> dict[str, Any]:
    return {name: own for name, own in found['groups'].items() if 'overall' in own}


def _cell(own: dict[str, Any]) -> views.TableCell:
    """A mean rank, its spread and its interval."""
    mean = formats.number(own['mean'])
    if mean is None:
        return views.NOTHING
    std, ends = formats.number(own['std']), formats.interval(own['interval'])
    detail = [] if std is None else [f'±\N{NO-BREAK SPACE}{std:.2f}']
    if ends:
        detail.append(f'[{ends[0]:.2f}, {ends[1]:.2f}]')
    return views.TableCell(f'{mean:.2f}', ' '.join(detail))


def tables(found: dict[str, Any]) -> list[views.Table]:
    """The figures as the paper's tables have them, and what judges are worth."""
    groups, models = _ranked(found), found['models']
    made = []
    if groups:
        made.append(
            views.Table(
                'overall',
                list(groups),
                [
                    (model, [_cell(own['overall'][model]) for own in groups.values()])
                    for model in models
                ],
                'Overall mean rank (as Table 5)',
            )
        )
    for name, own in groups.items():
        made.append(
            views.Table(
                'dimensions',
                list(_TITLES.values()),
                [
                    (
                        model,
                        [_cell(own['dimensions'][x][model]) for x in dimensions.NAMES],
                    )
                    for model in models
                ],
                f'Mean rank by dimension (as Table 9): {name}{_counted(own)}',
            )
        )
    if found['spearman']:
        rows = []
        for name, own in found['spearman'].items():
            for level, title in (('model_means', 'model means'), ('items', 'answers')):
                cells = [
                    views.cell(own[level][key], formats.decimals(3))
                    for key in ('overall', *dimensions.NAMES)
                ]
                rows.append((f'{name}, {own[level]["n"]} {title}', cells))
        columns = ['Overall', *_TITLES.values()]
        made.append(
            views.Table('spearman', columns, rows, 'Spearman, people and a judge')
        )
    rows = [
        (name, _consistency(own['consistency']))
        for name, own in found['groups'].items()
        if own['kind'] == study.JUDGE
    ]
    if rows:
        columns = [
            *('replies', 'no ranking', 'rankings', 'same both ways', 'pairs the same'),
            'rank of the first shown',
        ]
        title = 'Judges, asked in two orders'
        made.append(views.Table('consistency', columns, rows, title))
    return made


def _counted(own: dict[str, Any]) -> str:
    if own['kind'] != study.PERSON:
        return ''
    return f' ({own["participants"]} of them, {own["complete"]} with all items)'


def _consistency(own: dict[str, Any]) -> list[views.TableCell]:
    counts = [
        views.TableCell(str(own[name]))
        for name in ('n_replies', 'n_invalid', 'n_rankings')
    ]
    shares = [views.cell(own[name], formats.percent) for name in ('identical', 'pairs')]
    return [*counts, *shares, views.cell(own['rank_of_first'], formats.decimals(2))]


def _head(found: dict[str, Any]) -> str:
    return f'{found["items"]} items, {len(found["models"])} models.'


def text(found: dict[str, Any]) -> str:
    """The tables for a terminal."""
    part = views.Section('Rankings', _head(found), tables=tables(found), note=_NOTE)
    return texts.section(part)


def markdown(found: dict[str, Any]) -> str:
    """The tables as Markdown."""
    return f'# Rankings\n\n{_head(found)} {_NOTE}\n\n{markdown_lib.of_tables(tables(found))}'


def as_csv(rankings: Sequence[study.Ranking]) -> str:
    """A line for each rank of an answer."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator='\n')
    writer.writerow(study.Ranking._fields)
    for one in rankings:
        writer.writerow([*one[:-1], f'{one.rank:g}'])
    return made.getvalue()


def write(run: pathlib.Path, opened: study.Study) -> dict[str, Any]:
    """Writes the three files, each whole.

    Returns:
        What rank.json has.

    Raises:
        InputError: if nothing was ranked yet, or a file cannot be written.
    """
    found = summarise(opened)
    as_json, as_markdown, as_lines = (run / name for name in FILES)
    atomic.write_text(as_lines, as_csv(opened.rankings()))
    atomic.write_text(as_markdown, markdown(found))
    atomic.write_json(as_json, found)
    return found
