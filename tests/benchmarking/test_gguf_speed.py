"""`bench gguf`: files of llama.cpp, timed in processes of their own."""

import json

import pytest

from ppjax import bench, export
from ppjax.base import errors
from ppjax.benchmarking import config
from ppjax.exporting import config as export_config
from ppjax.exporting.gguf import llama_cpp


@pytest.fixture(scope='module')
def files(chatty_model, tmp_path_factory):
    """A tiny model in two types."""
    folder = tmp_path_factory.mktemp('gguf')
    export.main(
        export_config.ExportConfig(
            model=str(chatty_model), gguf='f32,f16', output_dir=str(folder)
        )
    )
    return sorted(folder.glob('gguf/*.gguf'), key=lambda x: -x.stat().st_size)


@pytest.mark.skipif(not llama_cpp.is_installed(), reason='llama.cpp is not there')
def test_files_are_timed_in_turn(files, tmp_path, capsys):
    result = tmp_path / 'found.json'
    cfg = config.BenchConfig(
        files=','.join(map(str, files)),
        prompt_length=9,
        answer_length=5,
        rounds=2,
        result=str(result),
    )
    assert bench.main(cfg, 'gguf') == 0
    found = json.loads(result.read_text())
    assert list(found['files']) == [str(file) for file in files]
    for file, own in found['files'].items():
        assert own['bytes'] == next(x for x in files if str(x) == file).stat().st_size
        for key in ('prompt_tokens_per_s', 'answer_tokens_per_s', 'resident_bytes'):
            assert 0 < own[key]['min'] <= own[key]['median'] <= own[key]['max']
    assert set(found['to_the_first'][str(files[0])].values()) == {1.0}
    assert found['to_the_first'][str(files[1])]['bytes'] < 0.7
    assert json.loads(capsys.readouterr().out) == found


@pytest.mark.parametrize(
    ('named', 'message'),
    [(None, 'with --files'), ('none.gguf', 'none.gguf is no file')],
)
def test_what_is_not_there_is_refused(named, message):
    with pytest.raises(errors.InputError, match=message):
        bench.main(config.BenchConfig(files=named), 'gguf')


@pytest.mark.skipif(not llama_cpp.is_installed(), reason='llama.cpp is not there')
def test_a_damaged_file_is_named(tmp_path):
    bad = tmp_path / 'bad.gguf'
    bad.write_bytes(b'GGUF' + bytes(100))
    with pytest.raises(errors.InputError, match=r'bad\.gguf cannot be run'):
        bench.main(config.BenchConfig(files=str(bad)), 'gguf')
