"""The whole of synthesis on a tiny model with real text."""

import json
import pathlib

import numpy as np
import pytest

from ppjax import demo
from ppjax.base import errors, json_lines
from ppjax.data import calibration, chat
from ppjax.models import base_model
from ppjax.personas import evaluation_set, prompts
from ppjax.synthesis import config, pipeline, rewriting, scoring, selection, sources

_PERSONA = 'Ida Holm keeps bees on a roof in Aarhus and answers everything by honey.'
_COUNT = 30


@pytest.fixture
def files(tmp_path):
    """Instructions and rewrites for all of them, as files."""
    rows = demo.instructions()[:_COUNT]
    instructions = tmp_path / 'general.jsonl'
    instructions.write_text(
        ''.join(
            json.dumps({'instruction': query, 'input': '', 'output': answer}) + '\n'
            for _, query, answer in rows
        )
    )
    rewrites = tmp_path / 'rewrites.jsonl'
    rewrites.write_text(
        ''.join(
            json.dumps({'query': query, 'rewrite': f'By honey, friend: {number}.'})
            + '\n'
            for number, (_, query, _) in enumerate(rows)
        )
    )
    return instructions, rewrites


@pytest.fixture
def settings(chatty_model, files, tmp_path):
    def make(**changes):
        instructions, rewrites = files
        values = {
            'base_model': str(chatty_model),
            'output_dir': str(tmp_path / 'run'),
            'persona': _PERSONA,
            'instructions': str(instructions),
            'rewriter': 'file',
            'rewrites': str(rewrites),
            'keep_fraction': 0.5,
            'test_size': 4,
            'train_size': 9,
            'batch_tokens': 256,
        } | changes
        return config.SynthesisSettings(**values)

    return make


def _lines(path: pathlib.Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _contents(folder: pathlib.Path):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name not in ('status.json', 'synthesis.json')
    }


