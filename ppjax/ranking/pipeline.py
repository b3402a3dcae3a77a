"""The story of `python -m ppjax.rank`: a study, and who ranks in it."""

from collections.abc import Iterator
import contextlib

from ppjax.base import compile_cache, errors, progress, run_directory
from ppjax.chat_api import client as client_lib
from ppjax.evaluation.dialogues import speakers
from ppjax.masking import apply
from ppjax.pages import listening
from ppjax.parallel import sharding
from ppjax.ranking import (
    answer_files,
    config,
    judging,
    questionnaire,
    results,
    study,
)
from ppjax.ranking.page import server


def rank(cfg: config.RankConfig) -> str:
    """Serves, judges or sums up, as the settings say.

    Returns:
        What the rankings come to, for people; '' after serving.

    Raises:
        InputError: if the study is another one, or nothing can be asked or shown;
            rankings so far stay.
    """
    # The study itself is not among what a run made: --overwrite of a verb that uses
    # the same folder must not throw away what people gave their time for.
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_directory.visiting(cfg.run, makes=results.FILES))
        if cfg.serve:
            open_port = listening.listen(cfg.host, cfg.port)
            stack.enter_context(open_port)
            server.serve(stack.enter_context(_opened(cfg)), open_port, cfg.host)
            return ''
        opened = stack.enter_context(_opened(cfg))
        if cfg.judge:
            _judge(cfg, opened)
        return results.text(results.write(cfg.run, opened))


@contextlib.contextmanager
def _opened(cfg: config.RankConfig) -> Iterator[study.Study]:
    """The study of the settings, begun if it is not there yet.

    Raises:
        InputError: if it is another one, or there is none and nothing to begin with.
    """
    path = cfg.run / study.NAME
    wanted = None
    if cfg.answers:
        given = answer_files.read(cfg.answers, cfg.eval_sets, progress.say)
        wanted = questionnaire.draw(
            given, count=cfg.items, seed=cfg.seed, notes=progress.say
        )
    begins = wanted is not None and (cfg.serve or cfg.judge)
    if not path.exists() and not begins:
        raise errors.InputError(
            f'{path} does not exist; --answers with --serve or --judge begins a study.'
        )
    with contextlib.closing(study.Study(path)) as opened:
        if wanted is not None:
            opened.begin(wanted)
        if opened.questionnaire is None:
            raise errors.InputError(
                f'{path} holds no study yet; --answers must be given to begin one.'
            )
        yield opened


def _judge(cfg: config.RankConfig, opened: study.Study) -> None:
    """Raises:
    InputError: if the judge cannot be used, or not one reply is a ranking.
    """
    assert cfg.judge_model
    speaker = _speaker(cfg)
    failures = judging.judge(
        opened,
        cfg.judge_model,
        speaker,
        progress=progress.counter(f'Judging, {cfg.judge_model}'),
    )
    replies = opened.replies(judging.participant(cfg.judge_model, speaker).code)
    if not any(reply.models for reply in replies):
        why = f'the first failed: {failures[0]}' if failures else ''
        if replies:
            why = f'the first begins with {replies[0].text[:60]!r}'
        raise errors.InputError(
            f'The judge {cfg.judge_model} gave no ranking in {len(replies)} replies; '
            f'{why}. Wanted a JSON list of letters; is --max_new_tokens='
            f'{cfg.max_new_tokens} enough?'
        )
    if failures:
        progress.say(
            f'{len(failures)} replies are lacking, the first because: {failures[0]}; '
            'the same command asks again.'
        )


def _speaker(cfg: config.RankConfig) -> speakers.Speaker:
    """The judge, which is asked greedily."""
    assert cfg.judge_model
    if cfg.judge == 'openai':
        assert cfg.judge_url
        client = client_lib.ChatClient(
            cfg.judge_url, cfg.judge_model, concurrency=cfg.judge_concurrency
        )
        return speakers.ServerSpeaker(client, max_new_tokens=cfg.max_new_tokens)
    compile_cache.enable()
    progress.say(f'Loading the judge {cfg.judge_model} ...')
    loaded = apply.load_masked(
        base_model=cfg.judge_model,
        dtype=cfg.dtype,
        mesh=sharding.inference_mesh(cfg.mesh),
    )
    return speakers.LocalSpeaker(
        loaded.decoder,
        loaded.masks,
        loaded.renderer(cfg.date),
        loaded.stop_ids(),
        weights=f'{loaded.base.fingerprint()} {cfg.dtype}',
        max_new_tokens=cfg.max_new_tokens,
        batch_size=cfg.batch_size,
    )
