"""Judges that rank: what they are asked, what counts as a ranking, and resuming."""

import json

import pytest

from ppjax.base import errors, flags
from ppjax.chat_api import client as client_lib
from ppjax.evaluation.dialogues import speakers
from ppjax.ranking import config, dimensions, judging, pipeline, results, study
from tests.ranking import samples


def _speaker(server: samples.RankingServer) -> speakers.ServerSpeaker:
    client = client_lib.ChatClient(
        server.url,
        'tiny',
        api_key_env='PPJAX_TEST_NO_KEY',
        concurrency=2,
        retries=0,
        backoff=0.01,
    )
    return speakers.ServerSpeaker(client, max_new_tokens=64)


def _judge(opened: study.Study, server: samples.RankingServer) -> list[str]:
    return judging.judge(opened, 'tiny', _speaker(server))


@pytest.mark.parametrize(
    ('reply', 'found'),
    [
        ('["B", "A", "C"]', 'BAC'),
        ('\n ["C","B","A"] ', 'CBA'),
        ('```json\n["B", "A", "C"]\n```', 'BAC'),
        ('```\n["B", "A", "C"]\n```', 'BAC'),
        ('Sure! ["B", "A", "C"]', None),
        ('["B", "A", "C"] is my order.', None),
        ('["B", "A"]', None),
        ('["B", "A", "A"]', None),
        ('["B", "A", "C", "D"]', None),
        ('["b", "a", "c"]', None),
        ('[["B"], "A", "C"]', None),
        ('{"B": 1, "A": 2, "C": 3}', None),
        ('"BAC"', None),
        ('B, A, C', None),
        ('', None),
        ('[' * 100_000, None),
    ],
)
def test_only_a_list_of_the_letters_is_a_ranking(reply, found):
    assert judging.parse(reply, 'ABC') == (found and list(found))


def test_a_prompt_names_no_model(make_study):
    asked = make_study().questionnaire
    item = asked.items[0]
    shown = list(samples.MODELS)
    prompts = {
        dimension.name: judging.prompt(item, shown, dimension)
        for dimension in dimensions.DIMENSIONS
    }
    assert len(set(prompts.values())) == 3
    prompt = prompts['character_fidelity']
    assert item.persona in prompt
    assert samples.letters_of(prompt) == {'ours': 'A', 'rival': 'B', 'third': 'C'}
    # Only in the answers, which say so themselves here.
    without = [line for line in prompt.splitlines() if ': ' + item.question not in line]
    assert not any(model in ' '.join(without) for model in ('ours', 'rival', 'third'))


def test_a_persona_with_braces_is_not_filled_in(make_study):
    item = make_study().questionnaire.items[0]
    item = type(item)('{answers} {count}', '{persona}', item.answers)
    prompt = judging.prompt(item, samples.MODELS, dimensions.DIMENSIONS[0])
    assert '{answers} {count}' in prompt
    assert '\n{persona}\n' in prompt


def test_every_ranking_is_asked_for_in_two_orders(make_study, ranking_server):
    opened = make_study()
    assert _judge(opened, ranking_server) == []
    assert len(ranking_server.asked) == 2 * 3 * 2
    [judge] = opened.participants()
    assert judge.kind == study.JUDGE
    by_item: dict[tuple[str, str], list[dict[str, str]]] = {}
    for prompt in ranking_server.asked:
        item = next(x for x in opened.questionnaire.items if x.question in prompt)
        dimension = next(x for x in dimensions.DIMENSIONS if x.question in prompt)
        own = by_item.setdefault((item.question, dimension.name), [])
        own.append(samples.letters_of(prompt))
    turned = str.maketrans('ABC', 'CBA')
    for one, other in by_item.values():
        assert {m: x.translate(turned) for m, x in one.items()} == other
    # Whatever the order, this judge goes by the names.
    assert {(x.model, x.rank) for x in opened.rankings()} == {
        ('ours', 1.0),
        ('rival', 2.0),
        ('third', 3.0),
    }


def test_a_judge_of_places_ranks_all_alike(make_study, ranking_server):
    opened = make_study()
    ranking_server.reply = lambda prompt: '["A", "B", "C"]'
    _judge(opened, ranking_server)
    assert {one.rank for one in opened.rankings()} == {2.0}
    own = results.summarise(opened)['groups']['tiny']['consistency']
    assert own == {
        'n_replies': 12,
        'n_invalid': 0,
        'n_rankings': 6,
        'identical': 0.0,
        'pairs': 0.0,
        'rank_of_first': 1.0,
    }