def test_the_most_sensitive_queries_are_for_testing(settings, tmp_path):
    made = pipeline.synthesize(settings())
    run = tmp_path / 'run'
    scores = {row['query_id']: row['score'] for row in _lines(run / 'scores.jsonl')}
    assert len(scores) == _COUNT
    ranked = sorted(scores, key=lambda name: -scores[name])
    test, train = calibration.read_rows(made.test), calibration.read_rows(made.train)
    assert [row.query_id for row in test] == ranked[:4]
    assert [row.query_id for row in train] == ranked[4:13]
    selected = _lines(run / 'selected.jsonl')
    assert [row['query_id'] for row in selected] == ranked[: _COUNT // 2]
    assert [row['split'] for row in selected] == ['test'] * 4 + ['train'] * 9 + [
        'unused'
    ] * 2
    assert [row['score'] for row in selected] == [scores[name] for name in ranked[:15]]

    by_query = {
        query: number for number, (_, query, _) in enumerate(demo.instructions())
    }
    for row in test + train:
        assert row.system_prompt == prompts.persona_prompt(_PERSONA)
        assert row.answer == f'By honey, friend: {by_query[row.query]}.'
    questions = evaluation_set.read(run / 'evaluation_set.json')
    assert questions.questions == tuple(row.query for row in test)
    assert questions.persona.text == _PERSONA


def test_statistics_are_of_all_and_of_the_kept(settings, tmp_path):
    pipeline.synthesize(settings())
    record = json.loads((tmp_path / 'run/results/synthesis.json').read_text())
    found = record['selection']
    rows = _lines(tmp_path / 'run/scores.jsonl')
    scores = np.sort([row['score'] for row in rows])[::-1]
    assert found['mean_all'] == pytest.approx(scores.mean())
    assert found['mean_kept'] == pytest.approx(scores[:15].mean())
    assert found['threshold'] == scores[14]
    assert sum(found['histogram']['counts']) == _COUNT
    assert [row['score'] for row in found['highest']] == scores[:5].tolist()
    assert [row['score'] for row in found['lowest']] == scores[::-1][:5].tolist()
    assert record['rewriting']['kept'] == 13
    assert record['rewriting']['train'] == 9


def test_the_same_command_again_changes_nothing_and_asks_nothing(
    settings, tmp_path, monkeypatch
):
    pipeline.synthesize(settings())
    before = _contents(tmp_path / 'run')

    def fail(*arguments, **options):
        raise AssertionError('asked again')

    monkeypatch.setattr(scoring.loading, 'load_decoder', fail)
    monkeypatch.setattr(sources.rewrite_file.FileRewriter, 'rewrite', fail)
    pipeline.synthesize(settings())
    assert _contents(tmp_path / 'run') == before


def test_scoring_cut_short_goes_on(settings, tmp_path, monkeypatch):
    pipeline.synthesize(settings(output_dir=str(tmp_path / 'whole')))

    append = json_lines.AppendLog.append

    def torn(log, *values):
        append(log, *values[:11])
        # As a power cut would leave it.
        with (tmp_path / 'run' / 'scores.jsonl').open('ab') as file:
            file.write(b'{"query_id": "gen')
        raise KeyboardInterrupt

    monkeypatch.setattr(json_lines.AppendLog, 'append', torn)
    with pytest.raises(KeyboardInterrupt):
        pipeline.synthesize(settings())
    monkeypatch.undo()
    pipeline.synthesize(settings())
    whole, resumed = (_contents(tmp_path / name) for name in ('whole', 'run'))
    for name in ('scores.jsonl', 'selected.jsonl', 'calibration/train.jsonl'):
        assert resumed[name] == whole[name]


def test_nobody_rewrites_and_somebody_does_later(settings, tmp_path, monkeypatch):
    made = pipeline.synthesize(settings(rewriter='none'))
    assert made.train is None and made.test is None
    assert not (tmp_path / 'run' / 'calibration').exists()
    scores = (tmp_path / 'run' / 'scores.jsonl').read_bytes()
    made = pipeline.synthesize(settings())
    assert len(calibration.read_rows(made.train)) == 9
    assert (tmp_path / 'run' / 'scores.jsonl').read_bytes() == scores


def test_rewrites_with_markup_are_dropped_and_the_rest_can_be_learned(
    settings, files, chatty_model, tmp_path
):
    endings = ('<|im_start|>', '<|eot_id|> no', ' <thought>Hm.', '<|eot_id|>', '<b>')
    rows = demo.instructions()[:_COUNT]
    files[1].write_text(
        ''.join(
            json.dumps({'query': query, 'rewrite': f'Aye {n}.{endings[n % 5]}'}) + '\n'
            for n, (_, query, _) in enumerate(rows)
        )
    )
    made = pipeline.synthesize(settings())
    record = json.loads((tmp_path / 'run' / 'results' / 'synthesis.json').read_text())
    counts = record['rewriting']
    assert counts['dropped']['markup']
    assert 0 < counts['cut'] < counts['kept']
    tokenizer = base_model.open_base_model(str(chatty_model)).tokenizer()
    renderer = chat.ChatRenderer(tokenizer, date='2026-01-01')
    learned = calibration.read_rows(made.train)
    assert all(row.answer.endswith(('.', '.<b>')) for row in learned)
    assert chat.render_rows(renderer, learned, 1024)[1] == chat.Dropped()


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'keep_fraction': 0.6}, '--keep_fraction (0.5 there, 0.6 now)'),
        ({'persona': 'A quite different person.'}, 'the content of persona'),
        ({'score_layers': '0:2'}, '--score_layers'),
    ],
)
def test_another_run_is_refused_by_what_differs(settings, tmp_path, changes, named):
    pipeline.synthesize(settings(rewriter='none'))
    before = _contents(tmp_path / 'run')
    with pytest.raises(errors.InputError) as caught:
        pipeline.synthesize(settings(rewriter='none', **changes))
    assert named in str(caught.value)
    assert _contents(tmp_path / 'run') == before


def test_changed_instructions_are_noticed(settings, files):
    pipeline.synthesize(settings(rewriter='none'))
    with files[0].open('a') as lines:
        lines.write('{"instruction": "Why?", "input": "", "output": "So."}\n')
    with pytest.raises(errors.InputError, match='the content of instructions'):
        pipeline.synthesize(settings(rewriter='none'))


def test_evaluation_questions_are_never_learned(settings, tmp_path):
    asked = [demo.instructions()[3][1], demo.instructions()[8][1].upper()]
    folder = tmp_path / 'sets'
    folder.mkdir()
    evaluation_set.write(
        folder / 'one.json',
        evaluation_set.EvaluationSet(
            sources.persona_lib.Persona('Someone else.'), tuple(asked)
        ),
    )
    pipeline.synthesize(settings(exclude_queries=str(folder), keep_fraction=1.0))
    queries = {row['query'] for row in _lines(tmp_path / 'run' / 'selected.jsonl')}
    assert len(queries) == _COUNT - 2
    assert demo.instructions()[3][1] not in queries
    assert demo.instructions()[8][1] not in queries


