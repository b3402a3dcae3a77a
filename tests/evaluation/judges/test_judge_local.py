"""The local judge against 102 replies scored one by one, in transformers and by us."""

import copy
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from ppjax.base import errors
from ppjax.data import chat, stop_tokens
from ppjax.evaluation.judges import judge_local, judge_prompts, judge_scoring
from ppjax.models import attention, base_model, loading
from ppjax.models import decoder as decoder_lib
from ppjax.models import masks as masks_lib

_SPECIAL = ['<pad>', '<s>', '</s>', '<end>']
_TEMPLATE = (
    '{% for m in messages %}<s>{{ m.role }} {{ m.content }}<end>{% endfor %}'
    '{% if add_generation_prompt %}<s>assistant {% endif %}'
)
_POSITIONS = 256
_PROMPTS = [
    'How well is this said? "The tide waits for none."',
    'How well?',
    'How well is this said? "Aye, I row you over when the fog has gone, and no sooner."',
    'How well is this said? "2 + 2 = 4, and 40 + 45 = 85."',
    '',
]


def _with_merges(merges, unknown: str = '') -> transformers.PreTrainedTokenizerFast:
    """Bytes, and what becomes of them by merging."""
    letters = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - {*unknown})
    names = _SPECIAL + letters + [''.join(pair) for pair in merges]
    vocabulary = {token: number for number, token in enumerate(names)}
    plain = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token='<pad>')
    )
    plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = tokenizers.decoders.ByteLevel()
    plain.add_special_tokens(_SPECIAL)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token='<s>', eos_token='</s>', pad_token='<pad>'
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _tokenizer(kind: str) -> transformers.PreTrainedTokenizerFast:
    """Bytes, and with 'whole' digits all of 10 to 100 in one token each."""
    if kind == 'split':
        return _with_merges([])
    pairs = [(f'{number // 10}', f'{number % 10}') for number in range(10, 100)]
    return _with_merges([*pairs, ('10', '0')])


@dataclasses.dataclass(frozen=True)
class _Model:
    """A random judge in both frameworks."""

    path: pathlib.Path
    hf: transformers.PreTrainedModel
    base: base_model.BaseModel
    decoder: decoder_lib.Decoder
    renderer: chat.ChatRenderer
    stops: list[int]

    def judge(self, mask=None, **options: Any) -> judge_local.LocalJudge:
        return judge_local.LocalJudge(
            self.base, self.renderer, self.decoder, masks_lib.Masks(mask), **options
        )

    def rendered(self, prompt: str) -> str:
        return self.renderer.tokenizer.apply_chat_template(
            [{'role': 'user', 'content': prompt}],
            tokenize=False,
            add_generation_prompt=True,
        )

    def one_by_one(self, prompt: str, logits_of) -> np.ndarray:
        """P(reply) [102] from full forwards of prompt + reply, without our trie."""
        encode = self.renderer.tokenizer.encode
        text = self.rendered(prompt)
        start = len(encode(text, add_special_tokens=False))
        replies = [str(n) for n in range(101)] + ['REFUSAL']
        rows = [encode(text + reply, add_special_tokens=False) for reply in replies]
        tokens = np.zeros((102, max(map(len, rows))), np.int64)
        for row, found in zip(tokens, rows, strict=True):
            row[: len(found)] = found
        logits = torch.tensor(np.array(logits_of(tokens)), dtype=torch.float64)
        log_probs = torch.log_softmax(logits, dim=-1).numpy()
        found = []
        for row, reply in zip(log_probs, rows, strict=True):
            length = len(reply)
            said = row[np.arange(start - 1, length - 1), reply[start:]].sum()
            found.append(np.exp(said) * np.exp(row[length - 1, self.stops]).sum())
        return np.array(found)

    def ours(self, prompt: str) -> np.ndarray:
        return self.one_by_one(prompt, lambda t: _logits(self.decoder, jnp.asarray(t)))

    def theirs(self, prompt: str, mask: np.ndarray | None = None) -> np.ndarray:
        hf = self.hf
        if mask is not None:
            hf = copy.deepcopy(hf)
            for layer, kept in zip(hf.model.layers, mask, strict=True):
                # A channel without a way out is a channel that is not there.
                layer.mlp.down_proj.weight.data *= torch.tensor(kept)[None]

        def logits(tokens):
            with torch.no_grad():
                return hf(torch.tensor(tokens)).logits.numpy()

        return self.one_by_one(prompt, logits)