def test_replies_that_are_no_ranking_are_counted_and_not_asked_again(
    make_study, ranking_server
):
    opened = make_study()
    fidelity = dimensions.DIMENSIONS[1].question
    ranking_server.reply = lambda prompt: (
        'All are good.' if fidelity in prompt else samples.by_name(prompt)
    )
    assert _judge(opened, ranking_server) == []
    asked = len(ranking_server.asked)
    assert _judge(opened, ranking_server) == []
    assert len(ranking_server.asked) == asked
    found = results.summarise(opened)
    own = found['groups']['tiny']
    assert own['consistency']['n_invalid'] == 4
    assert own['dimensions']['character_fidelity']['ours']['mean'] is None
    assert own['dimensions']['storyline_quality']['ours']['mean'] == 1.0
    # Without one of the three there is no mean of three.
    assert own['overall']['ours']['mean'] is None
    results.text(found), results.markdown(found)


def test_what_failed_is_asked_again(make_study, ranking_server):
    opened = make_study()
    quality = dimensions.DIMENSIONS[2].question
    ranking_server.reply = lambda prompt: (
        400 if quality in prompt else samples.by_name(prompt)
    )
    failures = _judge(opened, ranking_server)
    assert len(failures) == 4
    assert 'no' in failures[0]
    ranking_server.reply = samples.by_name
    ranking_server.asked.clear()
    assert _judge(opened, ranking_server) == []
    assert len(ranking_server.asked) == 4
    assert len(opened.rankings()) == 2 * 3 * 3


def test_a_judge_that_is_interrupted_goes_on(make_study, ranking_server, serve_json):
    opened = make_study()

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judging.judge(opened, 'tiny', _speaker(ranking_server), progress=stop)
    kept = opened.replies(opened.participants()[0].code)
    assert len(kept) == 5
    # A request that was under way may still reach the first one.
    later = samples.RankingServer(serve_json)
    _judge(opened, later)
    assert len(later.asked) == 12 - 5
    assert len(opened.rankings()) == 2 * 3 * 3


def test_another_setting_is_another_judge(make_study, ranking_server):
    opened = make_study()
    _judge(opened, ranking_server)
    other = speakers.ServerSpeaker(
        client_lib.ChatClient(ranking_server.url, 'tiny'), max_new_tokens=99
    )
    judging.judge(opened, 'tiny', other)
    first, second = opened.participants()
    assert first.name == second.name == 'tiny'
    found = results.summarise(opened)
    assert [own['participant'] for own in found['groups'].values()] == [
        first.code,
        second.code,
    ]
    assert all(name.startswith('tiny (') for name in found['groups'])


def test_halves_of_characters_are_kept_as_text(make_study, ranking_server):
    opened = make_study()
    ranking_server.reply = lambda prompt: 'a \ud83d b'
    _judge(opened, ranking_server)
    replies = opened.replies(opened.participants()[0].code)
    assert {reply.text for reply in replies} == {'a � b'}


def test_the_verb_with_a_server(sources, ranking_server, tmp_path):
    cfg = config.RankConfig(
        answers=sources,
        output_dir=str(tmp_path / 'run'),
        items=2,
        judge='openai',
        judge_model='tiny',
        judge_url=ranking_server.url,
    )
    assert 'Overall mean rank (as Table 5)' in pipeline.rank(cfg)
    found = json.loads((tmp_path / 'run' / 'results' / 'rank.json').read_text())
    assert found['groups']['tiny']['overall']['ours']['mean'] == 1.0
    ranking_server.reply = lambda prompt: 'I like them all.'
    with pytest.raises(errors.InputError, match='gave no ranking in 12 replies'):
        pipeline.rank(
            flags.parse(
                config.RankConfig,
                [
                    f'--output_dir={tmp_path / "run"}',
                    '--judge=openai',
                    '--judge_model=other',
                    f'--judge_url={ranking_server.url}',
                ],
            )
        )


def test_a_local_judge(sources, chatty_model, tmp_path, monkeypatch):
    """A random model writes no list; what it writes is kept and counted."""
    monkeypatch.setattr(pipeline.compile_cache, 'enable', lambda: None)
    cfg = config.RankConfig(
        answers=sources,
        output_dir=str(tmp_path / 'run'),
        items=1,
        judge='local',
        judge_model=str(chatty_model),
        max_new_tokens=3,
    )
    with pytest.raises(errors.InputError, match='gave no ranking in 6 replies'):
        pipeline.rank(cfg)
    opened = study.Study(tmp_path / 'run' / study.NAME)
    [judge] = opened.participants()
    assert len(opened.replies(judge.code)) == 6
    opened.close()
