"""The shape of the house, drawn from its files: rooms, arrows, sizes."""

import ast
from collections.abc import Iterable, Mapping
import graphlib
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_VERBS = (
    *('run', 'synthesize', 'train', 'compensate', 'recover', 'export', 'evaluate'),
    *('compare', 'sweep', 'report', 'masks', 'prune', 'rank', 'serve', 'chat'),
    *('bench', 'plan'),
)
# From the top down: a room imports those behind it.
_ROOMS = (
    *(
        'benchmarking',
        'planning',
        'serving',
        'comparing',
        'sweeping',
        'recipes',
        'ranking',
    ),
    'evaluation',
    *('chatting', 'analysis'),
    *(
        'recovery',
        'compensation',
        'baselines',
        'exporting',
        'training',
        'learning',
        'synthesis',
    ),
    *(
        'masking',
        'demo',
        'data',
        'models',
        'personas',
        'chat_api',
        'pages',
        'parallel',
        'base',
    ),
)
_LONGEST = 500

Graph = dict[str, set[str]]


def _files(*folders: str) -> list[pathlib.Path]:
    return sorted(p for folder in folders for p in (_ROOT / folder).rglob('*.py'))


def _name(path: pathlib.Path) -> str:
    parts = path.relative_to(_ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def _imported(text: str, modules: Iterable[str]) -> set[str]:
    """The modules that a text imports, anywhere in it, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'relative import in line {node.lineno}'
            package = node.module or ''
            inner = {f'{package}.{alias.name}' for alias in node.names}
            found |= inner & set(modules)
            if inner - set(modules):
                found.add(package)
    return found


def _room(module: str) -> str:
    """The room or verb that a module is of; nothing for the package itself."""
    return module.split('.')[1] if '.' in module else ''


def _circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def _faults(graph: Graph) -> list[str]:
    """The arrows that no module may have."""
    faults = []
    for module, imported in graph.items():
        of = _room(module)
        for other in sorted(imported):
            to = _room(other)
            if to in _VERBS:
                faults.append(f'{module} imports the verb {other}')
            elif of in _ROOMS and to in _ROOMS and _ROOMS.index(to) < _ROOMS.index(of):
                faults.append(f'{module} points up to {other}')
    return faults


@pytest.fixture(scope='module')
def graph() -> Graph:
    files = {_name(path): path.read_text() for path in _files('ppjax')}
    return {
        module: {
            other
            for other in _imported(text, files)
            if other.split('.')[0] == 'ppjax' and other != module
        }
        for module, text in files.items()
    }


def test_verbs_and_rooms_are_all_there_is():
    found = {
        path.stem if path.suffix == '.py' else path.name
        for path in (_ROOT / 'ppjax').iterdir()
        if path.name not in ('__init__.py', '__pycache__')
    }
    assert found == {*_VERBS, *_ROOMS}


def test_no_arrow_points_up(graph):
    assert not _faults(graph)


def test_no_circle_of_files(graph):
    assert not _circle(graph)


def test_no_circle_of_rooms(graph):
    rooms: Graph = {}
    for module, imported in graph.items():
        inside = rooms.setdefault(_room(module), set())
        inside |= {_room(other) for other in imported} - {_room(module), ''}
    assert not _circle(rooms)


def test_every_import_is_of_something_here(graph):
    assert not {other for found in graph.values() for other in found} - set(graph)


def test_faults_would_be_found():
    files = ['ppjax.train', 'ppjax.base.flags', 'ppjax.models.config']
    text = 'from ppjax.models import config\ndef f():\n    import ppjax.train\n'
    drawn = {'ppjax.base.flags': _imported(text, files), 'ppjax.train': set()}
    assert _faults(drawn) == [
        'ppjax.base.flags points up to ppjax.models.config',
        'ppjax.base.flags imports the verb ppjax.train',
    ]
    assert _circle({'a': {'b'}, 'b': {'c'}, 'c': {'a'}})


def test_flags_are_read_in_one_place():
    readers = {
        str(path.relative_to(_ROOT))
        for path in _files('ppjax')
        for node in ast.walk(ast.parse(path.read_text()))
        if 'FLAGS' in (getattr(node, 'id', ''), getattr(node, 'attr', ''))
    }
    absl = {
        str(path.relative_to(_ROOT))
        for path in _files('ppjax')
        if any(name.split('.')[0] == 'absl' for name in _imported(path.read_text(), ()))
    }
    assert readers == absl == {'ppjax/base/flags.py'}


def test_files_are_short():
    lengths = {
        str(path.relative_to(_ROOT)): len(path.read_text().splitlines())
        for path in _files('ppjax', 'launch', 'tests')
    }
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > _LONGEST}


def test_pages_are_made_below_evaluation(graph):
    above = [m for m in graph if _room(m) in ('sweeping', 'benchmarking')]
    assert above
    found = {other for module in above for other in graph[module]}
    assert not [other for other in found if other.startswith('ppjax.evaluation.page')]
