"""`python -m ppjax.recover`: finetune a pruned model on its calibration data.

python -m ppjax.recover --run=runs/mine --output_dir=runs/mine-recovered
python -m ppjax.recover --model=runs/mine/hf --calibration=train.jsonl \\
    --heldout=test.jsonl --output_dir=runs/mine-recovered --lora_rank=16
python -m ppjax.recover --base_model=DIR --neeko --lora_rank=8 \\
    --calibration=a.jsonl,b.jsonl --output_dir=runs/cast
python -m ppjax.recover --model=runs/mine-refitted/hf --gains \\
    --calibration=train.jsonl --heldout=test.jsonl --output_dir=runs/mine-gains

Trains all weights (the paper's A.1) and exports the model again, to hf/ in
--output_dir. A run that was made with run --compensate=ridge has a refitted
model, from which --run then starts.

--lora_rank=16   trains adapters beside frozen weights instead; they are merged
                 into the exported model and also saved as PEFT loads them
--gains          finetunes no weight: learns one number for every FFN channel,
                 attention output and dimension of a norm (--gain_targets) and
                 folds them into the weights, so that hf/ is a stock checkpoint
                 of the same size; gains.safetensors beside it has those numbers
                 alone, some 100 KB for a small model
--model=DIR      takes any pruned model; --base_model=DIR --lora_rank=16 without
                 a mask finetunes the dense one, the paper's training-based
                 comparison (Table 13)
--neeko          trains a block of --lora_rank for every persona of
                 --calibration=a.jsonl,b.jsonl from its own rows (Neeko,
                 arXiv:2402.13717, the other comparison of Table 13)
--mesh           data:2,fsdp:4 spreads weights and optimizer state over devices

--unlikelihood=0.25 keeps a small model from saying the same again and again,
which no text that it learns from would tell it: before the first step the model
as it is answers up to 32 calibration questions a persona
(start_answers.jsonl), every step takes one of those answers for every four
examples, and words that go on there as they did before are made less likely
(unlikelihood training, arXiv:1908.04319). python -m ppjax.run does so by
default (--recover_unlikelihood), recover does not.

--neeko leaves neeko.safetensors, the blocks and a gate vector for each persona
(the mean last hidden state, over its text, of the model without blocks), and
adapters/DIGEST/, each persona's block as PEFT loads it; results/recovery.json
says whose digest is whose, and every persona's held-out figures with its own
block. Steps are shared out by rows, and none changes another persona's block.
python -m ppjax.export --neeko=FILE --persona=TEXT makes an ordinary model of
the block that the gate picks, also for a persona that has none;
--neeko_start=FILE goes on from such a file, and adds blocks to those in it.

Where several personas are known already, a new one need not start from nothing:
refit and gains on their rows together (--calibration=a.jsonl,b.jsonl, each step
of one persona, whose prompt is run once) make a small model that plays roles,
and the new persona's own gains on it (--gains --model=) are what is left to
learn. RESULTS.md has what that brings.
"""

from ppjax import demo
from ppjax.base import compile_cache, flags, progress
from ppjax.recovery import config, loop


def main(cfg: config.RecoverConfig) -> int:
    """Recovers the model that the settings name."""
    compile_cache.enable()
    cfg = cfg.resolved()
    assert cfg.calibration is not None
    train_rows = demo.read_rows(cfg.calibration, split='train')
    heldout_rows = demo.read_rows(cfg.heldout, split='test') if cfg.heldout else []
    model = loop.recover(cfg, train_rows, heldout_rows)
    if model is not None:
        progress.say(f'Recovered {"blocks" if cfg.neeko else "model"}: {model}')
    return 0


if __name__ == '__main__':
    flags.run(config.RecoverConfig, main, joined=True, saves=True)
