"""PIQA, OpenBookQA and MMLU against lm-evaluation-harness, side by side."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ppjax.base import errors, settings
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import config, lm_eval_tasks, torch_model
from ppjax.evaluation import timing
from ppjax.evaluation.multiple_choice import (
    benchmark_sources,
    benchmarks,
    choice_tasks,
)
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib


def _rows(name: str, spec: str | None) -> list[Any]:
    return [row for _, row in benchmark_sources.rows(name, spec)] if spec else []


def compare(cfg: config.BenchConfig) -> dict[str, Any]:
    """Runs both on the same rows, in float32, the harness's log-softmax in float64.

    MMLU is run once for each number of worked examples.

    Returns:
        By task: the largest difference of a choice's log-likelihood in nats, how many
        predictions differ, both sides' accuracies, seconds and their ratio.

    Raises:
        InputError: if no rows are given, or PyTorch is not installed.
    """
    base = base_model.open_base_model(cfg.base_model)
    given = {name: getattr(cfg, name) for name in benchmarks.TASKS}
    if not any(given.values()):
        raise errors.InputError('Give rows with --piqa, --openbookqa or --mmlu.')
    mmlu_shots = settings.numbers(cfg, 'mmlu_shots')
    theirs_model = torch_model.load(base)
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    tokenizer = base.tokenizer()
    found: dict[str, Any] = {}
    runs = [
        (task, spec, shots)
        for task, spec in given.items()
        if spec
        for shots in (mmlu_shots if task == 'mmlu' else [0])
    ]
    for task, spec, shots in runs:
        label = f'{task} {shots}-shot' if task == 'mmlu' else task
        dev = cfg.mmlu_dev if shots else None
        rows = _rows(task, spec)
        progress_lib.say(f'{label}: lm-evaluation-harness on {len(rows)} rows')
        plain_seconds, theirs = timing.timed(
            lm_eval_tasks.run,
            theirs_model,
            tokenizer,
            task,
            rows,
            dev=_rows('mmlu_dev', dev),
            num_shots=shots,
            softmax_dtype='float64',
        )
        questions = benchmark_sources.questions(task, spec, dev=dev, num_shots=shots)
        seconds, ours = timing.timed(
            choice_tasks.evaluate,
            model,
            masks_lib.DENSE,
            tokenizer,
            questions,
            batch_tokens=2048,
            progress=progress_lib.counter(label),
        )
        want = choice_tasks.summarise(questions, theirs['log_likelihoods'])
        pairs = list(zip(ours['questions'], want['questions'], strict=True))
        found[label] = {
            'questions': len(questions),
            'max_difference': max(
                float(
                    np.abs(
                        np.subtract(a['log_likelihoods'], b['log_likelihoods'])
                    ).max()
                )
                for a, b in pairs
            ),
            'other_predictions': sum(
                (a['acc'], a['acc_norm']) != (b['acc'], b['acc_norm']) for a, b in pairs
            ),
            'same_prompts': [q.context for q in questions] == theirs['prompts'],
            'acc': ours['acc']['value'],
            'acc_norm': ours['acc_norm'] and ours['acc_norm']['value'],
            'harness_acc': theirs['acc'],
            'harness_acc_norm': theirs['acc_norm'],
            'harness_seconds': plain_seconds,
            'ppjax_seconds': seconds,
            'ratio_to_reference': plain_seconds / seconds,
        }
    return found
