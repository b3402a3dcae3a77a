"""A local model and a server as speakers of dialogues."""

import copy
import json
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ppjax.data import chat, stop_tokens
from ppjax.evaluation.dialogues import dialogues, speakers
from ppjax.models import base_model, generation, loading
from ppjax.models import masks as masks_lib
from tests.evaluation.dialogues import speaking_server

_PERSONA = 'Ida bakes RYE bread and fears geese.'


def _start(
    question: str, *more: dialogues.Cue, system_prompt: str = f'Be this: {_PERSONA}'
) -> dialogues.Start:
    cues = (dialogues.Cue(question), *more)
    return dialogues.Start(_PERSONA, system_prompt, cues, 'ida')


def _talk(exchanges: int, system: bool = True) -> list[dict[str, str]]:
    said = [('system', 'S')] * system
    for number in range(exchanges):
        said += [('user', f'u{number}'), ('assistant', f'a{number}')]
    said.append(('user', 'last'))
    return [{'role': role, 'content': text} for role, text in said]


@pytest.mark.parametrize('system', [True, False])
def test_the_oldest_exchange_but_the_first_goes_first(system):
    talk, kept = _talk(3, system), []
    while talk is not None:
        kept.append(' '.join(m['content'] for m in talk if m['role'] != 'system'))
        assert (talk[0]['role'] == 'system') == system
        talk = speakers.forget(talk)
    assert kept == ['u0 a0 u1 a1 u2 a2 last', 'u0 a0 u2 a2 last', 'u0 a0 last', 'last']


_POSITIONS = 200


class _Local:
    """A tiny model of few positions in both frameworks."""

    def __init__(self, path):
        self.base = base_model.open_base_model(str(path))
        self.decoder = loading.load_decoder(
            self.base.reader, self.base.config, dtype=jnp.float32
        )
        self.renderer = chat.ChatRenderer(self.base.tokenizer(), date='2026-01-01')
        self.hf = transformers.LlamaForCausalLM.from_pretrained(path).eval()
        self.stops = stop_tokens.stop_ids(
            self.base.generation_config(), self.renderer.tokenizer
        )

    def speaker(self, mask=None, **options: Any) -> speakers.LocalSpeaker:
        settings = {'weights': 'tiny', 'max_new_tokens': 8} | options
        stops = settings.pop('stops', self.stops)
        renderer = settings.pop('renderer', self.renderer)
        return speakers.LocalSpeaker(
            self.decoder, masks_lib.Masks(mask), renderer, stops, **settings
        )

    def theirs(self, messages, new: int = 8) -> str:
        prompt = self.renderer.prompt(messages)
        with torch.no_grad():
            out = self.hf.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                generation_config=transformers.GenerationConfig(
                    max_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                    eos_token_id=sorted(self.stops),
                ),
            )
        return self.renderer.tokenizer.decode(
            out[0, len(prompt) :], skip_special_tokens=True
        )


@pytest.fixture(scope='module')
def local(chatty_model, tmp_path_factory):
    path = tmp_path_factory.mktemp('short') / 'model'
    shutil.copytree(chatty_model, path)
    file = path / 'config.json'
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {'max_position_embeddings': _POSITIONS}))
    return _Local(path)


def test_a_local_dialogue_is_what_transformers_says_turn_by_turn(local, log):
    model = local.speaker(batch_size=8)
    partner = local.speaker(weights='partner', max_new_tokens=4, batch_size=8)
    starts = [_start('Why?', system_prompt='Bake.'), _start('Tell me.')]
    for held in dialogues.hold_all(model, partner, starts, turns=2, log_path=log):
        assert not held.failure
        first, second = held.turns
        start = held.start
        assert first.answer == local.theirs(
            dialogues.model_view(start, [], start.cues[0])
        )
        assert first.tokens == 8 and not first.finished
        view = dialogues.partner_view([first])
        assert second.cue.text == local.theirs(view, 4).strip()
        view = dialogues.model_view(start, [first], second.cue)
        assert second.answer == local.theirs(view)


def test_a_long_conversation_forgets_and_answers_what_is_left(local):
    def long(exchanges: int) -> list[dict[str, str]]:
        talk = _talk(exchanges)
        for message in talk[1:-1]:
            message['content'] += ' bread' * 28
        return talk

    lengths = [len(local.renderer.prompt(long(n))) for n in range(5)]
    room = _POSITIONS - 8
    assert _POSITIONS * 3 // 4 < lengths[2] <= room < lengths[3] < lengths[4]
    model = local.speaker(batch_size=8)
    found = dict(model.speak([long(n) for n in (4, 2, 3)]))
    assert [found[n].forgotten for n in range(3)] == [2, 0, 1]
    assert not any(said.failure for said in found.values())
    kept = long(4)
    kept = kept[:3] + kept[7:]
    assert found[0].text == local.theirs(kept)
    # Long answers keep a quarter of the positions free, not all of them.
    for exchanges, lost in ((1, 0), (2, 1)):
        ((_, said),) = local.speaker(max_new_tokens=10**4).speak([long(exchanges)])
        assert (said.forgotten, said.failure) == (lost, '')
        assert said.finished or said.tokens == _POSITIONS - lengths[1]


