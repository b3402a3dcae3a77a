"""`python -m ppjax.bench WHAT`: ppjax against the plain way, side by side.

python -m ppjax.bench scoring --base_model=smollm2-135m \\
    --instructions=alpaca.jsonl:64
python -m ppjax.bench rewriting --base_model=smollm2-135m --instructions=demo:16
python -m ppjax.bench benchmarks --piqa=piqa.jsonl:200 --mmlu=mmlu.jsonl:100 \\
    --mmlu_dev=mmlu_dev.jsonl --mmlu_shots=0,5
python -m ppjax.bench personas --names=jack,walt --calibration='{persona}.jsonl'
python -m ppjax.bench mask_step --calibration=jack.jsonl --batch_size=16 \\
    --steps=6
python -m ppjax.bench generate --batches=1,8,64
python -m ppjax.bench infer --mask=jack.pmask
python -m ppjax.bench load
python -m ppjax.bench load --base_model=config.json --mesh=fsdp:8 \\
    --dtype=bfloat16
python -m ppjax.bench gguf --files=dense-F16.gguf,jack-Q8_0.gguf
python -m ppjax.bench costs --page=costs.html
python -m ppjax.bench serve --url=http://127.0.0.1:8080/v1 --casts=1,8 \\
    --rates=0.5,1,2
python -m ppjax.bench serve --url=http://127.0.0.1:8080/v1 --casts=1,8 \\
    --concurrency=8
python -m ppjax.bench serve --files=dense-F16.gguf --personas=cast.jsonl \\
    --concurrency=8

Both sides do the same work, and their results are compared. `costs` has another
side with --reference alone, `load --mesh`, `gguf` and `serve` none; that of
`personas` is one run after the other; all others need PyTorch. Machines are
noisy: believe the ratio, and rather that of a longer run.
"""

from collections.abc import Callable
import dataclasses
import json
from typing import Any

from ppjax.base import atomic, compile_cache, flags, versions
from ppjax.base import progress as progress_lib
from ppjax.benchmarking import (
    config,
    costs,
    costs_page,
    decoding,
    gguf_speed,
    load,
    many_personas,
    mask_step,
    multiple_choice,
    rewriting,
    scoring,
    serve_load,
)

COMPARISONS: dict[str, Callable[[config.BenchConfig], dict[str, Any]]] = {
    'scoring': scoring.compare,
    'rewriting': rewriting.compare,
    'benchmarks': multiple_choice.compare,
    'personas': many_personas.compare,
    'mask_step': mask_step.compare,
    'generate': decoding.compare,
    'infer': decoding.compare_pruned,
    'load': load.compare,
    'gguf': gguf_speed.compare,
    'costs': costs.measure,
    'serve': serve_load.measure,
}


def main(cfg: config.BenchConfig, what: str) -> int:
    """Compares and prints."""
    compile_cache.enable()
    found = COMPARISONS[what](cfg)
    found |= {'settings': dataclasses.asdict(cfg), 'versions': versions.versions()}
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if cfg.result:
        atomic.write_text(cfg.result, text + '\n')
        progress_lib.say(f'Written to {cfg.result}.')
    if what == 'costs' and cfg.page:
        atomic.write_text(cfg.page, costs_page.render(found))
        progress_lib.say(f'Page: {cfg.page}')
    return 0


if __name__ == '__main__':
    flags.run(config.BenchConfig, main, what=tuple(COMPARISONS))
