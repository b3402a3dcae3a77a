"""PIQA, OpenBookQA and MMLU against lm-evaluation-harness itself."""

import json
import pathlib
import random

import jax.numpy as jnp
import pytest
import transformers

from ppjax.base import errors
from ppjax.benchmarking import lm_eval_tasks
from ppjax.evaluation.multiple_choice import (
    benchmark_sources,
    choice_tasks,
    choice_tokens,
)
from ppjax.models import base_model, loading
from ppjax.models import masks as masks_lib

pytest.importorskip('lm_eval', reason='the reference is lm-evaluation-harness')

_DATA = pathlib.Path(__file__).parents[3].parent / 'shared' / 'data' / 'benchmarks'
_WORDS = (
    'bread', 'knife ', 'garçon', '水', '🙂', 'a', 'of the', 'x  y', '½', "don't", '\tq',
)  # fmt: skip


def _text(rng, most):
    count = rng.randint(1, most) if most < 30 else 3 * most
    return ' '.join(rng.choices(_WORDS, k=count)).strip() or 'x'


def _rows(task, count=12):
    """Rows of every shape: no ASCII, equal choices, outer blanks, very long ones."""
    rng = random.Random(task)
    rows = []
    for number in range(count):
        tail = ' ' * (number % 3)  # The context may end in blanks.
        texts = [_text(rng, 9) for _ in range(4)]
        words = 6 if number != 5 else 30
        if number == 3:
            texts = ['same'] * 4
        label = rng.randrange(2)
        if task == 'piqa':
            row = {'goal': _text(rng, words) + tail, 'sol1': texts[0], 'sol2': texts[1]}
        else:
            row = {'question': _text(rng, words) + tail, 'choices': texts}
            if task == 'mmlu':
                row['subject'] = ('anatomy', 'machine_learning')[number % 2]
        rows.append(row | {'label': label})
    return rows


@pytest.fixture(scope='module')
def tiny(tmp_path_factory, chatty_model):
    """A tiny Llama with SmolLM2's tokenizer and few positions."""
    path = tmp_path_factory.mktemp('short')
    tokenizer = transformers.AutoTokenizer.from_pretrained(chatty_model)
    config = transformers.AutoConfig.from_pretrained(chatty_model)
    config.max_position_embeddings = 75
    hf = transformers.AutoModelForCausalLM.from_pretrained(chatty_model, config=config)
    hf.save_pretrained(path)
    tokenizer.save_pretrained(path)
    base = base_model.open_base_model(str(path))
    return (
        base,
        hf.eval(),
        loading.load_decoder(base.reader, base.config, dtype=jnp.float32),
    )


def _compare(base, hf, decoder, task, rows, dev, shots, tmp_path):
    files = {}
    for name, values in (('rows', rows), ('dev', dev)):
        files[name] = tmp_path / f'{name}.jsonl'
        files[name].write_text(''.join(json.dumps(row) + '\n' for row in values))
    questions = benchmark_sources.questions(
        task, str(files['rows']), dev=str(files['dev']), num_shots=shots
    )
    tokenizer = base.tokenizer()
    seen = []
    got = choice_tasks.evaluate(
        decoder,
        masks_lib.DENSE,
        tokenizer,
        questions,
        batch_tokens=512,
        progress=lambda done, total: seen.append((done, total)),
    )
    want = lm_eval_tasks.run(hf, tokenizer, task, rows, dev=dev, num_shots=shots)
    assert [question.context for question in questions] == want['prompts']
    choices = sum(len(question.choices) for question in questions)
    assert (seen[0], seen[-1]) == ((0, choices), (choices, choices))
    return questions, got, want


def _same(questions, got, want, tolerance):
    found = [row['log_likelihoods'] for row in got['questions']]
    assert len(questions) == len(found) == len(want['log_likelihoods'])
    for ours, theirs in zip(found, want['log_likelihoods'], strict=True):
        assert ours == pytest.approx(theirs, abs=tolerance)
    assert got['acc']['value'] == pytest.approx(want['acc'], abs=1e-12)
    norm = None if got['acc_norm'] is None else got['acc_norm']['value']
    assert norm == (
        None if want['acc_norm'] is None else pytest.approx(want['acc_norm'])
    )