@jax.jit
def _logits(model, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    attend = attention.causal(*tokens.shape)
    return model.unembed(model(tokens, positions, masks_lib.DENSE, attend)[0])


def _open(path: pathlib.Path, hf: transformers.PreTrainedModel) -> _Model:
    base = base_model.open_base_model(str(path))
    tokenizer = base.tokenizer()
    decoder = loading.load_decoder(base.reader, base.config, dtype=jnp.float32)
    renderer = chat.ChatRenderer(tokenizer, date='2026-01-01')
    stops = stop_tokens.stop_ids(base.generation_config(), tokenizer)
    return _Model(path, hf.eval(), base, decoder, renderer, sorted(stops))


def _make(path: pathlib.Path, kind: str) -> _Model:
    """A judge that mostly says numbers, with two tokens that end its turn."""
    tokenizer = _tokenizer(kind)
    torch.manual_seed(4)
    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=360,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=10,
            rms_norm_eps=1e-3,
            rope_parameters={'rope_type': 'default', 'rope_theta': 777.0},
            max_position_embeddings=_POSITIONS,
            bos_token_id=1,
            eos_token_id=[2, 3],
            pad_token_id=0,
        )
    )
    for name, parameter in hf.named_parameters():
        parameter.data.normal_(1.0 if 'norm' in name else 0.0, 0.3)
    digits = [i for token, i in tokenizer.get_vocab().items() if token.isdigit()]
    scale = torch.full((360, 1), 0.3)
    scale[digits] = 2.0
    scale[2:4] = 8.0
    hf.lm_head.weight.data *= scale
    hf.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return _open(path, hf)


@pytest.fixture(scope='module')
def split(tmp_path_factory) -> _Model:
    return _make(tmp_path_factory.mktemp('split'), 'split')


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> _Model:
    return _make(tmp_path_factory.mktemp('whole'), 'whole')


@pytest.fixture(scope='module', params=['split', 'whole'])
def model(request) -> _Model:
    return request.getfixturevalue(request.param)


def _requests(prompts) -> list[judge_scoring.JudgeRequest]:
    return [
        judge_scoring.JudgeRequest(f'q{number}', prompt)
        for number, prompt in enumerate(prompts)
    ]


def _probabilities(judge, model, prompts) -> np.ndarray:
    tokens = [
        model.renderer.tokenizer.encode(model.rendered(p), add_special_tokens=False)
        for p in prompts
    ]
    found = {
        number: values for number, values, _ in judge.measured(dict(enumerate(tokens)))
    }
    assert sorted(found) == list(range(len(prompts)))
    return np.array([found[number] for number in range(len(prompts))])


def test_the_tokenizers_split_digits_and_do_not(split, whole):
    for model, want in ((split, [1, 2, 3]), (whole, [1, 1, 1])):
        encode = model.renderer.tokenizer.encode
        assert [len(encode(text)) for text in ('8', '85', '100')] == want
        assert model.stops == [2, 3]


def test_every_reply_has_the_probability_it_has_alone(model):
    found = _probabilities(model.judge(), model, _PROMPTS)
    theirs = np.array([model.theirs(prompt) for prompt in _PROMPTS])
    np.testing.assert_allclose(found, theirs, rtol=2e-4, atol=0)
    ours = np.array([model.ours(prompt) for prompt in _PROMPTS[:1]])
    np.testing.assert_allclose(found[:1], ours, rtol=2e-4, atol=0)
    assert found.sum(axis=1).max() < 1


