"""The verb `export`: a persona mask and its base model to a Hugging Face directory or GGUF.

python -m ppjax.export --output_dir=runs/bram --verify
python -m ppjax.export --materialize --mask=bram.pmask --base_model=smollm2-135m \\
    --output_dir=bram-hf
python -m ppjax.export --model=runs/bram/hf --gguf=f16,q8_0 --verify
"""

from ppjax.base import compile_cache, flags
from ppjax.exporting import config, export


def main(cfg: config.ExportConfig) -> int:
    """Exports, verifies if asked to, and says what came out."""
    compile_cache.enable()
    return export.export(cfg)


if __name__ == '__main__':
    flags.run(config.ExportConfig, main)
