"""Rows that join and leave give what each request gives alone, here and elsewhere."""

import threading
import time

import numpy as np
import pytest
import torch
import transformers

from ppjax.models import generation
from ppjax.models import masks as masks_lib
from ppjax.serving import jobs, sampling
from tests.serving import engines

_NEW = 12


def _prompt(seed, length, vocab=97):
    return np.random.default_rng(seed).integers(3, vocab, length).tolist()


def _alone(decoder, who, prompt, new=_NEW, drawn=generation.GREEDY, seed=0):
    scale = None if who.scale is None else np.asarray(who.scale, np.float32)
    (found,) = generation.generate(
        decoder,
        masks_lib.Masks(scale),
        [prompt],
        max_new_tokens=new,
        stop_ids=(),
        sampling=drawn,
        seed=seed,
    )
    return found


def _hf(model, prompt, new=_NEW):
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=transformers.GenerationConfig(
                max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=10**6
            ),
        )
    return out[0, len(prompt) :].tolist()


@pytest.fixture(scope='module', params=['llama', 'qwen2', 'qwen3-tied'])
def tiny(request, tiny_models):
    return tiny_models(request.param)


@pytest.fixture(scope='module')
def made(tiny):
    with engines.running(tiny.decoder) as found:
        yield found


@pytest.fixture(scope='module')
def cast(tiny):
    return engines.cast(tiny.config, 8)


def test_mixed_batch_equals_each_alone_and_transformers(tiny, made, cast):
    rng = np.random.default_rng(1)
    # Some begin alike, so that known prefixes are met as well.
    shared = _prompt(0, 70)
    wanted = []
    for number in range(18):
        who = cast[number % len(cast)]
        start = shared[: int(rng.integers(0, 71))]
        wanted.append((who, start + _prompt(number, int(rng.integers(1, 60)))))
    asked = []
    for who, prompt in wanted:
        asked.append(engines.ask(made, who, prompt))
        time.sleep(float(rng.uniform(0, 0.02)))
    found = [one.ids() for one in asked]
    for (who, prompt), ids in zip(wanted, found, strict=True):
        assert ids == _alone(tiny.decoder, who, prompt), who.name
        if who.scale is None:
            assert ids == _hf(tiny.hf, prompt)
        elif who.scale.dtype == np.bool_:
            assert ids == _hf(tiny.pruned_hf(who.scale), prompt)
    assert len({tuple(ids) for ids in found}) > 15


def test_same_seed_same_text_whatever_else_runs(tiny, made, cast):
    prompt = _prompt(3, 40)
    drawn = sampling.Sampling(
        temperature=0.9,
        top_p=0.9,
        top_k=20,
        min_p=0.02,
        repetition_penalty=1.2,
        frequency_penalty=0.1,
        presence_penalty=0.2,
        xtc_probability=0.5,
        seed=11,
    )
    first = engines.ask(made, cast[1], prompt, drawn=drawn).ids()
    others = [
        engines.ask(
            made,
            cast[n % 5],
            _prompt(n, 20 + n),
            drawn=sampling.Sampling(temperature=1.5, seed=n),
        )
        for n in range(6)
    ]
    again = engines.ask(made, cast[1], prompt, drawn=drawn).ids()
    for other in others:
        other.answer()
    assert first == again
    other_seed = sampling.Sampling(temperature=0.9, seed=12)
    assert first != engines.ask(made, cast[1], prompt, drawn=other_seed).ids()


def test_draws_are_those_of_chat(tiny, made, cast):
    prompt = _prompt(4, 30)
    drawn = sampling.Sampling(temperature=0.8, seed=5)
    want = _alone(tiny.decoder, cast[2], prompt, drawn=generation.Sampling(0.8), seed=5)
    assert engines.ask(made, cast[2], prompt, drawn=drawn).ids() == want


def test_choices_differ_and_are_reproducible(made, cast):
    prompt, drawn = _prompt(4, 30), sampling.Sampling(temperature=1.0, seed=5)
    texts = [
        [
            engines.ask(made, cast[2], prompt, drawn=drawn, choice=choice).ids()
            for choice in range(3)
        ]
        for _ in range(2)
    ]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts[0]}) == 3


def test_known_prefixes_are_read_once_and_by_mask(made, cast):
    prompt = _prompt(7, 100)
    _, ended = engines.ask(made, cast[3], prompt).answer()
    assert ended.cached_tokens == 0
    tokens, ended = engines.ask(made, cast[3], [*prompt, 5]).answer()
    assert ended.cached_tokens == 96
    # The turn before, answer included, is known in the next one.
    longer = [*prompt, 5, *(token.id for token in tokens), 6]
    _, ended = engines.ask(made, cast[3], longer).answer()
    assert ended.cached_tokens == 96
    _, ended = engines.ask(made, cast[4], prompt).answer()
    assert ended.cached_tokens == 0, 'keys and values are of another mask'


def test_those_who_come_together_read_a_prompt_once(made, cast):
    asked = [
        engines.ask(
            made,
            cast[5],
            _prompt(21, 100),
            drawn=sampling.Sampling(seed=9),
            choice=choice,
        )
        for choice in range(4)
    ]
    assert [one.answer()[1].cached_tokens for one in asked] == [0, 96, 96, 96]


def test_stops_at_stop_tokens_and_limits(tiny, made, cast):
    for seed in range(30):  # Until an answer has a new token late enough.
        prompt = _prompt(seed, 25)
        every = _alone(tiny.decoder, cast[0], prompt, new=10)
        new = [i for i in range(2, 10) if every[i] not in every[:i]]
        if new:
            break
    place = new[0]
    tokens, ended = engines.ask(
        made, cast[0], prompt, stop_ids=frozenset([every[place]])
    ).answer()
    assert [token.id for token in tokens] == every[: place + 1]
    assert ended.reason == 'stop'
    tokens, ended = engines.ask(made, cast[0], prompt, max_tokens=1).answer()
    assert (len(tokens), ended.reason) == (1, 'length')
    whole = _prompt(9, 155)
    tokens, ended = engines.ask(made, cast[0], whole, max_tokens=99).answer()
    assert (len(tokens), ended.reason) == (5, 'length')


