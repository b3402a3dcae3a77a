"""`python -m ppjax.prune`: the methods that persona masks are compared with.

python -m ppjax.prune --method=llm_pruner --match=0.25 --base_model=DIR \\
    --instructions=alpaca.json --heldout=test.jsonl --output_dir=runs/llm-pruner
python -m ppjax.prune --print_budget --match=0.25,0.5 --base_model=config.json

Prunes by such a method and exports the model as any other: evaluate, recover
and chat take it as --model=runs/llm-pruner/hf. --match removes as much as
leaves no fewer parameters of blocks than a persona mask of that sparsity (or
that .pmask) does; --print_budget says what that is for every method, from a
config.json alone, each count in the three ways that papers use. What a method
goes by is --calibration (chats), --instructions (general ones) or --text (plain
text). What --method takes:

depth                whole blocks, by perplexity without each or by gradients
                     (--criterion)
llm_pruner           channels and groups of heads of middle blocks, by
                     gradients (--importance)
adapt_pruner         the same in many small steps, less of blocks that turn the
                     stream more
wanda_sp, minitron   channels and groups of heads, by activations
flap                 by how activations vary, one threshold for all layers; what
                     is removed on average goes into biases, where the model is
                     a Llama
grasprune            channels and groups of heads of all layers under one
                     budget, learned with frozen weights and the budget held at
                     every step (--steps, --learning_rate), then a gain for each
                     that is kept, folded into the weights (--gain_steps);
                     --batch_size=1 is its authors'
slicegpt             a narrower residual stream, rotated anew at every site:
                     this package alone loads it; --rotation=single makes a
                     stock model

Where layers end up of different widths, stock checkpoints fill the narrower
ones up with zeros, and their model cards say so. recover leaves these zeros
zero, whatever it trains, and says again how much is left of each block.
--official takes over what the authors' code does otherwise than models with
grouped queries want.
"""

from ppjax.base import compile_cache, flags, progress
from ppjax.baselines import budget_table, config, run
from ppjax.models import base_model
from ppjax.models import config as config_lib


def main(cfg: config.PruneConfig) -> int:
    """Prunes, or prints what would be left."""
    if cfg.print_budget:
        model = config_lib.from_hf_config(base_model.read_hf_config(cfg.base_model))
        print(budget_table.markdown(cfg, model))
        return 0
    compile_cache.enable()
    progress.say(f'Pruned model: {run.prune(cfg)}')
    return 0


if __name__ == '__main__':
    flags.run(config.PruneConfig, main, joined=True)
