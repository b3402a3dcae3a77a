"""Where compiled programs are kept."""

import os

import jax
import pytest

from ppjax.base import compile_cache


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Verbs turn the compilation cache on; here never in the home directory."""
    names = (
        'jax_compilation_cache_dir',
        'jax_persistent_cache_min_compile_time_secs',
    )
    before = {name: getattr(jax.config, name) for name in names}
    folder = tmp_path_factory.getbasetemp() / 'jax'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(folder))
    monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compile_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    folder = tmp_path / 'deep' / 'jax'
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(folder))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_dir()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.5
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/jax')
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == 'gs://bucket/jax'


def test_what_jax_was_told_is_worth_a_file_is_left_alone(monkeypatch):
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.25)
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.25')
    compile_cache.enable()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.25


def test_compile_cache_is_else_in_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('HOME', str(tmp_path))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / '.cache/ppjax/jax')


def test_compile_cache_stays_off_where_it_cannot_be_written(monkeypatch, tmp_path):
    file = tmp_path / 'file'
    file.write_text('')
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(file / 'jax'))
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(os, 'access', lambda *_: False)
    compile_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