def test_what_cannot_be_said_fails_alone(local):
    talks = [
        _talk(0),
        [{'role': 'user', 'content': 'bread ' * _POSITIONS}],
        [{'role': 'system', 'content': 'the <|im_end|> mark'}, *_talk(0)],
        [*_talk(1)[:-1], {'role': 'user', 'content': ' bread' * (_POSITIONS - 24)}],
    ]
    found = dict(local.speaker(batch_size=8).speak(talks))
    assert found[0].text == local.theirs(_talk(0)) and not found[0].failure
    assert 'leaves no room' in found[1].failure
    assert "model's own markup" in found[2].failure
    # The last words have the least room that there can be.
    assert (found[3].failure, found[3].forgotten) == ('', 1)
    assert dict(local.speaker().speak(talks[2:3]))[0].failure
    # What the other says has no effect but that of its words.
    marked, spaced = (
        [{'role': 'user', 'content': f'the {mark} mark'}]
        for mark in ('<|im_end|>', '< |im_end|>')
    )
    (said,) = dict(local.speaker().speak([marked])).values()
    assert (said.failure, said.text) == ('', local.theirs(spaced))


def test_a_speaker_is_told_from_others_by_all_that_changes_its_words(local):
    mask = np.ones((2, 40), np.float32)
    mask[0, 3] = 0
    tokenizer = copy.deepcopy(local.renderer.tokenizer)
    tokenizer.chat_template = 'X' + tokenizer.chat_template
    other = chat.ChatRenderer(tokenizer, date='2026-01-01')
    identities = [
        local.speaker().identity,
        local.speaker(weights='other').identity,
        local.speaker(max_new_tokens=9).identity,
        local.speaker(stops=[5]).identity,
        local.speaker(sampling=generation.Sampling(temperature=1.0)).identity,
        local.speaker(seed=1).identity,
        local.speaker(jnp.ones((2, 40))).identity,
        local.speaker(jnp.asarray(mask)).identity,
        local.speaker(renderer=other).identity,
    ]
    assert len(set(identities)) == 9
    assert local.speaker(batch_size=3).identity == identities[0]


def test_sampled_words_do_not_depend_on_company_or_order(local):
    options = {'sampling': generation.Sampling(temperature=1.0), 'seed': 3}
    talks = [[{'role': 'user', 'content': text}] for text in ('Why?', 'Who?', 'How?')]
    together = dict(local.speaker(batch_size=8, **options).speak(talks))
    alone = dict(local.speaker(batch_size=8, **options).speak(talks[::-1][:1]))
    assert alone[0] == together[2]
    other = dict(local.speaker(batch_size=8, **options | {'seed': 4}).speak(talks))
    assert other[2] != together[2]


def test_a_mask_speaks_like_a_pruned_model(local):
    mask = np.ones((2, 40), np.float32)
    mask[:, 5:] = 0
    found = dict(local.speaker(jnp.asarray(mask), batch_size=8).speak([_talk(1)]))
    saved = [layer.mlp.down_proj.weight.data.clone() for layer in local.hf.model.layers]
    try:
        for layer, kept in zip(local.hf.model.layers, mask, strict=True):
            layer.mlp.down_proj.weight.data *= torch.tensor(kept)[None]
        assert found[0].text == local.theirs(_talk(1))
    finally:
        for layer, weight in zip(local.hf.model.layers, saved, strict=True):
            layer.mlp.down_proj.weight.data = weight
    assert found[0].text != local.theirs(_talk(1))


def test_what_a_server_is_sent_and_says(server):
    server.plan = lambda m: speaking_server.reply(f'So {m[-1]["content"]}?', 'length')
    ((index, said),) = server.speaker(seed=5).speak([_talk(1)])
    assert (index, said) == (0, speakers.Said('So last?', 0, False))
    assert server.bodies == [
        {
            'model': 'tiny',
            'messages': _talk(1),
            'max_tokens': 50,
            'temperature': 0,
            'seed': 5,
            'stream': False,
        }
    ]


_LONG = [
    (400, {'error': {'message': "This model's maximum context length is 9 tokens."}}),
    (400, {'error': {'message': 'the request exceeds the available context size'}}),
    (413, {'error': {'message': 'Too large.'}}),
]


@pytest.mark.parametrize('refusal', _LONG)
def test_what_is_too_long_for_a_server_forgets_until_it_fits(server, refusal):
    server.plan = lambda m: (
        refusal
        if len(m) > 4
        else speaking_server.reply(' '.join(x['content'] for x in m))
    )
    found = dict(server.speaker().speak([_talk(1), _talk(3), _talk(2)]))
    assert {n: (said.forgotten, said.text) for n, said in found.items()} == {
        0: (0, 'S u0 a0 last'),
        1: (2, 'S u0 a0 last'),
        2: (1, 'S u0 a0 last'),
    }
    server.plan = lambda m: refusal
    server.bodies.clear()
    ((_, said),) = server.speaker().speak([_talk(2)])
    assert said.failure.startswith(f'HTTP {refusal[0]}')
    assert [len(body['messages']) for body in server.bodies] == [6, 4, 2]


@pytest.mark.parametrize(
    ('plan', 'why'),
    [
        ((500, {'error': 'crashed'}), 'HTTP 500: crashed'),
        (speaking_server.reply(' \n'), 'the answer is empty'),
        (speaking_server.reply('', 'content_filter'), 'the answer is filtered'),
        (speaking_server.reply('', refusal='No.'), 'the answer is filtered'),
    ],
)
def test_what_a_server_does_not_say_fails_alone(server, plan, why):
    server.plan = lambda m: plan if len(m) == 4 else speaking_server.reply('Yes.')
    found = dict(server.speaker().speak([_talk(1), _talk(2)]))
    assert found[0] == speakers.failed(why)
    assert found[1] == speakers.Said('Yes.', 0, True)


def test_a_servers_speaker_is_told_by_model_and_settings(server):
    identities = {
        server.speaker().identity,
        server.speaker(model='large').identity,
        server.speaker(max_new_tokens=51).identity,
        server.speaker(seed=1).identity,
    }
    assert len(identities) == 4
    assert server.url not in ''.join(identities)
