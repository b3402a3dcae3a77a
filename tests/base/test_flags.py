"""Settings as flags: written out and read back, and refused by name."""

import dataclasses
import os
import pathlib
import string
from typing import Any

from absl import flags as absl_flags
import hypothesis
import hypothesis.strategies as st
import pytest

from ppjax.base import errors, flags
from ppjax.chatting import config as chatting_config
from ppjax.evaluation import config as evaluation_config
from ppjax.recovery import config as recovery_config
from ppjax.synthesis import config as synthesis_config
from ppjax.training import config as config_lib

_GIVEN = {'base_model': 'a/b', 'calibration': 'c.jsonl', 'output_dir': 'out'}


@dataclasses.dataclass(frozen=True)
class _Settings:
    """One field of every kind."""

    text: str = flags.setting('x', 'Some text.')
    maybe: str | None = flags.setting(None, 'Text or nothing.')
    count: int = flags.setting(3, 'A number.', within='[-1e300, 1e300]')
    limit: int | None = flags.setting(
        None, 'A number or nothing.', within='[-1e300, 1e300]'
    )
    rate: float = flags.setting(0.5, 'A share.', within='[-1e300, 1e300]')
    on: bool = flags.setting(True, 'A switch.')
    off: bool = flags.setting(False, 'Another switch.')
    kind: str = flags.setting('b', 'One of three.', choices=('a', 'b', 'c'))

    def __post_init__(self) -> None:
        if self.count < 0:
            raise errors.InputError(f'--count must not be negative, got {self.count}.')


def _round_trip(tmp_path, settings: Any) -> Any:
    path = tmp_path / 'config.flags'
    path.write_text(flags.to_flagfile(settings), encoding='utf-8')
    return flags.from_flagfile(type(settings), path)


def _read(tmp_path, text: str) -> _Settings:
    path = tmp_path / 'config.flags'
    path.write_text(text, encoding='utf-8')
    return flags.from_flagfile(_Settings, path)


def test_train_config_defaults_round_trip(tmp_path):
    cfg = config_lib.TrainConfig(**_GIVEN)
    assert _round_trip(tmp_path, cfg) == cfg


def test_train_config_with_no_default_left_round_trips(tmp_path):
    changed = config_lib.TrainConfig(
        base_model='dir with spaces/ü',
        calibration='demo:{persona}',
        heldout='{persona}.jsonl',
        personas='ferryman, other',
        personas_per_step=13,
        shared_steps=14,
        shared_score_scale=0.7,
        shared_calibration='{persona}/all.jsonl',
        output_dir='runs/1',
        overwrite=True,
        granularity='blocks',
        sparsity=0.1 + 0.2,
        align=1,
        score_init='random',
        score_scale=1 / 3,
        estimator='gumbel',
        objective='ce+kl',
        anneal=0.5,
        learning_rate=1e-5,
        weight_decay=0.0,
        warmup=0.0,
        epochs=1.5,
        steps=7,
        batch_size=3,
        micro_batches=2,
        max_length=99,
        remat='full',
        dtype='bfloat16',
        seed=11,
        date='2025-02-03',
        heldout_every=5,
        checkpoint_every=6,
        log_every=8,
        stop_after=9,
        mesh='data:1',
        int8_base=True,
    )
    rows = dataclasses.replace(
        changed,
        shared_steps=None,
        shared_score_scale=None,
        shared_calibration=None,
        calibration_rows=12,
    )
    # What does not go together, each with what it needs.
    variants = (
        changed,
        rows,
        dataclasses.replace(
            rows,
            granularity='channels',
            objective='ce',
            anneal=0.0,
            gains=True,
            gain_learning_rate=0.3,
            mask_steps=5,
            nested='0.1:0.6',
            prompt_dropout=0.4,
            short_prompt='Be {persona}.',
        ),
        config_lib.TrainConfig(**_GIVEN, budget='global', width_floor=2),
    )
    for field in dataclasses.fields(changed):
        values = {getattr(variant, field.name) for variant in variants}
        assert values - {field.default}, field.name
    for variant in variants:
        assert _round_trip(tmp_path, variant) == variant


