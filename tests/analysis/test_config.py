"""Settings that contradict each other."""

import pytest

from ppjax.analysis import config
from ppjax.base import errors

_COMPARE = {'masks': 'a.pmask,b.pmask', 'output_dir': 'out'}
_COMBINE = {'masks': 'a.pmask,b.pmask', 'operation': 'and', 'output': 'c.pmask'}
_SERVER = {
    'embeddings': 'openai',
    'embedding_model': 'e',
    'embedding_url': 'http://localhost:8000',
}


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'output_dir': 'out'}, '--masks must be given'),
        ({'masks': 'a.pmask'}, '--output_dir must be given'),
        (_COMPARE | {'output': 'c.pmask'}, '--output is for --operation'),
        (_COMPARE | {'seed': -1}, '--seed must be in'),
        (_COMPARE | {'mask_sparsity': 1.0}, '--mask_sparsity must be in'),
        ({'masks': 'a', 'operation': 'or'}, '--output must be given'),
        (_COMBINE | {'output': 'c.txt'}, '--output must end in .pmask'),
        (_COMBINE | {'output_dir': 'out'}, '--output_dir is of a comparison'),
        (_COMBINE | {'labels': 'x,y'}, '--labels is of a comparison'),
        (_COMBINE | {'embeddings': 'base'}, '--embeddings=base is for a comparison'),
        (_COMBINE | {'operation': 'info'}, '--operation=info writes no --output'),
        (_COMPARE | {'embeddings': 'openai'}, 'needs --embedding_model'),
        (_COMPARE | {'embeddings': 'local'}, 'needs --embedding_model'),
        (
            _COMPARE | {'embeddings': 'openai', 'embedding_model': 'e'},
            'needs --embedding_url',
        ),
        (_COMPARE | {'embedding_model': 'e'}, '--embedding_model is for --embeddings'),
        (
            _COMPARE | _SERVER | {'embeddings': 'local'},
            '--embedding_url is for --embeddings=openai',
        ),
        (
            _COMPARE | _SERVER | {'embedding_url': 'nowhere'},
            '--embedding_url must look like',
        ),
        (_COMPARE | {'base_model': 'm'}, '--base_model is for --embeddings=base'),
    ],
)
def test_contradictions(given, said):
    with pytest.raises(errors.InputError, match=said):
        config.MasksConfig(**given)


def test_whole_settings():
    config.MasksConfig(**_COMPARE, **_SERVER)
    config.MasksConfig(**_COMBINE)
    config.MasksConfig(masks='a', operation='info')


def test_a_file_that_is_there_is_not_replaced(tmp_path):
    path = tmp_path / 'c.pmask'
    path.write_text('')
    given = _COMBINE | {'output': str(path)}
    with pytest.raises(errors.InputError, match='is there already'):
        config.MasksConfig(**given)
    config.MasksConfig(**given, overwrite=True)
