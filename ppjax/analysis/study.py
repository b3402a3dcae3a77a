"""All that is compared of a set of masks."""

from collections.abc import Sequence
import dataclasses
import itertools

import numpy as np

from ppjax.analysis import closeness as closeness_lib
from ppjax.analysis import clustering, config, correlation, embeddings, labels, overlap
from ppjax.base import progress as progress_lib
from ppjax.masking import granularity


@dataclasses.dataclass(frozen=True)
class SeedPair:
    """Two repetitions, and how alike the similarities of personas are in both.

    Attributes:
        first: the name of one.
        second: of the other.
        found: over the pairs of personas that have a mask in both.
    """

    first: str
    second: str
    found: correlation.Correlation


@dataclasses.dataclass(frozen=True)
class LayerMeans:
    """Jaccard similarity in every layer, means over pairs of masks, [L] each.

    Attributes:
        within: of one persona; None if no persona has two masks.
        between: of two personas; None if there is one.
        chance: of any two masks that keep as many.
    """

    within: np.ndarray | None
    between: np.ndarray | None
    chance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Masks' similarity beside what personas' texts are about.

    Attributes:
        personas: whose texts are known, S of them.
        masks: Jaccard similarity of two personas' masks, [S, S].
        texts: cosines of their texts' embeddings, [S, S].
        found: of the two.
    """

    personas: list[str]
    masks: np.ndarray
    texts: np.ndarray
    found: correlation.Correlation


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of N masks of P personas.

    Attributes:
        masks: N of them.
        kind: what tells a persona's masks from each other, such as `labels.SEED`.
        personas: P names, like ones beside each other.
        repetitions: their names, in the order in which they come up.
        similarity: Jaccard, [N, N].
        chance: what it would be by chance, [N, N].
        of_personas: mean similarity of two personas' masks, [P, P]; on the diagonal of
            those of one, NaN if it has no two.
        closeness: within personas against between them.
        by_repetition: name -> [P, P] similarity of the masks of one repetition; NaN
            where a persona has none.
        seed_pairs: every two repetitions.
        alignment: None without embeddings.
        layers: None for masks of blocks.
        tree: of all masks.
        notes: what is left out, and why.
    """

    masks: Sequence[labels.ComparedMask]
    kind: str
    personas: list[str]
    repetitions: list[str]
    similarity: np.ndarray
    chance: np.ndarray
    of_personas: np.ndarray
    closeness: closeness_lib.Closeness
    by_repetition: dict[str, np.ndarray]
    seed_pairs: list[SeedPair]
    alignment: Alignment | None
    layers: LayerMeans | None
    tree: clustering.Tree
    notes: list[str]

    @property
    def repeated(self) -> bool:
        """Whether a persona has two masks."""
        return self.closeness.within is not None


def of_masks(
    cfg: config.MasksConfig, masks: Sequence[labels.ComparedMask], kind: str
) -> Study:
    """Compares masks, two at least, of one base model.

    Args:
        cfg: says whose embeddings they are compared with, and the seed of draws.
        masks: see `labels.compared`.
        kind: likewise.

    Raises:
        InputError: if embeddings cannot be had.
    """
    overlaps = overlap.Overlaps.of([mask.mask.chosen for mask in masks])
    similarity, chance = overlaps.jaccard(), overlaps.chance()
    personas, of_personas = _of_personas(masks, similarity)
    repetitions = list(dict.fromkeys(mask.repetition for mask in masks))
    if kind == labels.SEED:
        repetitions.sort(key=lambda name: int(name.split()[-1]))
    by_repetition = {
        name: _table_of(masks, similarity, personas, name) for name in repetitions
    }
    alignment, missing = _alignment(cfg, masks, of_personas, personas)
    measured = closeness_lib.measure(
        masks, similarity, personas, named=kind != labels.NUMBER, seed=cfg.seed
    )
    return Study(
        masks=masks,
        kind=kind,
        personas=personas,
        repetitions=repetitions,
        similarity=similarity,
        chance=chance,
        of_personas=of_personas,
        closeness=measured,
        by_repetition=by_repetition,
        seed_pairs=[
            SeedPair(a, b, correlation.correlate(*tables, seed=cfg.seed))
            for (a, b), tables in zip(
                itertools.combinations(repetitions, 2),
                itertools.combinations(by_repetition.values(), 2),
                strict=True,
            )
        ],
        alignment=alignment,
        layers=_layers(masks, overlaps),
        tree=clustering.tree(similarity),
        notes=[*_notes(masks, similarity, kind, measured), *missing],
    )


