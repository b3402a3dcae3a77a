"""Answers of every model, judged, and what is wrong with the low-scored ones."""

from collections.abc import Callable, Sequence
import csv
import dataclasses
import io
import pathlib
from typing import Any

from ppjax import demo
from ppjax.base import atomic, errors
from ppjax.base import progress as progress_lib
from ppjax.evaluation import candidates, config, helper_models, results_store
from ppjax.evaluation.answers import answers, repetition
from ppjax.evaluation.answers import failures as failures_lib
from ppjax.evaluation.dialogues import speakers
from ppjax.evaluation.judges import judge_prompts, judge_scoring, judging

# Relative to the run directory; logs are kept, so that nothing is asked twice.
_ANSWERS = pathlib.Path('evaluation', 'answers.jsonl')
_VERDICTS = pathlib.Path('evaluation', 'verdicts.jsonl')


def questions(
    cfg: config.EvaluateConfig, models: candidates.Candidates
) -> list[answers.Question]:
    """The questions of `--eval_sets`, or the held-out ones.

    Raises:
        InputError: if there are none, or a set is malformed.
    """
    if cfg.eval_sets:
        paths = [part.strip() for part in cfg.eval_sets.split(',') if part.strip()]
        if not paths:
            raise errors.InputError(f'--eval_sets={cfg.eval_sets} names no file.')
        found = answers.questions_of(paths, progress_lib.say)
    else:
        source = candidates.heldout_source(cfg, models)
        rows = demo.read_rows(source, split='test')
        name = source if source.startswith('demo:') else pathlib.Path(source).stem
        found = answers.questions_of_rows(rows, name, progress_lib.say)
    return answers.first_of_each(found, cfg.questions)


def answer(
    cfg: config.EvaluateConfig,
    model: candidates.Candidate,
    asked: Sequence[answers.Question],
) -> list[speakers.Said]:
    """One model's greedy answers, from the log as far as it has them."""
    loaded = model.load()
    return answers.answer_all(
        loaded.decoder,
        loaded.masks,
        loaded.renderer(cfg.template_date),
        loaded.stop_ids(),
        asked,
        identity=f'{model.identity} {cfg.dtype}',
        log_path=cfg.run / _ANSWERS,
        max_new_tokens=cfg.max_new_tokens,
        batch_size=cfg.batch_size,
        progress=progress_lib.counter(f'Answers, {model.name}'),
    )


def _verdicts(
    cfg: config.EvaluateConfig,
    judge: judge_scoring.Judge,
    asked: Sequence[answers.Question],
    given: dict[str, list[speakers.Said]],
    prompt: Callable[[str, str, str], str],
    label: str,
) -> dict[str, list[judge_scoring.Verdict]]:
    """The verdict on every answer of every model, in their order."""
    requests = []
    found: dict[str, judge_scoring.Verdict] = {}
    for name, own in given.items():
        for number, (question, one) in enumerate(zip(asked, own, strict=True)):
            key = f'{name} {number}'
            if one.failure:
                found[key] = judge_scoring.failed(key, f'no answer: {one.failure}')
                continue
            text = prompt(question.persona, question.question, one.text)
            requests.append(judge_scoring.JudgeRequest(key, text, group=question.group))
    found |= judging.judge_all(
        judge,
        requests,
        log_path=cfg.run / _VERDICTS,
        progress=progress_lib.counter(label),
    )
    return {
        name: [found[f'{name} {number}'] for number in range(len(own))]
        for name, own in given.items()
    }


def judge(cfg: config.EvaluateConfig, models: candidates.Candidates) -> dict[str, Any]:
    """Answers and judges; writes results/judge.json and judge.csv.

    Raises:
        InputError: if the judge cannot be used; answers and verdicts so far stay.
    """
    asked = questions(cfg, models)
    settings = helper_models.settings(cfg, models, ('judge',)) | {
        'coherence': cfg.coherence,
        'questions': [dataclasses.astuple(question) for question in asked],
    }
    path = cfg.run / 'results' / 'judge.json'
    if there := results_store.stored(path, settings, overwrite=cfg.overwrite):
        return there
    # Before hours of answers: it fails sooner.
    judging_model = helper_models.HelperModels(cfg).judge()
    given = {model.name: answer(cfg, model, asked) for model in models.models}
    prompts = {'roleplay': judge_prompts.PROMPTS['roleplay']}
    if cfg.coherence:
        prompts['coherence'] = judge_prompts.PROMPTS['coherence']
    verdicts = {
        kind: _verdicts(cfg, judging_model, asked, given, prompt, f'Judging, {kind}')
        for kind, prompt in prompts.items()
    }
    # An answer that could not be given has none, however often it is asked for.
    wanted = [
        verdict
        for by_model in verdicts.values()
        for name, own in by_model.items()
        for one, verdict in zip(given[name], own, strict=True)
        if not one.failure
    ]
    judging.refuse_unscored(cfg.judge_model, wanted)
    settings |= lacking([verdict.failure for verdict in wanted])
    groups = [question.group for question in asked]
    found: dict[str, Any] = {'judge': judging_model.identity, 'models': {}}
    for name, said in given.items():
        own: dict[str, Any] = {}
        for kind, by_model in verdicts.items():
            own[kind] = judging.summarise(by_model[name], groups)
            if name != models.names[0]:
                own[kind]['to_dense'] = judging.paired_difference(
                    by_model[models.names[0]], by_model[name], groups
                )
        own |= length_figures(said)
        found['models'][name] = own
    found['answers'] = _rows(asked, given, verdicts)
    atomic.write_text(cfg.run / 'results' / 'judge.csv', csv_of(found['answers']))
    return results_store.measured(path, settings, lambda: found, overwrite=True)


