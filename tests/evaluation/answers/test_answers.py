"""Answers to evaluation questions: against transformers, logged, gone on with."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax.base import errors
from ppjax.data import calibration, chat
from ppjax.evaluation.answers import answers
from ppjax.evaluation.dialogues import speakers
from ppjax.models import base_model, batch_generation, loading
from ppjax.models import masks as masks_lib
from ppjax.personas import evaluation_set, prompts
from ppjax.personas import persona as persona_lib

_ASKED = ('How do you mend a net?', 'What is tea?', 'Say one thing about the sea.')


class _Chatty:
    """The model under test in both frameworks."""

    def __init__(self, path):
        self.base = base_model.open_base_model(str(path))
        self.decoder = loading.load_decoder(
            self.base.reader, self.base.config, dtype=jnp.float32
        )
        self.renderer = chat.ChatRenderer(self.base.tokenizer(), date='2026-01-01')
        self.hf = transformers.LlamaForCausalLM.from_pretrained(path).eval()

    def hf_tokens(self, question, stops, new):
        prompt = self.renderer.prompt(question.messages)
        with torch.no_grad():
            out = self.hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=transformers.GenerationConfig(
                    max_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                    eos_token_id=list(stops),
                ),
            )
        return out[0, len(prompt) :].tolist()


@pytest.fixture(scope='module')
def chatty(chatty_model):
    return _Chatty(chatty_model)


@pytest.fixture(scope='module')
def questions():
    return [
        answers.Question(text, prompts.persona_prompt(text), asked, f'set {number}')
        for number, text in enumerate(('Ida bakes bread.', 'Jon rows a ferry.'))
        for asked in _ASKED
    ]


@pytest.fixture(scope='module')
def stops(chatty, questions):
    """A token that one of the answers has in its middle, and one that none has."""
    free = [chatty.hf_tokens(question, [10**6], 6) for question in questions]
    counts = {t: sum(t in row for row in free) for row in free for t in row[2:]}
    return [min(counts, key=counts.__getitem__), 2]


def _answer(chatty, stops, questions, log_path, mask=None, **changes):
    options = {'identity': 'chatty', 'max_new_tokens': 6, 'batch_size': 8} | changes
    return answers.answer_all(
        chatty.decoder,
        masks_lib.Masks(mask),
        chatty.renderer,
        stops,
        questions,
        log_path=log_path,
        **options,
    )


@pytest.fixture(scope='module')
def whole(chatty, questions, stops, tmp_path_factory):
    """(answers, log) of a run that nothing disturbed."""
    log = tmp_path_factory.mktemp('answers') / 'log.jsonl'
    return _answer(chatty, stops, questions, log), log.read_text()


@pytest.fixture
def asked(monkeypatch):
    """How many prompts each call generated answers to."""
    counts = []
    real = batch_generation.generate_all

    def counted(model, masks, prompts, **options):
        counts.append(len(prompts))
        return real(model, masks, prompts, **options)

    monkeypatch.setattr(batch_generation, 'generate_all', counted)
    return counts


def test_answers_equal_transformers_in_the_order_of_the_questions(
    chatty, questions, stops, whole
):
    found, _ = whole
    assert len(found) == len(questions)
    tokenizer = chatty.renderer.tokenizer
    for question, answer in zip(questions, found, strict=True):
        want = chatty.hf_tokens(question, stops, 6)
        finished = want[-1] in stops
        want = want[:-1] if finished else want
        text = tokenizer.decode(want, skip_special_tokens=True)
        assert answer == speakers.Said(text, len(want), finished)
    # Both ways of ending occurred, and the personas answer differently.
    assert len({answer.finished for answer in found}) == 2
    assert found[0].text != found[3].text


def test_a_killed_run_goes_on_row_by_row(
    chatty, questions, stops, whole, tmp_path, asked
):
    found, text = whole
    lines = text.splitlines(keepends=True)
    assert len(lines) == len(questions)
    log = tmp_path / 'log.jsonl'
    log.write_text(''.join(lines[:2]) + lines[2][:-20])
    seen = []
    again = _answer(chatty, stops, questions, log, progress=lambda *n: seen.append(n))
    assert again == found
    assert asked == [4]
    assert seen == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert sorted(log.read_text().splitlines()) == sorted(text.splitlines())
    assert _answer(chatty, stops, questions[::-1], log) == found[::-1]
    assert asked == [4]


def test_answers_are_on_disk_while_the_run_goes_on(
    chatty, questions, stops, tmp_path, monkeypatch
):
    log = tmp_path / 'log.jsonl'
    real = batch_generation.generate_all

    def killed(*args, **options):
        yield next(real(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_generation, 'generate_all', killed)
    with pytest.raises(KeyboardInterrupt):
        _answer(chatty, stops, questions, log)
    (line,) = log.read_text().splitlines()
    entry = json.loads(line)
    assert entry['question'] in _ASKED and entry['group'].startswith('set ')


@pytest.mark.parametrize(
    'changes',
    [{'identity': 'finetuned'}, {'max_new_tokens': 5}, {'mask': 0}, {'stops': [3]}],
    ids=['identity', 'max_new_tokens', 'mask', 'stops'],
)
def test_what_changes_the_words_asks_anew(
    chatty, questions, stops, whole, tmp_path, asked, changes
):
    log = tmp_path / 'log.jsonl'
    log.write_text(whole[1])
    settings = {'stops': stops} | changes
    if 'mask' in changes:
        mask = np.ones((2, 40), np.float32)
        mask[:, 10:] = 0
        settings['mask'] = jnp.asarray(mask)
    _answer(
        chatty,
        settings.pop('stops'),
        questions,
        log,
        settings.pop('mask', None),
        **settings,
    )
    assert asked == [6]
    # The first model's answers are kept beside them.
    assert log.read_text().startswith(whole[1])
    assert len(log.read_text().splitlines()) == 12


def test_masks_of_one_model_do_not_share_answers(
    chatty, questions, stops, whole, tmp_path, asked
):
    log = tmp_path / 'log.jsonl'
    masks = [np.ones((2, 40), bool) for _ in range(3)]
    masks[1][:, 10:] = False
    masks[2][0, 3] = False
    found = [
        _answer(chatty, stops, questions[:2], log, jnp.asarray(mask)) for mask in masks
    ]
    assert asked == [2, 2, 2]
    assert found[0] == whole[0][:2]
    assert found[1] != found[0]
    _answer(chatty, stops, questions[:2], log, jnp.asarray(masks[1], jnp.float32))
    assert len(asked) == 3


def test_one_prompt_is_asked_once(chatty, questions, stops, whole, tmp_path, asked):
    first = questions[0]
    twin = answers.Question(first.persona, first.system_prompt, first.question, 'other')
    found = _answer(chatty, stops, [first, twin, first], tmp_path / 'log.jsonl')
    assert asked == [1]
    assert len(found) == 3
    assert {answer.text for answer in found} == {whole[0][0].text}


def test_questions_that_cannot_be_asked_are_reported(
    chatty, questions, stops, whole, tmp_path
):
    long = answers.Question('P', 'S', 'word ' * 3000, 'g')
    markup = answers.Question('P', 'S', 'What is <|im_end|>?', 'g')
    log = tmp_path / 'log.jsonl'
    seen = []
    found = _answer(
        chatty,
        stops,
        [markup, questions[0], long],
        log,
        progress=lambda *n: seen.append(n),
    )
    assert found[1] == whole[0][0]
    assert "the model's own markup" in found[0].failure
    assert 'leaves no room in the model' in found[2].failure
    assert [answer.text for answer in found[::2]] == ['', '']
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    # A model with more room may be asked: failures are not kept.
    assert len(log.read_text().splitlines()) == 1
    with pytest.raises(errors.InputError, match=r'None of 2 questions.*markup'):
        _answer(chatty, stops, [markup, long], log)


def test_no_questions_no_answers(chatty, stops, tmp_path):
    assert _answer(chatty, stops, [], tmp_path / 'log.jsonl') == []


@pytest.mark.parametrize(
    'line',
    [
        '[]',
        '{"key": "a"}',
        '{"key": "a", "text": "b", "tokens": "3", "finished": true}',
        '{"key": "a", "text": "b", "tokens": true, "finished": true}',
        '{"key": "a", "text": null, "tokens": 3, "finished": true}',
        '{"key": 1, "text": "b", "tokens": 3, "finished": true}',
    ],
)
def test_another_file_is_refused_by_line(
    chatty, questions, stops, whole, tmp_path, line
):
    log = tmp_path / 'log.jsonl'
    log.write_text(f'{whole[1].splitlines()[0]}\n{line}\n')
    with pytest.raises(errors.InputError, match=r'log\.jsonl:2: no row of an answer'):
        _answer(chatty, stops, questions, log)


def _write(path, text, asked=_ASKED):
    path.parent.mkdir(exist_ok=True)
    persona = persona_lib.Persona(text)
    evaluation_set.write(path, evaluation_set.EvaluationSet(persona, tuple(asked)))
    return path


def test_questions_of_files_and_folders(tmp_path):
    _write(tmp_path / 'sets' / 'b.json', 'Ida bakes.')
    _write(tmp_path / 'sets' / 'a.json', 'Jon rows.', ['Why?', 'Why?'])
    single = _write(tmp_path / 'c.v2.json', 'Ann sings.', ['Who?'])
    found = answers.questions_of([single, str(tmp_path / 'sets')])
    assert [(q.group, q.persona, q.question) for q in found] == [
        ('c.v2', 'Ann sings.', 'Who?'),
        ('a', 'Jon rows.', 'Why?'),
        ('a', 'Jon rows.', 'Why?'),
        *(('b', 'Ida bakes.', question) for question in _ASKED),
    ]
    assert found[0].system_prompt == prompts.persona_prompt('Ann sings.')
    assert found[0].messages == [
        {'role': 'system', 'content': prompts.persona_prompt('Ann sings.')},
        {'role': 'user', 'content': 'Who?'},
    ]


def test_sets_of_one_name_are_told_apart(tmp_path):
    paths = [
        _write(tmp_path / folder / 'user_0.json', f'{folder} bakes.', ['Who?'])
        for folder in ('general', 'specific')
    ]
    found = answers.questions_of(paths)
    assert [q.group for q in found] == ['general/user_0', 'specific/user_0']
    with pytest.raises(errors.InputError, match=r"'general/user_0' was given before"):
        answers.questions_of([paths[0], tmp_path / 'general'])


def test_unusable_sets_are_refused(tmp_path):
    with pytest.raises(errors.InputError, match='holds no evaluation sets'):
        answers.questions_of([tmp_path])
    with pytest.raises(errors.InputError, match=r'absent\.json does not exist'):
        answers.questions_of([tmp_path / 'absent.json'])


def test_notes_about_sets_come_through(tmp_path):
    path = _write(tmp_path / 'a.json', 'Ida bakes.')
    stored = json.loads(path.read_text()) | {'eval_prompt': 'About someone else.'}
    path.write_text(json.dumps(stored))
    notes = []
    answers.questions_of([path], notes.append)
    assert len(notes) == 1 and 'eval_prompt' in notes[0]


def _row(*turns):
    messages = tuple({'role': role, 'content': text} for role, text in turns)
    return calibration.Row(messages, 'id', 'file:1')


def test_questions_of_rows():
    ida = prompts.persona_prompt('Ida bakes.')
    plain = (('user', 'Why?'), ('assistant', 'So.'))
    rows = [
        _row(('system', ida), *plain),
        _row(('user', 'Hi'), ('assistant', 'Hm.'), *plain),
        _row(('system', 'Be Jon.'), *plain),
        _row(*plain),
    ]
    notes = []
    found = answers.questions_of_rows(rows, 'heldout', notes.append)
    assert [(q.persona, q.system_prompt, q.question, q.group) for q in found] == [
        ('Ida bakes.', ida, 'Why?', 'heldout'),
        ('Be Jon.', 'Be Jon.', 'Why?', 'heldout'),
        ('', '', 'Why?', 'heldout'),
    ]
    assert found[2].messages == [{'role': 'user', 'content': 'Why?'}]
    assert notes == ['heldout: 1 of 4 rows have earlier turns; left out.']
    with pytest.raises(errors.InputError, match='heldout: none of 1 rows'):
        answers.questions_of_rows(rows[1:2], 'heldout')
    answers.questions_of_rows(rows[:1], 'heldout', notes.append)
    assert len(notes) == 1


def test_the_papers_limit_is_the_default():
    assert answers.MAX_NEW_TOKENS == 2048
    assert answers.answer_all.__kwdefaults__['max_new_tokens'] == 2048