# A flagfile has one flag a line and strips it; quotes, '#', '=' and '--' are text.
_texts = st.text(
    st.characters(codec='utf-8', exclude_categories=['C', 'Z'])
    | st.sampled_from(' #=-"\'\\,$'),
    max_size=8,
).filter(lambda text: text and text == text.strip())


@hypothesis.given(
    text=_texts,
    maybe=st.none() | _texts,
    count=st.integers(0, 2**62),
    limit=st.none() | st.integers(-(2**62), 2**62),
    rate=st.floats(-1e300, 1e300),
    on=st.booleans(),
    off=st.booleans(),
    kind=st.sampled_from('abc'),
)
def test_every_kind_of_value_round_trips(tmp_path_factory, **values):
    settings = _Settings(**values)
    assert _round_trip(tmp_path_factory.getbasetemp(), settings) == settings


@pytest.mark.parametrize('text', ['two\nlines', 'carriage\rreturn', ' space', 'tab\t'])
def test_text_that_a_flagfile_would_lose_is_refused(text):
    with pytest.raises(errors.InputError, match='--text'):
        flags.to_flagfile(_Settings(text=text))


@dataclasses.dataclass(frozen=True)
class _Paths:
    files: str | None = flags.setting(None, 'Files.', path=True)
    text: str | None = flags.setting(None, 'Text.')


def test_home_is_read_in_every_part_of_a_path_flag(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ida')
    argv = ['--files=~/a.jsonl:5,b~c,~/d', '--text=~/x']
    parsed = flags.parse(_Paths, argv)
    assert parsed.files == '/home/ida/a.jsonl:5,b~c,/home/ida/d'
    assert parsed.text == '~/x'
    assert flags.parse(_Paths, []).files is None


def test_absent_flags_take_their_defaults(tmp_path):
    assert _read(tmp_path, '# nothing\n\n--count=5\n') == _Settings(count=5)


def test_reading_leaves_the_process_flags_alone(tmp_path):
    before = set(absl_flags.FLAGS)
    _read(tmp_path, '--count=5\n')
    assert set(absl_flags.FLAGS) == before


def test_unknown_flag_names_the_nearest(tmp_path):
    with pytest.raises(errors.InputError) as caught:
        _read(tmp_path, '--cuont=5\n')
    message = str(caught.value)
    assert 'cuont' in message
    assert 'Did you mean: count' in message
    assert str(tmp_path / 'config.flags') in message


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        ('--kind=d\n', ['--kind=d', 'a|b|c']),
        ('--count=many\n', ['count', 'many']),
        ('--rate=fast\n', ['rate', 'fast']),
        ('--on=maybe\n', ['on', 'maybe']),
        ('--count=-1\n', ['--count', '-1']),
        # Without dashes a line sets nothing, and absl stops reading there.
        ('count=5\n', ['count=5']),
        ('--count=5\nrate=0.1\n--limit=4\n', ['rate=0.1']),
    ],
)
def test_bad_lines_are_refused_by_name(tmp_path, text, wanted):
    with pytest.raises(errors.InputError) as caught:
        _read(tmp_path, text)
    for part in wanted:
        assert part in str(caught.value)


def test_absent_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(errors.InputError, match='does not exist'):
        flags.from_flagfile(_Settings, tmp_path / 'none.flags')
    path = tmp_path / 'binary.flags'
    path.write_bytes(b'--text=\xff\xfe\n')
    with pytest.raises(errors.InputError, match=r'binary\.flags'):
        flags.from_flagfile(_Settings, path)


def test_flags_carry_help_default_and_choices():
    values = absl_flags.FlagValues()
    flags.define(_Settings, values)
    for field in dataclasses.fields(_Settings):
        assert values[field.name].default == field.default
        assert field.metadata['help'].rstrip('.') in values[field.name].help
    assert values['kind'].parser.enum_values == ['a', 'b', 'c']


def test_help_is_a_sentence_for_every_flag_of_train():
    for field in dataclasses.fields(config_lib.TrainConfig):
        text = field.metadata['help']
        assert text.endswith('.'), field.name
        assert text[0] in string.ascii_uppercase, field.name


