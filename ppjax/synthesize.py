"""`python -m ppjax.synthesize`: a persona's calibration set from general data.

python -m ppjax.synthesize --persona=card.png --print_persona
python -m ppjax.synthesize --persona=card.png --base_model=DIR \\
    --instructions=alpaca.jsonl --rewriter=openai \\
    --server_url=http://localhost:8000/v1 --server_model=NAME \\
    --output_dir=runs/mine-data

Writes calibration/train.jsonl and test.jsonl, to learn from and to measure on,
in the form that python -m ppjax.train --help shows.

--persona is a text, a text file, a character card (V1 to V3, as PNG, WebP,
CHARX or JSON; Pygmalion's JSON and text-generation-webui's YAML too), one of
the paper's evaluation sets, or JSON with a `persona` field; --print_persona
shows what is made of it. --role="James Bond" has the rewriter describe a known
character instead.

--instructions takes Alpaca-, Dolly-, OpenOrca- and ShareGPT-style rows and
chats from JSON, JSONL or CSV (also with .gz) or Parquet files, from the Hugging
Face Hub (owner/name) and from TensorFlow Datasets (tfds:NAME), several with
commas between them, NAME:5000 for a sample. Rows of no use are left out and
counted. Repeated queries are dropped, and so are the questions of
--exclude_queries.

--rewriter is who writes the answers in the persona's voice:

local (default)   the base model itself: no server needed, and no better than
                  that model
openai            any server with /v1/chat/completions: vLLM, llama.cpp, hosted
                  ones (key in OPENAI_API_KEY)
file              --rewrites=FILE: JSONL of {"query_id" or "query", "rewrite"}
                  made elsewhere
none              nobody: it stops after the selection

Refusals, introductions ("Here is the rewrite"), copies and answers cut short
are dropped and counted.
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