def _of_personas(
    masks: Sequence[labels.ComparedMask], similarity: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Personas, those with like masks beside each other, and their similarity [P, P].

    Between two of them it is the mean over the repetitions that all personas have, as
    others would count for some pairs only; over all pairs of masks if there is none.
    """
    names = list(dict.fromkeys(mask.persona for mask in masks))
    means, _ = closeness_lib.table(masks, similarity, names)
    if len(names) < 2:
        return names, means
    tables = [
        _table_of(masks, similarity, names, repetition)
        for repetition in dict.fromkeys(mask.repetition for mask in masks)
    ]
    if whole := [table for table in tables if not np.isnan(table).any()]:
        off = ~np.eye(len(names), dtype=bool)
        means[off] = np.mean(whole, axis=0)[off]
    joined = means.copy()
    np.fill_diagonal(joined, 1.0)
    order = clustering.tree(joined).order
    return [names[place] for place in order], means[np.ix_(order, order)]


def _table_of(
    masks: Sequence[labels.ComparedMask],
    similarity: np.ndarray,
    personas: Sequence[str],
    repetition: str,
) -> np.ndarray:
    """Similarity [P, P] of one repetition's masks; NaN where a persona has none."""
    places = {
        mask.persona: place
        for place, mask in enumerate(masks)
        if mask.repetition == repetition
    }
    there = [number for number, name in enumerate(personas) if name in places]
    own = [places[personas[number]] for number in there]
    found = np.full((len(personas), len(personas)), np.nan)
    found[np.ix_(there, there)] = similarity[np.ix_(own, own)]
    return found


def _layers(
    masks: Sequence[labels.ComparedMask], overlaps: overlap.Overlaps
) -> LayerMeans | None:
    if masks[0].mask.granularity != granularity.CHANNELS.name:
        return None
    names = np.array([mask.persona for mask in masks])
    pairs = np.triu(np.ones((len(masks), len(masks)), bool), 1)
    alike = names[:, None] == names[None, :]
    found, chance = overlaps.by_layer(), overlaps.chance_by_layer()

    def means(values: np.ndarray, chosen: np.ndarray) -> np.ndarray | None:
        return values[:, chosen].mean(axis=1) if chosen.any() else None

    expected = means(chance, pairs)
    assert expected is not None
    return LayerMeans(
        means(found, pairs & alike), means(found, pairs & ~alike), expected
    )


def _alignment(
    cfg: config.MasksConfig,
    masks: Sequence[labels.ComparedMask],
    of_personas: np.ndarray,
    personas: Sequence[str],
) -> tuple[Alignment | None, list[str]]:
    """The comparison with texts, if one is wanted, and what is to be said of it."""
    if cfg.embeddings == 'none':
        return None, []
    known = {mask.persona: mask for mask in masks if mask.mask.system_prompt.strip()}
    notes = []
    if unknown := [name for name in personas if name not in known]:
        notes.append(
            f'No persona prompt is in the mask files of {", ".join(unknown)}: left out '
            'of the comparison with texts.'
        )
    chosen = [name for name in personas if name in known]
    if len(chosen) < 2:
        notes.append('Fewer than two personas have a text: no comparison with texts.')
        return None, notes
    progress_lib.say(f'Embedding the texts of {len(chosen)} personas ...')
    texts = [embeddings.text_of(known[name].mask.system_prompt) for name in chosen]
    vectors = embeddings.embed(cfg, masks[0].source, texts)
    places = [place for place, name in enumerate(personas) if name in known]
    means = of_personas[np.ix_(places, places)].copy()
    np.fill_diagonal(means, 1.0)
    cosines = embeddings.cosines(vectors)
    found = correlation.correlate(means, cosines, seed=cfg.seed)
    return Alignment(chosen, means, cosines, found), notes


def _notes(
    masks: Sequence[labels.ComparedMask],
    similarity: np.ndarray,
    kind: str,
    measured: closeness_lib.Closeness,
) -> list[str]:
    notes = []
    if measured.within is None:
        notes.append('No persona has two masks: seeds are not compared.')
    elif kind != labels.SEED:
        notes.append(
            'Not every mask’s seed is known, or a persona has one twice: '
            + (
                'a persona’s masks are told apart by the names of their files and '
                'folders.'
                if kind == labels.VARIANT
                else 'a persona’s masks are numbered in the order given.'
            )
        )
    if measured.between is None:
        notes.append('All masks are of one persona: personas are not compared.')
    totals = sorted({mask.mask.total for mask in masks})
    if len(totals) > 1:
        notes.append(
            f'Masks keep different numbers of {masks[0].mask.granularity}, '
            f'{totals[0]:,} to {totals[-1]:,}: their similarity depends on that as well.'
        )
    same = [
        f'{masks[i].name} and {masks[j].name}'
        for i, j in itertools.combinations(range(len(masks)), 2)
        if similarity[i, j] == 1
    ]
    if same:
        more = f', and {len(same) - 3} more' if len(same) > 3 else ''
        notes.append(f'The same mask: {"; ".join(same[:3])}{more}.')
    return notes