@pytest.mark.parametrize(
    ('task', 'shots'), [('piqa', 0), ('openbookqa', 0), ('mmlu', 0), ('mmlu', 2)]
)
def test_tiny_model_on_odd_rows(tiny, task, shots, tmp_path):
    base, hf, decoder = tiny
    rows = _rows(task)
    dev = _rows('mmlu', 6)
    # Longer than the model's positions: the harness cuts the context's beginning.
    questions, got, want = _compare(base, hf, decoder, task, rows, dev, shots, tmp_path)
    longest = max(len(base.tokenizer().encode(q.context)) for q in questions)
    assert longest > base.config.max_position
    _same(questions, got, want, 1e-3)


@pytest.mark.skipif(not _DATA.is_dir(), reason='the real data do not ship')
def test_real_rows_on_the_real_model(smollm2, smollm2_hf, tmp_path):
    for task, file, count, shots in (
        ('piqa', 'piqa_valid', 6, 0),
        ('openbookqa', 'openbookqa_test', 6, 0),
        ('mmlu', 'mmlu_test_6_subjects', 3, 1),
    ):
        rows = [json.loads(line) for line in (_DATA / f'{file}.jsonl').open()][:count]
        dev = [json.loads(line) for line in (_DATA / 'mmlu_dev.jsonl').open()]
        _same(
            *_compare(
                smollm2.base, smollm2_hf, smollm2.decoder, task, rows, dev, shots,
                tmp_path,
            ),
            1e-3,
        )  # fmt: skip


# --- Tokens ---------------------------------------------------------------------


class _Letters:
    """A tokenizer of letters that begins texts with token 1 unless told not to."""

    bos_token_id = 1
    eos_token_id = 2

    def encode(self, text, add_special_tokens=True):
        head = [1] if add_special_tokens else []
        if text.startswith('<s>'):
            head, text = [*head, 1], text[3:]
        return head + [ord(letter) for letter in text]

    def decode(self, token):
        return '<s>' if token == 1 else chr(token)


def _encode(context, *texts, max_length=100, tokenizer=None):
    return choice_tokens.encode(
        tokenizer or _Letters(), context, texts, max_length=max_length, where='row 7'
    )


def _ids(text):
    return tuple(map(ord, text))


def test_blanks_go_to_the_continuation():
    assert _encode('ab  ', ' c') == [((1, *_ids('ab')), _ids('   c'))]


def test_never_two_beginnings():
    assert _encode('<s>ab', ' c') == [((1, *_ids('ab')), _ids(' c'))]


def test_an_empty_context_is_the_beginning_of_text():
    assert _encode('', 'c') == [((1,), _ids('c'))]
    assert _encode('', '<s>c') == [((1,), _ids('c'))]
    tokenizer = _Letters()
    tokenizer.bos_token_id = None
    assert _encode('', 'c', tokenizer=tokenizer) == [((2,), _ids('c'))]


def test_long_contexts_lose_their_beginning():
    found = _encode('abcdef', ' x', ' xyz', max_length=5)
    assert found == [(_ids('cdef'), _ids(' x')), (_ids('ef'), _ids(' xyz'))]
    # All but the last token are fed: exactly as many as the model has positions.
    assert all(len(a) + len(b) - 1 == 5 for a, b in found)


def test_choices_that_cannot_be_scored():
    with pytest.raises(errors.InputError, match='row 7: a choice of 6 tokens'):
        _encode('ab', ' vwxyz', max_length=5)
    with pytest.raises(errors.InputError, match="row 7: choice '' has no tokens"):
        _encode('ab', '')
    tokenizer = _Letters()
    tokenizer.bos_token_id = tokenizer.eos_token_id = None
    with pytest.raises(errors.InputError, match='neither a beginning nor an end'):
        _encode('ab', 'c', tokenizer=tokenizer)
