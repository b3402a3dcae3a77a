"""`python -m ppjax.run`: from nothing but a persona to a pruned model.

python -m ppjax.run --persona=card.png --base_model=DIR \\
    --instructions=alpaca.jsonl --rewriter=openai \\
    --server_url=http://localhost:8000/v1 --server_model=NAME \\
    --sparsity=0.5 --output_dir=runs/mine
python -m ppjax.chat --model=runs/mine/hf

Makes calibration data (python -m ppjax.synthesize --help says what --persona,
--instructions and --rewriter take), keeps the FFN channels with the largest
activations on them, refits what these add to the dense model (compensate),
learns adapters on that which keep it from repeating itself (recover), checks
the export against what it was made of, and writes the report.

--recover=full            all weights are trained, in place of adapters
--recover=gains           none is: one number for each channel, attention output
                          and dimension of a norm is learned
--steps=N or --epochs=3   a mask is learned instead, as in the paper, and
                          exported as it is; --compensate=ridge --recover=lora
                          beside it goes on from that mask

The first way came closer to the dense model on every RoleBench role where both
were tried (RESULTS.md). The mask is mask.pmask in --output_dir; what is
refitted or recovered is in hf/ alone. Where a mask file is what is wanted, as
for python -m ppjax.serve and for cards, learn it.
"""

from ppjax.base import compile_cache, flags
from ppjax.recipes import config, from_persona


def main(cfg: config.RunConfig) -> int:
    """Goes from the persona to the report."""
    compile_cache.enable()
    from_persona.prune(cfg.resolved())
    return 0


if __name__ == '__main__':
    flags.run(config.RunConfig, main)
