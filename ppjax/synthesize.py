"""`python -m ppjax.synthesize`: a persona's calibration set from general data.

python -m ppjax.synthesize --persona=card.png --base_model=DIR \\
    --instructions=alpaca.jsonl --rewriter=openai --server_url=http://localhost:8000 \\
    --server_model=NAME --output_dir=runs/mine
"""

from ppjax.base import compile_cache, errors, flags
from ppjax.base import progress as progress_lib
from ppjax.synthesis import config, pipeline, sources


def main(cfg: config.SynthesizeConfig) -> int:
    """Makes the calibration set, or shows the persona."""
    if cfg.print_persona:
        persona = sources.read_persona(cfg)
        if persona is None:
            raise errors.InputError(
                '--print_persona shows what --persona names; a --role is described '
                'when the run begins.'
            )
        print(f'# Persona {persona.name}'.rstrip(), persona.text, sep='\n')
        print('\n# System prompt', persona.system_prompt, sep='\n')
        if persona.voice_samples:
            print('\n# Voice samples', *persona.voice_samples, sep='\n')
        return 0
    compile_cache.enable()
    made = pipeline.synthesize(cfg)
    if made.train is None:
        progress_lib.say(
            f'Selection: {cfg.output_dir}/selected.jsonl. Rewrites made from it '
            'elsewhere come back with --rewriter=file --rewrites=FILE.'
        )
    else:
        progress_lib.say(f'Learn from: {made.train}')
        if made.test is not None:
            progress_lib.say(f'Test on: {made.test}')
    return 0


if __name__ == '__main__':
    flags.run(config.SynthesizeConfig, main, joined=True)
