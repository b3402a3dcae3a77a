"""PIQA, OpenBookQA and MMLU by lm-evaluation-harness, for comparison.

Its own tasks are run, prompts and metrics untouched, with the rows of local files
instead of the Hub's.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib
import tempfile
from typing import Any

from ppjax.base import errors

# The task's file in the package, and the split that it measures on.
_PACKAGED = {
    'piqa': ('piqa/piqa.yaml', 'validation'),
    'openbookqa': ('openbookqa/openbookqa.yaml', 'test'),
    'mmlu': ('mmlu/default/mmlu_{subject}.yaml', 'test'),
}


def _reshaped(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of our local files with the fields of the Hub's data set."""
    if task == 'openbookqa':
        return {
            'question_stem': row['question'],
            'choices': {'text': row['choices'], 'label': list('ABCD')},
            'answerKey': 'ABCD'[row['label']],
        }
    if task == 'mmlu':
        return {
            'question': row['question'],
            'choices': row['choices'],
            'answer': row['label'],
            'subject': row['subject'],
        }
    return dict(row)


def _write(path: pathlib.Path, task: str, rows: Iterable[Mapping[str, Any]]) -> str:
    try:
        lines = [json.dumps(_reshaped(task, row)) + '\n' for row in rows]
    except (KeyError, TypeError, IndexError):
        raise errors.InputError(
            f'{task}: the comparison wants rows with "label" and, but for PIQA, '
            '"question" and "choices", as local files have them.'
        ) from None
    path.write_text(''.join(lines), 'utf-8')
    return str(path)


def run(
    model: Any,
    tokenizer: Any,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    dev: Sequence[Mapping[str, Any]] = (),
    num_shots: int = 0,
    softmax_dtype: str = 'float32',
) -> dict[str, Any]:
    """Runs one benchmark there.

    Args:
        model: of transformers, in PyTorch.
        tokenizer: its tokenizer.
        task: 'piqa', 'openbookqa' or 'mmlu'.
        rows: as the local files have them.
        dev: MMLU's worked examples.
        num_shots: how many of them.
        softmax_dtype: that it takes log-softmax in. Its default is the model's; in
            float32 PyTorch's is off by 8e-6 a token of a large vocabulary, which a
            choice of 150 tokens sums to 1e-3.

    Returns:
        {'log_likelihoods': of each row's choices in the rows' order, 'acc', 'acc_norm'
        (None for MMLU), 'prompts': of each row}.

    Raises:
        InputError: if lm-eval is not installed.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise errors.InputError(
            'This compares with lm-evaluation-harness, which is not installed: '
            'pip install lm-eval.'
        ) from None
    package = pathlib.Path(lm_eval.__file__).parent / 'tasks'
    file, split = _PACKAGED[task]
    by_subject: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        subject = row['subject'] if task == 'mmlu' else ''
        by_subject.setdefault(subject, []).append(number)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for subject, own in by_subject.items():
            stem = f'local_{task}_{subject}'
            data = {
                split: _write(folder / f'{stem}.jsonl', task, (rows[i] for i in own))
            }
            if num_shots:
                shots = (row for row in dev if row['subject'] == subject)
                data['dev'] = _write(folder / f'{stem}_dev.jsonl', task, shots)
            config = {
                'include': str(package / file.format(subject=subject)),
                'task': stem,
                'dataset_path': 'json',
                'dataset_name': None,
                'dataset_kwargs': {'data_files': data},
                # The other splits, which no shot is drawn from.
                'training_split': None,
                'fewshot_split': 'dev' if num_shots else None,
                'validation_split': split if split == 'validation' else None,
            }
            # JSON is YAML.
            (folder / f'{stem}.yaml').write_text(json.dumps(config), 'utf-8')
        found = lm_eval.simple_evaluate(
            model=HFLM(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=8,
                softmax_dtype=softmax_dtype,
            ),
            tasks=[f'local_{task}_{subject}' for subject in sorted(by_subject)],
            task_manager=TaskManager(include_path=name, include_defaults=False),
            num_fewshot=num_shots or None,
            log_samples=True,
            bootstrap_iters=0,
        )
    values: list[list[float]] = [[] for _ in rows]
    prompts = [''] * len(rows)
    means: dict[str, list[tuple[float | None, int]]] = {'acc': [], 'acc_norm': []}
    for subject, own in by_subject.items():
        stem = f'local_{task}_{subject}'
        for sample in found['samples'][stem]:
            row = own[sample['doc_id']]
            values[row] = [float(reply[0][0]) for reply in sample['resps']]
            prompts[row] = sample['arguments'][0][0]
        for metric, parts in means.items():
            parts.append((found['results'][stem].get(f'{metric},none'), len(own)))

    def mean(metric: str) -> float | None:
        known = [value * n for value, n in means[metric] if value is not None]
        return sum(known) / len(rows) if len(known) == len(by_subject) else None

    return {
        'log_likelihoods': values,
        'acc': mean('acc'),
        'acc_norm': mean('acc_norm'),
        'prompts': prompts,
    }