def test_a_mask_is_a_pruned_judge(split):
    rng = np.random.default_rng(0)
    mask = (rng.random((3, 40)) < 0.6).astype(np.float32)
    found = _probabilities(split.judge(mask), split, _PROMPTS[:2])
    theirs = np.array([split.theirs(prompt, mask) for prompt in _PROMPTS[:2]])
    np.testing.assert_allclose(found, theirs, rtol=2e-4, atol=0)
    dense = _probabilities(split.judge(), split, _PROMPTS[:2])
    assert np.abs(np.log(found / dense)).max() > 0.1


def test_verdicts_are_the_means_of_the_probabilities(model):
    verdicts = {v.key: v for v in model.judge().judge(_requests(_PROMPTS))}
    for request in _requests(_PROMPTS):
        numbers = model.theirs(request.prompt)
        mass = numbers[:101].sum()
        verdict = verdicts[request.key]
        assert verdict.mass == pytest.approx(mass, rel=1e-3)
        assert verdict.refusal == pytest.approx(numbers[101], rel=1e-3)
        if mass < 0.25:
            assert verdict.score is None
        else:
            want = numbers[:101] @ np.arange(101) / mass
            assert verdict.score == pytest.approx(want, rel=1e-3)
        if verdict.understood:
            assert verdict.text == str(numbers[:101].argmax())
        else:  # What it begins with, number or not.
            tokenizer = model.renderer.tokenizer
            ids = tokenizer.encode(
                model.rendered(request.prompt), add_special_tokens=False
            )
            logits = _logits(model.decoder, jnp.asarray([ids]))
            assert verdict.text == tokenizer.decode([int(logits[0, -1].argmax())])
    assert {verdict.score is None for verdict in verdicts.values()} == {True, False}


def test_each_request_is_scored_on_its_own_range(model, monkeypatch):
    # This judge is sure of nothing.
    monkeypatch.setattr(judge_scoring, 'MIN_MASS', 1e-9)
    requests = [
        judge_scoring.JudgeRequest(f'{prompt} {numbers}', prompt, numbers)
        for prompt in _PROMPTS[:3]
        for numbers in ((1, 5), (0, 100), (80, 90))
    ]
    verdicts = {v.key: v for v in model.judge().judge(requests)}
    for request in requests:
        lowest, highest = request.numbers
        own = model.theirs(request.prompt)[lowest : highest + 1]
        verdict = verdicts[request.key]
        assert verdict.mass == pytest.approx(own.sum(), rel=1e-3)
        want = own @ np.arange(lowest, highest + 1) / own.sum()
        assert verdict.score == pytest.approx(want, rel=1e-3)


def test_neither_company_nor_batches_change_a_verdict(split):
    requests = _requests(
        [f'Say {number:2}.' + 'x' * (7 * number % 11) for number in range(11)]
    )
    whole = {v.key: v for v in split.judge(batch_size=16).judge(requests)}
    parts = {v.key: v for v in split.judge(batch_size=3).judge(requests)}
    shortest_first = [
        f'q{number}' for number in sorted(range(11), key=lambda n: 7 * n % 11)
    ]
    assert list(whole) == list(parts) == shortest_first
    for request in requests[::5]:
        (alone,) = split.judge().judge([request])
        for found in (whole[request.key], parts[request.key]):
            assert found.mass == pytest.approx(alone.mass, rel=1e-4)
            assert found.text == alone.text
    assert list(split.judge().judge(requests)) == list(split.judge().judge(requests))


def test_one_group_is_judged_after_the_other(split, monkeypatch):
    """So that what prompts about one persona start with is computed once."""
    requests = [
        judge_scoring.JudgeRequest(f'q{number}', f'Of {group}: {number}?', group=group)
        for number, group in enumerate('abab')
    ]
    judge, calls = split.judge(), []
    measured = judge.measured

    def seen(prompts):
        calls.append(len(prompts))
        return measured(prompts)

    monkeypatch.setattr(judge, 'measured', seen)
    assert [verdict.key for verdict in judge.judge(requests)] == [
        'q0',
        'q2',
        'q1',
        'q3',
    ]
    assert calls == [2, 2]