def test_logprobs_are_the_models_own(tiny, made, cast):
    prompt = _prompt(2, 33)
    drawn = sampling.Sampling(temperature=0.7, repetition_penalty=1.5, seed=2)
    tokens, _ = engines.ask(
        made, cast[0], prompt, drawn=drawn, top_logprobs=4, max_tokens=5
    ).answer()
    ids = [token.id for token in tokens]
    logits = tiny.hf_logits(np.array([[*prompt, *ids]]))[0]
    logits = logits[len(prompt) - 1 : -1].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for place, token in enumerate(tokens):
        assert abs(token.logprob - logs[place, token.id]) < 1e-4
        order = np.argsort(-logs[place])[:4]
        assert [index for index, _ in token.top] == order.tolist()
        np.testing.assert_allclose(
            [value for _, value in token.top], logs[place][order], atol=1e-4
        )


def test_bias_decides(made, cast):
    drawn = sampling.Sampling(temperature=0.0, bias={17: 1000.0})
    assert engines.ask(made, cast[0], _prompt(1, 9), drawn=drawn).ids() == [17] * _NEW


def test_a_repetition_is_made_unlikely(made, cast):
    # Without, this row repeats one token, for its bias makes it the likeliest.
    bias = sampling.Sampling(temperature=0.0, bias={17: 8.0})
    dry = sampling.Dry(multiplier=5.0, allowed_length=1)
    without = engines.ask(made, cast[0], _prompt(1, 9), drawn=bias).ids()
    drawn = sampling.Sampling(temperature=0.0, bias={17: 8.0}, dry=dry)
    found = engines.ask(made, cast[0], _prompt(1, 9), drawn=drawn).ids()
    assert without.count(17) > found.count(17)


def test_cancelled_rows_are_free_again(made, cast):
    asked = [
        engines.ask(made, cast[n % 4], _prompt(n, 20), max_tokens=130)
        for n in range(12)
    ]
    for one in asked:
        one.ticket.cancel()
    ends = {one.answer()[1].reason for one in asked}
    assert ends == {'cancelled'}
    deadline = time.monotonic() + 10
    while made.figures().running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made.figures().running == 0


def test_a_listener_that_fails_ends_only_its_own(tiny, made, cast):
    def failing(said):
        raise RuntimeError('gone')

    made.submit(jobs.Job(cast[1], tuple(_prompt(1, 10)), 50, frozenset()), failing)
    prompt = _prompt(5, 12)
    assert engines.ask(made, cast[2], prompt).ids() == _alone(
        tiny.decoder, cast[2], prompt
    )


def test_figures_count(made, cast):
    before = made.figures().by_persona.get('persona-6', (0, 0, 0, 0))
    engines.ask(made, cast[7], _prompt(77, 40)).answer()
    engines.ask(made, cast[7], _prompt(77, 40)).answer()
    after = made.figures().by_persona['persona-6']
    assert [a - b for a, b in zip(after, before, strict=True)] == [2, 80, 32, 24]


@pytest.mark.parametrize('prompt', [[], [3] * 160, [97], [-1]])
def test_bad_prompts_are_refused(made, cast, prompt):
    with pytest.raises(ValueError, match='prompt'):
        engines.ask(made, cast[0], prompt)


def test_full_queue_and_draining_refuse(tiny_models):
    tiny = tiny_models('llama')
    base = engines.member('base')
    with engines.running(tiny.decoder, slots=1, queue_length=2) as made:
        # Fills the row; of the others two wait.
        asked = [engines.ask(made, base, [5] * 9, max_tokens=140)]
        while not made.figures().running:
            time.sleep(0.005)
        asked += [engines.ask(made, base, [5] * 9, max_tokens=3) for _ in range(2)]
        with pytest.raises(jobs.QueueFullError, match='2 requests are waiting'):
            engines.ask(made, base, [5] * 9)
        ended = threading.Event()
        threading.Thread(
            target=lambda: made.drain(60) and ended.set(), daemon=True
        ).start()
        time.sleep(0.05)
        with pytest.raises(jobs.QueueFullError, match='about to end'):
            engines.ask(made, base, [5] * 9)
        assert [len(one.ids()) for one in asked] == [140, 3, 3]
        assert ended.wait(20)


def test_stopping_cancels_what_is_left(tiny_models):
    tiny = tiny_models('llama')
    base = engines.member('base')
    with engines.running(tiny.decoder, slots=1) as made:
        asked = [engines.ask(made, base, [5] * 9, max_tokens=140) for _ in range(3)]
    assert {one.answer()[1].reason for one in asked} <= {'cancelled', 'length'}
    assert asked[-1].said.empty()


def test_a_fault_fails_its_requests_and_no_later_ones(tiny_models, monkeypatch, capfd):
    tiny = tiny_models('llama')
    base = engines.member('base')
    with engines.running(tiny.decoder) as made:
        prompt = _prompt(8, 20)
        want = engines.ask(made, base, prompt).ids()
        lane = made._lane

        def broken(*args):
            monkeypatch.undo()
            raise RuntimeError('no memory')

        monkeypatch.setattr(lane._programs, 'step', broken)
        _, ended = engines.ask(made, base, prompt).answer()
        assert (ended.reason, bool(ended.error)) == ('error', True)
        assert engines.ask(made, base, prompt).ids() == want
    assert 'no memory' in capfd.readouterr().err
