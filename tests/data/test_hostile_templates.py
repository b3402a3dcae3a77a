"""Templates and tokenizers that hang, fill the memory, or belong to another model."""

import copy
import json
import shutil
import time

import pytest

from ppjax.base import errors
from ppjax.data import chat
from ppjax.models import base_model
from tests.models import gguf_tokenizers

_ASK = [{'role': 'user', 'content': 'Hello?'}]


def _renderer(tokenizer, template=None, **options) -> chat.ChatRenderer:
    tokenizer = copy.deepcopy(tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    return chat.ChatRenderer(tokenizer, date='2026-01-01', **options)


def _refused(action, *parts: str) -> None:
    with pytest.raises(errors.InputError) as caught:
        action()
    message = str(caught.value)
    assert '\n' not in message
    assert len(message) < 600
    for part in parts:
        assert part in message


def test_nested_loops_are_stopped(smollm2_tokenizer, monkeypatch):
    monkeypatch.setattr(chat, '_RENDER_SECONDS', 0.1)
    loops = ''.join(f'{{% for a{i} in range(99999) %}}' for i in range(4))
    renderer = _renderer(smollm2_tokenizer, loops + '{% endfor %}' * 4)
    began = time.monotonic()
    _refused(lambda: renderer.prompt(_ASK), 'template was stopped')
    assert time.monotonic() - began < 10


def test_a_template_that_writes_without_end(smollm2_tokenizer):
    renderer = _renderer(smollm2_tokenizer, "{{ 'x' * 9999999 }}")
    _refused(lambda: renderer.prompt(_ASK), '9999999 characters')


@pytest.mark.parametrize(
    'template',
    ['{% for %}', "{{ raise_exception('a\nb' * 9999) }}", '{{ x.y.z }}', '(' * 99999],
)
def test_what_templates_say_is_one_line(smollm2_tokenizer, template):
    renderer = _renderer(
        smollm2_tokenizer, '{{' + template if '((' in template else template
    )
    _refused(lambda: renderer.prompt(_ASK), 'refused a conversation')


@pytest.mark.parametrize('templates', [{}, {'tool': 'x'}])
def test_named_templates_without_a_default(smollm2_tokenizer, templates):
    _refused(lambda: _renderer(smollm2_tokenizer, templates), 'chat template')


def test_tokens_that_the_model_does_not_embed(smollm2_tokenizer):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.add_tokens(['<more>'])
    index = tokenizer.convert_tokens_to_ids('<more>')
    renderer = _renderer(tokenizer, vocab_size=index)
    renderer.prompt(_ASK)
    template = tokenizer.chat_template + '<more>'
    renderer = _renderer(tokenizer, template, vocab_size=index)
    _refused(
        lambda: renderer.prompt(_ASK), f'token {index}', "'<more>'", f'{index} tok'
    )
    assert index in _renderer(tokenizer, template).prompt(_ASK)


def test_a_gguf_without_a_template_is_told_from_a_folder(tmp_path, smollm2_tokenizer):
    path = gguf_tokenizers.write(
        tmp_path / 'm.gguf', 'smollm', {'tokenizer.chat_template': None}
    )
    bare = base_model.open_base_model(str(path)).tokenizer()
    _refused(lambda: _renderer(bare), str(path), 'instruction-tuned', 'GGUF')
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    again = base_model.transformers.AutoTokenizer.from_pretrained(tmp_path)
    _refused(lambda: _renderer(again), 'chat_template.jinja')


_FILES = ('tokenizer.json', 'tokenizer_config.json')
_DAMAGE = [b'', b'{', b'\xff\xfe', b'null', b'[1]', b'"x"', b'{}', b'{"model": 3}']


@pytest.mark.parametrize('name', _FILES)
@pytest.mark.parametrize('content', _DAMAGE)
def test_damaged_tokenizer_files(chatty_model, tmp_path, name, content):
    folder = tmp_path / 'model'
    shutil.copytree(chatty_model, folder)
    (folder / name).write_bytes(content)
    base = base_model.open_base_model(str(folder))
    try:
        base.tokenizer().encode('Hello.')
    except errors.InputError as error:
        assert '\n' not in str(error)
        assert str(folder) in str(error)
    else:  # transformers makes do with what is left.
        assert name == 'tokenizer_config.json'


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        (('model', 'vocab'), {'a': -1}),
        (('model', 'vocab'), {'a': 2**40}),
        (('model', 'vocab'), {}),
        (('model', 'merges'), [['a', 'zzz']]),
        (('model', 'type'), 'Nothing'),
        (('added_tokens',), [{'id': 'x'}]),
        (('pre_tokenizer',), {'type': 'Split', 'pattern': {'Regex': '('}}),
        (('decoder',), 7),
    ],
)
def test_damaged_parts_of_a_tokenizer(chatty_model, tmp_path, path, value):
    folder = tmp_path / 'model'
    shutil.copytree(chatty_model, folder)
    file = folder / 'tokenizer.json'
    whole = json.loads(file.read_text())
    place = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(whole))
    base = base_model.open_base_model(str(folder))
    _refused(base.tokenizer, str(folder), 'tokenizer')


def test_the_fingerprint_is_of_what_decides_ids_and_chats(smollm2_tokenizer, tmp_path):
    want = base_model.tokenizer_fingerprint(smollm2_tokenizer)
    smollm2_tokenizer.save_pretrained(tmp_path)
    again = base_model.transformers.AutoTokenizer.from_pretrained(tmp_path)
    again(['a', 'b c d'], padding=True, truncation=True, max_length=3)
    assert base_model.tokenizer_fingerprint(again) == want

    def changed(change) -> str:
        other = copy.deepcopy(smollm2_tokenizer)
        change(other)
        return base_model.tokenizer_fingerprint(other)

    def template(tokenizer):
        tokenizer.chat_template += ' '

    def token(tokenizer):
        tokenizer.add_tokens(['<more>'])

    def end(tokenizer):
        tokenizer.eos_token = '<|endoftext|>'

    found = {want, changed(template), changed(token), changed(end)}
    assert len(found) == 4