def lacking(failures: Sequence[str]) -> dict[str, int]:
    """Says that verdicts are lacking, if some are; what then goes into settings.

    With that a result is never taken for a whole one.

    Args:
        failures: why an answer has no verdict, or ''.
    """
    reasons = [failure for failure in failures if failure]
    if not reasons:
        return {}
    progress_lib.say(
        f'{len(reasons)} answers have no verdict yet, the first because: '
        f'{reasons[0]}; the same command asks again.'
    )
    return {'without_verdict': len(reasons)}


def length_figures(given: Sequence[speakers.Said]) -> dict[str, float]:
    """How long answers are, and how much they repeat: means over those given."""
    given = [one for one in given if not one.failure]
    count = len(given)
    return {
        'mean_answer_tokens': sum(one.tokens for one in given) / count,
        'at_limit': sum(not one.finished for one in given) / count,
        'distinct_2': sum(repetition.distinct_n(one.text, 2) for one in given) / count,
        'repeat_rate': sum(repetition.repeat_rate(one.text) for one in given) / count,
    }


def row_of(name: str, question: answers.Question, one: speakers.Said) -> dict[str, Any]:
    """What files say of one model's answer, whatever its verdict."""
    return {
        'model': name,
        'group': question.group,
        'question': question.question,
        'answer': one.text,
        'answer_tokens': one.tokens,
        'finished': one.finished,
    }


def _rows(
    asked: Sequence[answers.Question],
    given: dict[str, list[speakers.Said]],
    verdicts: dict[str, dict[str, list[judge_scoring.Verdict]]],
) -> list[dict[str, Any]]:
    rows = []
    for name, own in given.items():
        for number, (question, one) in enumerate(zip(asked, own, strict=True)):
            row = row_of(name, question, one)
            for kind, by_model in verdicts.items():
                verdict = dataclasses.asdict(by_model[name][number])
                row |= {
                    f'{kind}_{field}': verdict[field]
                    for field in ('score', 'mass', 'refusal', 'failure')
                }
            rows.append(row)
    return rows


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of the same keys, one at least, as a table with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def failures(cfg: config.EvaluateConfig, judged: dict[str, Any]) -> dict[str, Any]:
    """Sorts the answers that scored below 60; writes results/failures.json.

    Args:
        cfg: the settings.
        judged: what `judge` gave.
    """

    def measure() -> dict[str, Any]:
        types: dict[str, list[str]] = {name: [] for name in judged['models']}
        listed = []
        for row in judged['answers']:
            score = row['roleplay_score']
            refused = row['roleplay_refusal']
            # A refusal mostly has no score; one with a high score is none.
            low = (
                refused >= judging.REFUSED
                if score is None
                else score < failures_lib.LOW_SCORE
            )
            if not low:
                continue
            found = failures_lib.classify(
                row['answer'],
                finished=row['finished'],
                refusal_probability=refused,
                question=row['question'],
            )
            types[row['model']].append(found)
            listed.append(
                {key: row[key] for key in ('model', 'group', 'question')}
                | {'score': score, 'type': found}
            )
        return {
            'threshold': failures_lib.LOW_SCORE,
            'models': {
                name: failures_lib.table(own) | {'answers': judged_count}
                for name, own in types.items()
                for judged_count in [judged['models'][name]['roleplay']['n']]
            },
            'answers': listed,
        }

    return results_store.measured(
        cfg.run / 'results' / 'failures.json',
        {'judged': judged['settings']},
        measure,
        overwrite=cfg.overwrite,
    )