def test_the_target_is_no_reference_of_itself(settings, tmp_path):
    both = tmp_path / 'references.jsonl'
    both.write_text(json.dumps(_PERSONA) + '\n' + json.dumps('A calm baker.') + '\n')
    only = tmp_path / 'only.jsonl'
    only.write_text(json.dumps('A calm baker.') + '\n')
    for name, path in (('both', both), ('only', only)):
        pipeline.synthesize(
            settings(
                rewriter='none',
                reference_personas=str(path),
                output_dir=str(tmp_path / name),
            )
        )
    both_scores, only_scores = (
        (tmp_path / name / 'scores.jsonl').read_bytes() for name in ('both', 'only')
    )
    assert both_scores == only_scores
    alone = tmp_path / 'alone.jsonl'
    alone.write_text(json.dumps(_PERSONA) + '\n')
    with pytest.raises(errors.InputError, match='no persona besides the target'):
        pipeline.synthesize(
            settings(
                reference_personas=str(alone), output_dir=str(tmp_path / 'alone-run')
            )
        )


class _Describer:
    """Answers whatever it is asked, and remembers it."""

    identity = 'describer'

    def __init__(self):
        self.asked = []

    def rewrite(self, requests):
        for request in requests:
            self.asked.append(request)
            yield rewriting.Reply(
                request.query_id, f'Said of {request.query_id} at length.', True
            )


def test_a_role_is_described_once_and_then_used(settings, tmp_path, monkeypatch):
    describer = _Describer()
    monkeypatch.setattr(sources, 'open_rewriter', lambda *arguments: describer)
    role = settings(persona=None, role='James Bond', rewriter='local', rewrites=None)
    made = pipeline.synthesize(role)
    first = describer.asked[0]
    assert first.messages[0]['content'] == prompts.role_expansion_prompt('James Bond')
    assert made.persona.text == 'Said of James Bond at length.'
    assert made.persona.name == 'James Bond'
    row = calibration.read_rows(made.train)[0]
    assert row.system_prompt == prompts.persona_prompt('Said of James Bond at length.')
    count = len(describer.asked)
    pipeline.synthesize(role)
    assert len(describer.asked) == count


def test_nothing_to_learn_from_is_an_error():
    rows = tuple(
        sources.instructions.Instruction('q', 'a', str(i), 's') for i in range(10)
    )
    scored = scoring.Scored(rows, tuple(np.arange(10.0)), 0, 0)
    with pytest.raises(errors.InputError, match='nothing is left to learn from'):
        pipeline.split(scored, keep_fraction=0.4, test_size=4, train_size=9)
    kept = pipeline.split(scored, keep_fraction=0.5, test_size=4, train_size=9)
    assert [one.split for one in kept] == ['test'] * 4 + ['train']
    assert [one.row.query_id for one in kept] == ['9', '8', '7', '6', '5']
    assert selection.ranking(scored.scores)[0] == 9


def test_a_damaged_score_file_is_named(settings, tmp_path):
    pipeline.synthesize(settings(rewriter='none'))
    path = tmp_path / 'run' / 'scores.jsonl'
    path.write_text('{"query_id": "x"}\n' + path.read_text())
    with pytest.raises(
        errors.InputError, match=r'scores\.jsonl:1: no row of a file of score'
    ):
        pipeline.synthesize(settings(rewriter='none'))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'persona': None}, 'Give --persona .* or --role'),
        ({'role': 'Bond'}, 'Give --persona .* or --role'),
        ({'persona': None, 'role': 'Bond'}, '--role is described by the rewriter'),
        ({'instructions': None}, '--instructions must be given'),
        ({'rewrites': None}, '--rewriter=file needs --rewrites'),
        ({'rewriter': 'openai'}, '--rewriter=openai needs --server_url'),
        ({'server_url': 'http://host:99999'}, '--server_url has port 99999'),
        ({'keep_fraction': 0.0}, r'--keep_fraction must be in \(0, 1\]'),
        ({'test_size': -1}, r'--test_size must be in \[0, '),
        ({'train_size': 0}, '--train_size must be at least 1'),
        ({'score_layers': '5'}, '--score_layers must be a:b'),
        ({'rewrite_temperature': float('nan')}, '--rewrite_temperature must be in'),
    ],
)
def test_bad_settings_are_refused(settings, changes, message):
    with pytest.raises(errors.InputError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ('mesh', 'message'),
    [('-1', 'is not AXIS:SIZE'), ('data:99', 'does not make use of the 8 devices')],
)
def test_a_mesh_that_cannot_be_leaves_no_folder(settings, tmp_path, mesh, message):
    with pytest.raises(errors.InputError, match=message):
        pipeline.synthesize(settings(mesh=mesh))
    assert not (tmp_path / 'run').exists()
