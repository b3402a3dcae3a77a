"""Damaged run directories, and whole verbs that one bad input must stop."""

from collections.abc import Callable
import dataclasses
import importlib
import pathlib
import random
import shutil

from fuzzing import damage, readers
from fuzzing import material as material_lib
from ppjax.base import flags
from ppjax.evaluation.page import report
from ppjax.exporting import config as export_config
from ppjax.exporting import source as export_source
from ppjax.recovery import config as recover_config

# A server that is not refused does not end.
_OTHERS = ('report', 'bench', 'serve')
_TRAINED: dict[pathlib.Path, pathlib.Path] = {}


def _trained(whole: material_lib.Material) -> pathlib.Path:
    """A finished run of mask learning, made once."""
    if whole.folder not in _TRAINED:
        output = whole.folder / 'run'
        given = readers.whole_flags('train', whole, output)
        _verb('train', given)()
        _TRAINED[whole.folder] = output
    return _TRAINED[whole.folder]


def _verb(verb: str, given: dict[str, str]) -> Callable[[], object]:
    settings = readers.settings_of(verb)
    main = importlib.import_module(f'ppjax.{verb}').main

    def read() -> None:
        cfg = flags.parse(settings, [f'--{k}={v}' for k, v in given.items()])
        main(cfg)

    return read


def _records(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> readers.Read:
    run = pathlib.Path(shutil.copytree(_trained(whole), folder / 'run'))
    files = sorted(
        path
        for path in run.rglob('*')
        if path.suffix in ('.json', '.jsonl', '.flags', '.pmask')
        and 'checkpoints' not in path.parts
    )
    for path in rng.sample(files, rng.choice([1, 1, 2])):
        if path.suffix == '.json':
            damage.json_file(rng, path)
        elif path.suffix == '.jsonl':
            damage.lines_file(rng, path)
        else:
            damage.binary_file(rng, path)
    reads: list[Callable[[], object]] = [
        lambda: report.write_report(run),
        lambda: export_source.open_source(
            export_config.ExportConfig(output_dir=str(run))
        ),
        lambda: recover_config.RecoverConfig(
            run=str(run), output_dir=str(folder / 'out')
        ).resolved(),
        _verb('train', readers.whole_flags('train', whole, run)),
    ]
    return rng.choice(reads)


def _verbs(
    rng: random.Random, folder: pathlib.Path, whole: material_lib.Material
) -> readers.Read:
    """A verb whose flags are whole but for one, or one of whose inputs is bad."""
    # A bench measures in processes of its own; `commands` has it.
    verb = rng.choice([name for name in readers.VERBS if name not in _OTHERS])
    given = readers.whole_flags(verb, whole, folder / 'work' / 'out')
    files = [name for name in given if pathlib.Path(given[name]).is_file()]
    if files and rng.random() < 0.7:
        name = rng.choice(files)
        path = folder / pathlib.Path(given[name]).name
        shutil.copy(given[name], path)
        if path.suffix == '.jsonl':
            # One bad row among the good ones would be left out by some.
            path.write_bytes(
                rng.choice([b'', b'{}\n', b'[', b'\xff\xfe', b'{"messages": 3}\n'])
            )
        else:
            path.write_bytes(damage.data(rng, path.read_bytes()))
        given[name] = str(path)
    elif 'base_model' in given and rng.random() < 0.5:
        model = pathlib.Path(shutil.copytree(whole.model, folder / 'model'))
        names = ['config.json', 'model.safetensors', 'tokenizer.json']
        damage.binary_file(rng, model / rng.choice(names))
        given['base_model'] = str(model)
    else:
        settings = readers.settings_of(verb)
        name = rng.choice([f.name for f in dataclasses.fields(settings)])
        given[name] = rng.choice(
            ['', '-1', 'nan', 'inf', '1e400', 'x' * 100_000, 'a\nb', 'n' * 300, '\0']
        )
    return _verb(verb, given)


TARGETS: dict[str, tuple[readers.Target, int]] = {
    'run records': (_records, 60),
    'verbs': (_verbs, 60),
}