def test_flagfiles_include_others(tmp_path):
    (tmp_path / 'inner.flags').write_bytes(
        b'\xef\xbb\xbf--count=5\n  // no\n--kind=c\n'
    )
    text = f'--text=a b\n--flagfile={tmp_path / "inner.flags"}\n--kind=a\n'
    assert _read(tmp_path, text) == _Settings(text='a b', count=5, kind='a')


@pytest.mark.parametrize(
    ('spoil', 'text'),
    [
        (lambda path: path.write_text(f'--flagfile={path}'), 'includes itself'),
        (lambda path: path.mkdir(), 'no regular file'),
        (os.mkfifo, 'no regular file'),
        (lambda path: path.symlink_to('/dev/zero'), 'no regular file'),
        (lambda path: path.symlink_to(path), 'Too many levels'),
        (lambda path: path.write_bytes(b'--text=\xff'), 'not UTF-8'),
        (lambda path: None, 'does not exist'),
    ],
)
def test_bad_flagfiles_are_refused_at_once(tmp_path, spoil, text):
    path = tmp_path / 'bad.flags'
    spoil(path)
    for argv in ([f'--flagfile={path}'], ['-flagfile', str(path)]):
        with pytest.raises(errors.InputError, match=text):
            flags.parse(_Settings, argv)


@pytest.mark.parametrize('value', ['', ' ', '\n', 'a\0b', '\udcff'])
def test_text_that_says_nothing_is_refused(value):
    for argv in ([f'--maybe={value}'], ['--maybe', value]):
        with pytest.raises(errors.InputError, match='--maybe is'):
            flags.parse(_Settings, argv)


@dataclasses.dataclass(frozen=True)
class _Writes:
    result: str | None = flags.setting(None, 'Where to.', writes=True)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('n' * 240, 'File name too long'),
        ('', 'it is a folder'),
        ('file/result.json', 'no folder that can be written to'),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, name, reason
):
    (tmp_path / 'file').touch()
    flags.parse(_Writes, [f'--result={tmp_path / "new" / "result.json"}'])
    with pytest.raises(errors.InputError, match=f'--result: cannot write .*{reason}'):
        flags.parse(_Writes, [f'--result={tmp_path / name}'])
    assert [x.name for x in tmp_path.iterdir()] == ['file']


def test_seeds_of_all_verbs_have_32_bits():
    common = {'output_dir': 'o', 'base_model': 'b'}
    verbs = [
        (config_lib.TrainConfig, common | {'calibration': 'c'}),
        (
            synthesis_config.SynthesizeConfig,
            common | {'persona': 'p', 'instructions': 'i'},
        ),
        (recovery_config.RecoverConfig, common | {'calibration': 'c'}),
        (evaluation_config.EvaluateConfig, common),
        (chatting_config.ChatConfig, {'base_model': 'b'}),
    ]
    for settings, given in verbs:
        assert settings(**given, seed=2**32 - 1).seed == 2**32 - 1
        for seed in (-1, 2**32, 10**400):
            with pytest.raises(
                errors.InputError, match=r'--seed must be in \[0, 4294967295'
            ):
                settings(**given, seed=seed)


@dataclasses.dataclass(frozen=True)
class _Looks:
    """Settings that look at the path they are given."""

    seed: int = flags.setting(1, 'A number.')
    model: str | None = flags.setting(None, 'Models, with names.', path=True)
    output_dir: str | None = flags.setting(None, 'Where to.', path=True)

    def __post_init__(self) -> None:
        if self.model:
            os.stat(self.model.partition('=')[2] or self.model)
        if self.output_dir:
            os.stat(pathlib.Path(self.output_dir) / 'config.flags')


@pytest.mark.parametrize('start', ['--output_dir=', '--model=', '--model=a='])
def test_a_name_too_long_for_a_file_is_one_line(start):
    with pytest.raises(
        errors.InputError, match=r'nn[^ ]*: File name too long'
    ) as found:
        flags.parse(_Looks, [start + 'n' * 300])
    assert str(found.value).startswith(start.partition('=')[0] + ': nn')
