"""PIQA, OpenBookQA and MMLU against lm-evaluation-harness, side by side."""

import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppjax.base import progress as progress_lib
from ppjax.benchmarking import lm_eval_tasks, torch_model
from ppjax.data import row_sources
from ppjax.evaluation.multiple_choice import benchmark_sources, choice_tasks
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib


def _rows(name: str, spec: str | None) -> list[Any]:
    if spec is None:
        return []
    source = benchmark_sources.parse(name, spec)
    rows = [row.value for row in row_sources.read(source)]
    return rows[: source.count]


def compare(
    base: base_model.BaseModel,
    tasks: dict[str, str],
    *,
    mmlu_dev: str | None,
    mmlu_shots: list[int],
    batch_tokens: int,
) -> dict[str, Any]:
    """Runs both on the same rows, in float32, the harness's log-softmax in float64.

    Args:
        base: the model.
        tasks: task -> its rows, as local files have them.
        mmlu_dev: of the worked examples.
        mmlu_shots: MMLU is run once for each.
        batch_tokens: of ours.

    Returns:
        By task: the largest difference of a choice's log-likelihood in nats, how many
        predictions differ, both sides' accuracies, seconds and their ratio.
    """
    theirs_model = torch_model.load(base)
    model = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    tokenizer = base.tokenizer()
    found: dict[str, Any] = {}
    for task, spec in tasks.items():
        rows = _rows(task, spec)
        for shots in mmlu_shots if task == 'mmlu' else [0]:
            label = f'{task} {shots}-shot' if task == 'mmlu' else task
            dev = _rows('mmlu_dev', mmlu_dev) if shots else []
            progress_lib.say(f'{label}: lm-evaluation-harness on {len(rows)} rows')
            began = time.perf_counter()
            theirs = lm_eval_tasks.run(
                theirs_model,
                tokenizer,
                task,
                rows,
                dev=dev,
                num_shots=shots,
                softmax_dtype='float64',
            )
            plain_seconds = time.perf_counter() - began
            questions = benchmark_sources.questions(
                task, spec, dev=mmlu_dev if shots else None, num_shots=shots
            )
            began = time.perf_counter()
            ours = choice_tasks.evaluate(
                model,
                masks_lib.DENSE,
                tokenizer,
                questions,
                batch_tokens=batch_tokens,
                progress=progress_lib.counter(label),
            )
            seconds = time.perf_counter() - began
            want = choice_tasks.summarise(questions, theirs['log_likelihoods'])
            pairs = zip(ours.log_likelihoods, want.log_likelihoods, strict=True)
            norm = ours.acc_norm
            found[label] = {
                'questions': len(questions),
                'max_difference': max(
                    float(np.abs(np.subtract(a, b)).max()) for a, b in pairs
                ),
                'other_predictions': sum(
                    (a, c) != (b, d)
                    for a, b, c, d in zip(
                        ours.plain,
                        want.plain,
                        ours.by_character,
                        want.by_character,
                        strict=True,
                    )
                ),
                'same_prompts': [q.context for q in questions] == theirs['prompts'],
                'acc': ours.acc.value,
                'acc_norm': None if norm is None else norm.value,
                'harness_acc': theirs['acc'],
                'harness_acc_norm': theirs['acc_norm'],
                'harness_seconds': plain_seconds,
                'ppjax_seconds': seconds,
                'ratio_to_reference': plain_seconds / seconds,
            }
    return found
