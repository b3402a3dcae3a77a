"""The verb `export`: a persona mask and its base model to a Hugging Face directory.

python -m ppjax.export --output_dir=runs/bram --verify
python -m ppjax.export --materialize --mask=bram.pmask --base_model=smollm2-135m \\
    --output_dir=bram-hf
"""

from ppjax.base import compile_cache, flags
from ppjax.exporting import config, export


def main(cfg: config.ExportConfig) -> int:
    """Exports, verifies if asked to, and says what came out."""
    compile_cache.enable()
    return export.export(cfg)


if __name__ == '__main__':
    flags.run(config.ExportConfig, main)
