"""`evaluate`: every task asked for, on every model, and what it came to."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import hashlib
import json
from typing import Any

from ppjax import demo
from ppjax.base import errors, processes, progress
from ppjax.data import calibration
from ppjax.evaluation import (
    candidates,
    config,
    conversations,
    efficiency,
    results_store,
    timing,
)
from ppjax.evaluation.answers import fidelity, judged_answers, unjudged
from ppjax.evaluation.dialogues import multi_turn
from ppjax.evaluation.multiple_choice import benchmark_sources, benchmarks, choice_tasks
from ppjax.models import costs

# All that it may add to a folder.
MAKES = (
    *(f'results/{name}.json' for name in config.RESULTS.values()),
    'results/judge.csv',
    'results/fidelity.csv',
    'evaluation/answers.jsonl',
    'evaluation/verdicts.jsonl',
    'evaluation/flaws.jsonl',
    'evaluation/dialogues.jsonl',
    'report.html',
)


class Evaluation:
    """One call of `python -m ppjax.evaluate`."""

    def __init__(self, cfg: config.EvaluateConfig):
        """Raises:
        InputError: if a model that is named cannot be used.
        """
        self.cfg = cfg
        self.candidates = candidates.find(cfg)

    def run(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Does the tasks one by one.

        Yields:
            (task, its result as results/TASK.json has it).

        Raises:
            InputError: if a task's input is unusable; earlier results stay.
        """
        cfg = self.cfg
        identities = [model.identity for model in self.candidates.models]
        processes.agree({'settings': repr(cfg), 'models': json.dumps(identities)})
        if processes.count() > 1 and 'efficiency' in cfg.task_list:
            raise errors.InputError(
                '--tasks: efficiency takes the times of one process; ask for it without '
                '--coordinator.'
            )
        tasks: dict[str, Callable[[], dict[str, Any]]] = {
            'likelihood': self.likelihood,
            'plain': self.plain,
            'efficiency': self.efficiency,
            'answers': lambda: unjudged.measure(cfg, self.candidates),
            'judge': lambda: self.judged,
            'fidelity': lambda: fidelity.judge(cfg, self.candidates),
            'failures': lambda: judged_answers.failures(cfg, self.judged),
            'multiturn': lambda: multi_turn.measure(cfg, self.candidates),
        }
        for name in cfg.task_list:
            if name in benchmarks.TASKS:
                yield name, self.benchmark(name)
            else:
                yield name, tasks[name]()

    def _measured(
        self,
        name: str,
        settings: dict[str, Any],
        measure: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        identities = {model.name: model.identity for model in self.candidates.models}
        return results_store.measured(
            self.cfg.run / 'results' / f'{name}.json',
            {'models': identities, 'dtype': self.cfg.dtype} | settings,
            measure,
            overwrite=self.cfg.overwrite,
        )

    @functools.cached_property
    def judged(self) -> dict[str, Any]:
        """Judged answers, for `judge` and `failures`: once a call."""
        return judged_answers.judge(self.cfg, self.candidates)

    def likelihood(self) -> dict[str, Any]:
        """Persona likelihood of the held-out answers."""
        cfg = self.cfg
        source = candidates.heldout_source(cfg, self.candidates)
        rows = demo.read_rows(source, split='test')
        prompts = conversations.shorter_prompts(cfg, self.candidates.run)
        more: dict[str, Any] = {}
        if prompts:
            more = {'prompts': prompts, 'timing': cfg.timing, 'rounds': cfg.rounds}

        return self._measured(
            'persona_likelihood',
            {
                'heldout_sha256': calibration.content_hash(rows),
                'max_length': cfg.max_length,
                'date': cfg.template_date,
                **more,
            },
            lambda: conversations.measure(
                cfg,
                self.candidates,
                rows,
                source=source,
                label='Likelihood',
                prompts=prompts,
            ),
        )

    def plain(self) -> dict[str, Any]:
        """Likelihood of plain answers to general instructions, with no persona."""
        cfg = self.cfg
        assert cfg.plain
        source = cfg.plain
        rows = conversations.plain_rows(cfg, self.candidates.run)
        return self._measured(
            'plain_likelihood',
            {
                'source': source,
                'rows_sha256': calibration.content_hash(rows),
                'max_length': cfg.max_length,
                'date': cfg.template_date,
            },
            lambda: conversations.measure(
                cfg, self.candidates, rows, source=source, label='Plain answers'
            ),
        )

    def benchmark(self, task: str) -> dict[str, Any]:
        """PIQA, OpenBookQA or MMLU."""
        cfg = self.cfg
        shots = cfg.mmlu_shots if task == 'mmlu' else 0
        questions = benchmark_sources.questions(
            task,
            getattr(cfg, task),
            dev=cfg.mmlu_dev if shots else None,
            num_shots=shots,
        )

        def measure() -> dict[str, Any]:
            found = {}
            for model in self.candidates.models:
                loaded = model.load()
                found[model.name] = choice_tasks.evaluate(
                    loaded.decoder,
                    loaded.masks,
                    loaded.tokenizer,
                    questions,
                    batch_tokens=cfg.batch_tokens,
                    progress=progress.counter(f'{task}, {model.name}'),
                )
            return {'models': found}

        content = '\n'.join(repr(dataclasses.astuple(q)) for q in questions)
        return self._measured(
            task,
            {
                'source': getattr(cfg, task),
                'questions': len(questions),
                'shots': shots,
                'questions_sha256': hashlib.sha256(content.encode()).hexdigest(),
            },
            measure,
        )

    def efficiency(self) -> dict[str, Any]:
        """Sizes and FLOPs in closed form, checked by XLA's count; times measured."""
        cfg, models = self.cfg, self.candidates.models

        def measure() -> dict[str, Any]:
            def blocks(model: candidates.Candidate) -> int:
                return costs.parameters(model.base.config, model.sizes).blocks

            smallest = min(models, key=blocks)
            dense = models[0].base.config
            found: dict[str, Any] = {
                'closed_form': dataclasses.asdict(
                    efficiency.measure(
                        dense,
                        smallest.keep,
                        dtype=cfg.dtype,
                        prompt_length=cfg.prompt_length,
                        answer_length=cfg.answer_length,
                        layers=smallest.base.config.num_layers,
                        pruned=smallest.base.config,
                        sizes=smallest.sizes,
                    )
                ),
                'convention': efficiency.CONVENTION,
                'models': {},
            }
            for model in models:
                loaded = model.load()
                counted = timing.xla_prefill_flops(loaded, cfg.prompt_length)
                # A masked model runs all channels, but no block that its mask drops.
                closed = costs.prefill_flops(
                    model.base.config,
                    costs.uniform(model.base.config),
                    cfg.prompt_length,
                )
                found['models'][model.name] = {
                    'keep': model.keep,
                    'stored_bytes': model.base.stored_bytes(),
                    'prefill_flops': closed,
                    'xla_prefill_flops': counted,
                }
            if cfg.timing:
                times = timing.measure(
                    {model.name: model.load() for model in models},
                    prompt_length=cfg.prompt_length,
                    answer_length=max(cfg.answer_length, 2),
                    rounds=cfg.rounds,
                    seed=cfg.seed,
                    progress=progress.counter('Timing'),
                )
                for name, own in times.items():
                    found['models'][name] |= own.as_json()
            return found

        return self._measured(
            'measured_efficiency',
            {
                'prompt_length': cfg.prompt_length,
                'answer_length': cfg.answer_length,
                'timing': cfg.timing,
                'rounds': cfg.rounds,
            },
            measure,
        )
