"""GGUF models in several files."""

import pathlib

import gguf
import numpy as np
import pytest

from ppjax.base import errors
from ppjax.models import base_model, gguf_reader, open_checkpoint
from tests.models import gguf_files


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """A model as llama-gguf-split leaves it: what is known stands in the first part."""
    arch = 'llama'
    model = gguf_files.model_of(gguf_files.config_of(arch))
    whole = {
        gguf_files.gguf_name(arch, name): gguf_files.as_stored(
            arch, name, weight, model.config
        )
        for name, weight in gguf_files.hf_weights(model).items()
    }
    gguf_files.write_model(tmp_path / 'whole.gguf', arch, model)
    names = sorted(whole)
    found = []
    for number in range(3):
        path = tmp_path / f'part-{number + 1:05d}-of-00003.gguf'
        metadata = {
            'split.no': number,
            'split.count': 3,
            'split.tensors.count': len(names),
        }
        if number == 0:
            metadata |= gguf_files.metadata_of(arch, model.config)
        # The first may hold no tensor at all.
        own = names[(number - 1) * 8 : number * 8 if number == 1 else None]
        tensors = {name: whole[name] for name in own if number}
        found.append(gguf_files.write(path, arch, metadata, tensors))
    return found


@pytest.mark.parametrize('named', [0, 1, 2])
def test_any_part_stands_for_all(parts, named):
    reader = open_checkpoint.open_checkpoint(parts[named])
    whole = gguf_reader.GgufReader(parts[0].with_name('whole.gguf'))
    assert reader.hf_config == whole.hf_config
    assert reader.path == parts[0]
    assert reader.names() == whole.names()
    for name in whole.names():
        np.testing.assert_array_equal(reader.read(name), whole.read(name))
    base = base_model.open_base_model(str(parts[named]))
    assert base.stored_bytes() == sum(part.stat().st_size for part in parts)


def test_parts_that_are_not_there_are_named(parts):
    parts[1].unlink()
    for named in (0, 2):
        with pytest.raises(errors.InputError, match=r'one of 3 parts.*-00002-of-00003'):
            gguf_reader.GgufReader(parts[named])


def test_parts_under_each_others_names(parts):
    first, second = parts[1].read_bytes(), parts[2].read_bytes()
    parts[1].write_bytes(second)
    parts[2].write_bytes(first)
    with pytest.raises(errors.InputError, match=r'-00002-of-00003.*is part 2 of 3'):
        gguf_reader.GgufReader(parts[0])


def test_a_part_of_another_model(parts):
    for tensors, said in (
        ({'output_norm.weight': np.zeros(24, np.float32)}, 'in all and speaks of'),
        (
            {
                tensor.name: np.array(tensor.data)
                for tensor in gguf.GGUFReader(parts[1]).tensors
            },
            'in two parts',
        ),
    ):
        metadata = {'split.no': 2, 'split.count': 3, 'split.tensors.count': 21}
        gguf_files.write(parts[2], 'llama', metadata, tensors)
        with pytest.raises(errors.InputError, match=said):
            gguf_reader.GgufReader(parts[0])


def test_a_name_alone_makes_no_part(parts):
    alone = parts[0].with_name('alone-00001-of-00001.gguf')
    alone.write_bytes(parts[0].with_name('whole.gguf').read_bytes())
    assert gguf_reader.GgufReader(alone).files == [alone]
