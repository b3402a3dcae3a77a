"""The story of `export --gguf`: name, write, read back, verify, say what is next."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import transformers

from ppjax.base import atomic, errors, locks, progress, run_directory
from ppjax.data import stop_tokens
from ppjax.exporting.gguf import (
    metadata,
    modelfile,
    types,
    uneven,
    verify,
    vocabulary,
    writing,
)
from ppjax.models import base_model, costs, gguf_header, gguf_names, loading

FOLDER = 'gguf'


@dataclasses.dataclass(frozen=True)
class Source:
    """What is written.

    Attributes:
        model: its weights and constants; nothing is read yet.
        tokenizer: that comes with it.
        generation: its generation_config.json, or what its config implies.
        origin: where it comes from.
    """

    model: base_model.BaseModel
    tokenizer: transformers.PreTrainedTokenizerBase
    generation: dict[str, Any]
    origin: metadata.Origin


def export(
    source: Source,
    folder: pathlib.Path,
    kinds: Sequence[str],
    *,
    tolerance: float | None,
    overwrite: bool,
    filled: bool,
) -> list[dict[str, Any]]:
    """Writes a model in some types, and a Modelfile beside them.

    A file that is there already, whole and of the same weights, stays.

    Args:
        source: the model.
        folder: where to; made if absent.
        kinds: keys of `types.TYPES`.
        tolerance: of float32 files where every file is compared with the model; None
            where none is.
        overwrite: whether other files of these names may be replaced.
        filled: whether narrower layers stay filled up with zeros.

    Returns:
        What results say of each file.

    Raises:
        InputError: if the model, its tokenizer or its template has no place in GGUF,
            another file is in the way, or one is not what it should be.
    """
    metadata.refuse_unwritable(source.model)
    loading.check_tensors(source.model.reader, source.model.config)
    origin = source.origin
    model, sizes = _of_own_widths(source.model, filled=filled)
    tokens = vocabulary.metadata(source.tokenizer, model.config.vocab_size)
    if not source.tokenizer.chat_template:
        progress.say(
            'The tokenizer has no chat template, so the GGUF file has none either: '
            'whoever runs it must know how conversations are written.'
        )
    verified = tolerance is not None
    verifier = verify.Verifier(
        model, source.tokenizer, origin.system_prompt, tolerance=tolerance or 0.0
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(folder, beside=True):
        files = {kind: f'{origin.name}-{kind.upper()}.gguf' for kind in kinds}
        stands = {
            kind: _stands(
                folder / file, origin.identity_of(kind, uneven=bool(sizes)), overwrite
            )
            for kind, file in files.items()
        }
        for_ollama = modelfile.name_in(folder, origin)
        made = [f'{FOLDER}/{file}' for file in (*files.values(), for_ollama)]
        run_directory.adds(folder.parent, made)
        found = []
        for kind, file in files.items():
            path = folder / file
            wanted = types.TYPES[kind]
            plan = writing.plan(model, wanted, sizes)
            for line in types.remarks(plan, wanted):
                progress.say(f'{file}: {line}')
            compared = None
            if stands[kind]:
                progress.say(f'{path} is there already.')
                if verified:
                    compared = verifier.verify(path, plan)
            else:
                progress.say(f'Writing {path} ...')
                keys = metadata.of_model(model, wanted, sizes)
                keys |= (
                    metadata.of_origin(origin, model, kind, uneven=bool(sizes)) | tokens
                )
                with atomic.file(path) as temporary:
                    writing.write(temporary, model, keys, plan)
                    verifier.check_tokens(temporary)
                    if verified:
                        compared = verifier.verify(temporary, plan)
            if compared is not None:
                progress.say(f'{file}: {compared.line()}')
            found.append(
                {
                    'file': file,
                    'bytes': path.stat().st_size,
                    'verify': compared and dataclasses.asdict(compared),
                }
            )
        stops = sorted(stop_tokens.stop_ids(source.generation, source.tokenizer))
        beside = [f'{origin.name}-{kind.upper()}.gguf' for kind in types.TYPES]
        atomic.write_text(
            folder / for_ollama,
            modelfile.render(
                origin,
                model,
                list(
                    dict.fromkeys(
                        [*files.values(), *(x for x in beside if (folder / x).exists())]
                    )
                ),
                source.tokenizer.convert_ids_to_tokens(stops),
                name=for_ollama,
            ),
        )
    return found


def _of_own_widths(
    model: base_model.BaseModel, *, filled: bool
) -> tuple[base_model.BaseModel, Sequence[costs.BlockSize] | None]:
    """A model without zeros in the place of what narrower layers lack, if it may be.

    Returns:
        (the model, its layers' sizes where they need an architecture that has them).
    """
    found = uneven.Trimmed(model) if filled else uneven.trimmed(model)
    if found.sizes is None:
        return found.model, uneven.of_few_heads(found.model.config)
    channels = sorted(size.channels for size in found.sizes)
    what = f'Layers have {channels[0]:,} to {channels[-1]:,} channels'
    if model.config.family not in uneven.FAMILIES:
        progress.say(
            f'{what}; llama.cpp has no architecture for such a {model.config.family} '
            'model, so zeros fill up the narrower ones.'
        )
        return model, None
    progress.say(
        f"{what}: written as llama.cpp's architecture {gguf_names.UNEVEN}. "
        '--gguf_widths=filled writes the usual one, with zeros, for programs that do '
        'not know it.'
    )
    return found.model, found.sizes


def _stands(path: pathlib.Path, identity: str, overwrite: bool) -> bool:
    """Whether a file is there, whole and of the same weights.

    Raises:
        InputError: if another is there and must not be replaced.
    """
    if overwrite or not path.exists():
        return False
    try:
        keys, _ = gguf_header.read(path)
        if keys.get(metadata.IDENTITY) == identity:
            return True
    except (OSError, ValueError):
        pass
    raise errors.InputError(
        f'{path} is there and of another model, or damaged; --overwrite replaces it.'
    )


def advice(source: Source, folder: pathlib.Path, kinds: Sequence[str]) -> list[str]:
    """What may be done next: K-quants, Ollama."""
    cfg, origin = source.model.config, source.origin
    name = modelfile.ollama_name(origin)
    file = modelfile.name_in(folder, origin)
    lines = [f'Ollama: cd {folder} && ollama create {name} -f {file}']
    plain = next((kind for kind in ('f16', 'f32') if kind in kinds), None)
    stem = f'{folder}/{origin.name}'
    if plain is None:
        lines.append(
            'K-quants are made from --gguf=f16, by llama-quantize or ollama create -q '
            'q4_K_M.'
        )
    else:
        # Ollama makes them of what FROM names, which is the first type.
        from_plain = '' if kinds[0] == plain else f', with FROM -{plain.upper()}.gguf'
        lines.append(
            f'K-quants: llama-quantize {stem}-{plain.upper()}.gguf {stem}-Q4_K_M.gguf '
            f'Q4_K_M, or ollama create {name} -q q4_K_M -f {file}{from_plain}'
        )
    return lines + types.advice(cfg.d_model, cfg.d_ff)
