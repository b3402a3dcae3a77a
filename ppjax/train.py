"""`python -m ppjax.train`: learn a persona mask, or many over one base model.

python -m ppjax.train --base_model=DIR --calibration=train.jsonl \\
    --heldout=test.jsonl --sparsity=0.25 --output_dir=runs/mine
python -m ppjax.train --flagfile=configs/llama-3.2-3b-25.flags \\
    --calibration=train.jsonl --output_dir=runs/llama-25

The mask that is measured and exported is always top-k of the scores, exactly k
in every layer, or on average with --budget=global. Calibration data are chats,
one JSON object a line. The system message is the persona prompt (the paper's
Table 18), the loss is over the last assistant turn and its end-of-turn token:

{"messages": [{"role": "system", "content": "You are roleplaying as a user with
this persona: ...\\nAnswer the question, roleplay as the given persona."},
{"role": "user", "content": "How do I tie a bowline?"},
{"role": "assistant", "content": "Hand me the rope, traveller. ..."}]}

--estimator       ste, straight through top-k (the paper's); gumbel; soft_topk
                  (Table 3)
--objective       ce; kl, the divergence from the dense model under the persona
                  prompt; ce+kl
--score_init      activation, taylor, random, or .pmask files; how the paper
                  starts is not published
--anneal          share of the steps over which the number of kept channels
                  falls to its end
--budget          uniform; global: all layers together keep the budget, each
                  its own number of channels, a multiple of --align and at
                  least --width_floor; stock checkpoints are as wide as the
                  widest layer, with zeros in the others
--prompt_dropout  share of the steps without the persona prompt, or with
                  --short_prompt='You are Jack.' in its place: the model learns
                  to be the persona without its prompt (recover has it too);
                  export --system_prompt= then writes no prompt beside it
--gains           also learns one number a channel, kept in the mask file and
                  folded into down_proj at export; --mask_steps=N learns the
                  mask in N steps and then gains alone
--nested          0.1:0.6: each step draws a sparsity between the two (the
                  higher ones more often), and the mask file then holds an
                  order of the channels that serves all of them;
                  --mask_sparsity of chat, export, evaluate, compensate,
                  recover and masks is the dial
--granularity     channels; blocks prunes whole transformer blocks by a learned
                  mask, where the paper's variant (Table 15) ranks blocks as
                  depth pruning does

Many personas:

python -m ppjax.train --base_model=DIR --personas=jack,walt,coriolanus \\
    --calibration='data/{persona}/train.jsonl' \\
    --heldout='data/{persona}/test.jsonl' --output_dir=runs/cast \\
    --shared_steps=150 --steps=60 --score_scale=0.3

loads the weights and compiles the step once; --personas_per_step of them take
their steps side by side, each with its own prompt, mask, optimizer and
schedule. Every persona ends with the mask that a run of its own would have
learned, up to rounding, in an ordinary run directory of its own,
runs/cast/personas/jack, which export, evaluate, chat and report take. On a CPU
choose --personas_per_step=1: side by side they gain nothing there and take more
memory.

Much of what a reply in character needs is the same for all of them: with
--shared_steps one mask is learned from all of their rows first
(runs/cast/shared/mask/mask.pmask), then each from there, in fewer steps. It
takes each step's examples from one persona, so that its prompt is run once a
step; it may learn from other files (--shared_calibration), and leaves out every
question that any persona is measured on. The personas' own steps exchange fewer
channels each with a larger --score_scale (the shared mask has its own,
--shared_score_scale), which suits personas that the shared mask serves well
already. Interrupted in either part, the same command goes on. A new persona can
start from such a mask as well, or from a few others':
--score_init=a.pmask,b.pmask.

Several devices and hosts: --mesh=data:2,fsdp:4, where data copies the model,
fsdp shares out its weights and tensor splits every product. The mask does not
depend on it beyond rounding, and a run may go on on another mesh. Each host is
started with --coordinator=auto (TPU pods, Slurm, Kubernetes, MPI) or with
--coordinator=HOST:PORT --num_processes=N --process_id=I. After SIGTERM, which
saves, the same command goes on, with as many processes as there are then.
synthesize, compensate, recover and evaluate run on meshes and hosts as well.

The paper's settings (A.1) are configs/paper.flags; files for one model and
ratio build on it: llama-3.2-3b, llama-3.1-8b, qwen2.5-3b and qwen2.5-7b at -25
and -50, and qwen2.5-32b-50, also as -v5e-64, -v5p-32 and -8gpu.
"""

from ppjax import demo
from ppjax.base import compile_cache, flags, processes, progress
from ppjax.evaluation.page import report
from ppjax.recipes import shared_start
from ppjax.training import config, loop


def _rows(cfg: config.TrainConfig) -> loop.TwoSplits:
    return (
        demo.read_rows(cfg.calibration, split='train'),
        demo.read_rows(cfg.heldout, split='test') if cfg.heldout else [],
    )


def main(cfg: config.TrainConfig) -> int:
    """Learns the masks that the settings ask for."""
    compile_cache.enable()
    if not cfg.personas:
        mask = loop.learn_mask(cfg, *_rows(cfg))
        if mask is not None:
            progress.say(f'Persona mask: {mask}')
            if processes.is_first():
                progress.say(f'Report: {report.write_report(cfg.output_dir)}')
        return 0
    own = {name: cfg.of_persona(name) for name in cfg.persona_names}
    learn = shared_start.learn_masks if cfg.shared_steps else loop.learn_masks
    masks = learn(cfg, {name: _rows(own[name]) for name in own})
    for name, mask in (masks or {}).items() if processes.is_first() else ():
        page = report.write_report(own[name].output_dir)
        progress.say(f'{name}: persona mask {mask}, report {page}')
    return 0


if __name__ == '__main__':
    flags.run(config.TrainConfig, main, joined=True, saves=True)