def test_prompts_of_like_length_are_compiled_once(split):
    judge = split.judge()
    list(judge.judge(_requests(['a' * 20, 'b' * 30])))
    before = judge_local._log_probs._cache_size()
    assert before > 0
    list(judge.judge(_requests(['c' * 25, 'd' * 28, 'e' * 22])))
    assert judge_local._log_probs._cache_size() == before


def test_what_cannot_be_judged_fails_alone(split):
    template = split.rendered('')
    # 'REFUSAL' is the longest reply, of 7 tokens.
    fits = 'x' * (_POSITIONS - 7 - len(split.renderer.tokenizer.encode(template)))
    requests = _requests([fits, fits + 'x', 'the end<end>', 'Fine.'])
    verdicts = {v.key: v for v in split.judge().judge(requests)}
    assert verdicts['q0'].failure == verdicts['q3'].failure == ''
    theirs = split.theirs(fits)
    assert verdicts['q0'].mass == pytest.approx(theirs[:101].sum(), rel=1e-3)
    assert verdicts['q0'].refusal == pytest.approx(theirs[101], rel=1e-3)
    assert 'a reply take 257' in verdicts['q1'].failure
    # A marker that stands in an answer is read, and ends no turn.
    spaced = split.theirs('the end< end>')
    assert verdicts['q2'].mass == pytest.approx(spaced[:101].sum(), rel=1e-3)
    assert list(split.judge().judge([])) == []


def test_a_turn_that_opens_differently_is_no_place_for_the_same_replies(split):
    tokenizer = copy.deepcopy(split.renderer.tokenizer)
    tokenizer.chat_template = (
        _TEMPLATE + '{% if "hard" in messages[-1].content %}Hm, {% endif %}'
    )
    renderer = chat.ChatRenderer(tokenizer, date='2026-01-01')
    judge = dataclasses.replace(split, renderer=renderer).judge()
    verdicts = list(judge.judge(_requests(['Is it hard?', 'Is it easy?'])))
    assert ['opens its turn differently' in v.failure for v in verdicts] == [
        True,
        False,
    ]


def test_the_identity_tells_judges_apart(split, tmp_path):
    mask = np.ones((3, 40), np.float32)
    other = mask.copy()
    other[2, 7] = 0
    half = loading.load_decoder(
        split.base.reader, split.base.config, dtype=jnp.bfloat16
    )
    tokenizer = copy.deepcopy(split.renderer.tokenizer)
    tokenizer.chat_template = _TEMPLATE.replace('assistant', 'judge')
    judges = [
        split.judge(),
        split.judge(mask),
        split.judge(other),
        dataclasses.replace(split, decoder=half).judge(),
        dataclasses.replace(
            split, renderer=chat.ChatRenderer(tokenizer, date='2026-01-01')
        ).judge(),
    ]
    tokenizer = copy.deepcopy(split.renderer.tokenizer)
    tokenizer.eos_token = '<pad>'
    judges.append(
        dataclasses.replace(
            split, renderer=chat.ChatRenderer(tokenizer, date='2026-01-01')
        ).judge()
    )
    assert len({judge.identity for judge in judges}) == len(judges)
    assert split.judge().identity == split.judge(batch_size=3).identity
    assert split.judge(mask).identity == split.judge(jnp.asarray(mask)).identity


def _refused(model, tokenizer, **changes) -> str:
    renderer = chat.ChatRenderer(tokenizer, date='2026-01-01')
    with pytest.raises(errors.InputError) as caught:
        dataclasses.replace(model, renderer=renderer, **changes).judge()
    return str(caught.value)


def test_replies_that_change_the_prompt_are_refused(split):
    tokenizer = _tokenizer('whole')
    tokenizer.chat_template = _TEMPLATE.replace('assistant ', 'assistant 1')
    assert "the reply '0' changes the tokens" in _refused(split, tokenizer)
    tokenizer = _with_merges([('R', 'E'), ('a', 'RE')])
    tokenizer.chat_template = _TEMPLATE.replace('assistant ', 'assistant: a')
    assert "the reply 'REFUSAL' changes the tokens" in _refused(split, tokenizer)


