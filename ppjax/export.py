"""`python -m ppjax.export`: the pruned model as Hugging Face or GGUF files.

python -m ppjax.export --output_dir=runs/mine --verify     # runs/mine/hf
python -m ppjax.export --materialize --mask=jack.pmask --base_model=DIR \\
    --output_dir=jack
python -m ppjax.export --output_dir=runs/mine --gguf=f16,q8_0 --verify
python -m ppjax.export --model=runs/mine-recovered/hf --gguf=q4_0 \\
    --persona=card.png
cd runs/mine/gguf && ollama create mine -f Modelfile
python -m ppjax.export --output_dir=runs/mine --card=card.png
python -m ppjax.export --output_dir=runs/mine --new_card='Old Bram'
python -m ppjax.export --neeko=runs/cast/neeko.safetensors --persona=card.png \\
    --output_dir=mine

Writes the pruned checkpoint as transformers, vLLM and others load it, with
tokenizer, chat template and a model card. A mask file and its base model are
enough to get it back, on any machine (--materialize).

--gguf writes files beside the Hugging Face directory,
gguf/BASE-PERSONA-TYPE.gguf, for llama.cpp, Ollama, LM Studio, KoboldCpp and
what else is built on them, with tokenizer and chat template. They come from a
run (its refitted or recovered model, if it has one), a mask and its base
(--materialize, a GGUF base too), or any exported directory (--model). Tensors
are written some rows at a time; a file is whole or absent.

Types are f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 and q4_0; norms and biases stay
in float32, the unembedding at 8 bits at least, and rows that are no number of
whole blocks become F16 and are named. K-quants are llama.cpp's and Ollama's to
make from f16: the command prints how, and says where rows are no multiple of
256, which K-quants want and --align=256 of run and train gives. Layers of
different widths (--budget=global, several methods of prune) lose their zeros,
as llama.cpp's architecture deci; --gguf_widths=filled keeps them, for programs
that do not know it, and Qwen3 always does.

The Modelfile has the persona prompt, the stop tokens, the licence and, with
--persona=card.png or in a run made of a card, the card's first message. It has
no TEMPLATE: Ollama takes the chat template that the file carries.

--verify loads each GGUF file with llama.cpp in a fresh process (pip install
xllamacpp) and compares: the tokens of a rendered conversation must be the same;
a float32 file must give the first token's log-probabilities within
--verify_tolerance and the same 32 greedy tokens; of the others it prints the KL
divergence and how often the likeliest token is the same. Without llama.cpp
every tensor is read back. A tokenizer whose splitting has no name in GGUF is
refused, since llama.cpp would make other tokens of the same text; known are
those of GPT-2, SmolLM, Llama 3 and Qwen2 to Qwen3.

--card writes a character card back to card/ (PNG with both of its text chunks,
JSON, CHARX with the mask as an asset too) with everything that it had and,
under data.extensions.ppjax, the mask, its k, the identity of its base model and
the persona prompt; the picture is not touched. Wherever a .pmask is taken, such
a card is too. --new_card makes one from the persona's text. A card carries a
mask and its gains alone: of a run whose model was refitted or recovered, hf/
and the GGUF files are that model, and the card is not.

--neeko takes the blocks of python -m ppjax.recover --neeko: the one of the
persona nearest to --persona, by the cosine of both texts' mean last hidden
states, is merged into the model it was learned on (--gate=mixture: all of them,
by a softmax), and the directory is one that evaluate --model= measures.
"""

from ppjax.base import compile_cache, flags, progress
from ppjax.exporting import config, export
from ppjax.recovery.neeko import export as neeko


def main(cfg: config.ExportConfig) -> int:
    """Exports, verifies if asked to, and says what came out."""
    compile_cache.enable()
    if cfg.neeko is not None:
        progress.say(f'Exported to {neeko.export(cfg)}')
        return 0
    return export.export(cfg)


if __name__ == '__main__':
    flags.run(config.ExportConfig, main)
