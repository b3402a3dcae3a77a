"""A comparison of masks as the JSON object of masks.json."""

import dataclasses
from typing import Any

import numpy as np

from ppjax.analysis import closeness, correlation, study


def as_json(found: study.Study) -> dict[str, Any]:
    """All figures; what is not known or not defined is null."""
    first = found.masks[0].mask
    return {
        'base_model': first.base_model,
        'base_fingerprint': first.base_fingerprint,
        'granularity': first.granularity,
        'masks': [
            {
                'file': str(mask.source.path),
                'sha256': mask.source.sha256,
                'persona': mask.persona,
                'repetition': mask.repetition,
                'seed': mask.source.seed,
                'persona_sha256': mask.mask.persona_sha256,
                'kept': mask.mask.total,
                'units': mask.mask.mask.size,
            }
            for mask in found.masks
        ],
        'personas': found.personas,
        'repetitions_are': found.kind,
        'of_personas': _numbers(found.of_personas),
        'jaccard': _numbers(found.similarity),
        'chance': _numbers(found.chance),
        'closeness': {
            field.name: _mean(getattr(found.closeness, field.name))
            for field in dataclasses.fields(found.closeness)
        },
        'by_repetition': {
            name: _numbers(table) for name, table in found.by_repetition.items()
        },
        'between_seeds': [
            {'first': pair.first, 'second': pair.second} | _correlation(pair.found)
            for pair in found.seed_pairs
        ],
        'texts': None if found.alignment is None else _alignment(found.alignment),
        'layers': None
        if found.layers is None
        else {
            field.name: _numbers(getattr(found.layers, field.name))
            for field in dataclasses.fields(found.layers)
        },
        'notes': found.notes,
    }


def _numbers(values: np.ndarray | None) -> Any:
    """Nested lists with None for NaN."""
    if values is None:
        return None
    listed = values.astype(object)
    listed[np.isnan(values)] = None
    return listed.tolist()


def _mean(mean: closeness.Mean | None) -> dict[str, Any] | None:
    return None if mean is None else dataclasses.asdict(mean)


def _correlation(found: correlation.Correlation) -> dict[str, Any]:
    return dataclasses.asdict(found) | {'pairs': found.pairs}


def _alignment(found: study.Alignment) -> dict[str, Any]:
    return {
        'personas': found.personas,
        'jaccard': _numbers(found.masks),
        'cosine': _numbers(found.texts),
    } | _correlation(found.found)