def test_replies_that_cannot_be_told_apart_are_refused(split):
    tokenizer = _with_merges([], unknown='0123456789')
    assert 'does not tell the numbers' in _refused(split, tokenizer)
    tokenizer = _tokenizer('whole')
    tokenizer.chat_template = '{% for m in messages %}{{ m.content }}{% endfor %}'
    assert 'does not open its turn' in _refused(split, tokenizer)


def test_a_tokenizer_of_a_larger_model_is_refused(split):
    config = dataclasses.replace(split.base.config, vocab_size=50)
    base = dataclasses.replace(split.base, config=config)
    assert 'belongs to another model' in _refused(
        split, split.renderer.tokenizer, base=base
    )


def test_a_judge_that_never_ends_is_refused(split, tmp_path):
    tokenizer = copy.deepcopy(split.renderer.tokenizer)
    tokenizer.eos_token = None
    # Nor does its template end an answer with one.
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    config = split.hf.config.to_dict() | {'eos_token_id': None}
    hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    hf.save_pretrained(tmp_path)
    base = base_model.open_base_model(str(tmp_path))
    assert 'no token that ends an answer' in _refused(split, tokenizer, base=base)


def test_arguments_are_checked(split):
    with pytest.raises(AssertionError, match=r'\(40,\).*\(3, 40\)'):
        split.judge(np.ones(40, np.float32))
    with pytest.raises(ValueError, match='batch_size must be at least 1'):
        split.judge(batch_size=0)


def test_a_real_tokenizer_and_template(chatty_model):
    """SmolLM2's: digits apart, a refusal in three tokens."""
    hf = transformers.LlamaForCausalLM.from_pretrained(chatty_model)
    model = _open(chatty_model, hf)
    prompt = judge_prompts.PROMPTS['roleplay']('A ferryman.', 'Is it far?', 'Nay.')
    found = _probabilities(model.judge(), model, [prompt])[0]
    rendered = model.renderer.prompt([{'role': 'user', 'content': prompt}])
    # transformers' logits over 49,152 tokens, for a few replies.
    for reply in (0, 8, 85, 100, 101):
        text = judge_local.REPLIES[reply]
        own = model.renderer.tokenizer.encode(text)
        with torch.no_grad():
            logits = hf(torch.tensor([rendered + own])).logits[0].double()
        log_probs = torch.log_softmax(logits, -1).numpy()
        start = len(rendered) - 1
        said = log_probs[np.arange(start, start + len(own)), own].sum()
        end = np.logaddexp.reduce(log_probs[start + len(own), model.stops])
        np.testing.assert_allclose(np.log(found[reply]), said + end, atol=2e-3)
        assert len(own) == (3 if reply > 99 else len(text))


def test_branched_attention_equals_separate_rows():
    """Two continuations of one text, behind a prefix with unused slots."""
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    # A prefix of 3 in 5 slots; a text of 2, branches of 1 and 2 tokens.
    cache_k, cache_v = draw(1, 5, 2, 6), draw(1, 5, 2, 6)
    q, k, v = draw(2, 5, 4, 6), draw(2, 5, 2, 6), draw(2, 5, 2, 6)
    sees = [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4]]
    mask = np.zeros((2, 5, 5), bool)
    for token, seen in enumerate(sees):
        mask[:, token, seen] = True
    # [L, B, K, S, H].
    whole = attention.KVCache(
        *(jnp.asarray(held[None].swapaxes(2, 3)) for held in (cache_k, cache_v))
    )
    cache = attention.LayerCache(whole, jnp.int32(0))
    attend = attention.Branched(jnp.int32(3), jnp.asarray(mask))
    found, _ = jax.jit(lambda *args: attend(*args))(q, k, v, cache)
    for row in range(2):
        for token, seen in enumerate(sees):
            keys = np.concatenate([cache_k[0, :3], k[row, seen]])
            values = np.concatenate([cache_v[0, :3], v[row, seen]])
            for head in range(4):
                logits = keys[:, head // 2] @ q[row, token, head] / 6**0.5
                weights = np.exp(logits) / np.exp(logits).sum()
                want = weights @ values[:, head // 2]
                np.testing.assert_allclose(found[row, token, head], want, atol=1e-6)
