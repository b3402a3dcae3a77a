"""`python -m ppjax.serve`: a cast of personas on one base model.

python -m ppjax.serve --base_model=DIR --personas=FOLDER
python -m ppjax.serve --demo
PPJAX_API_KEY=... python -m ppjax.serve --base_model=DIR --personas=FOLDER \\
    --host=0.0.0.0

Every mask file (.pmask) in the folder, and every character card that carries a
mask, is a model id; so is the base model. Programs speak to it as to OpenAI's,
vLLM's or llama.cpp's server; people open the address that it prints. Masks and
their gains are applied to the base model, and nothing else: what compensate or
recover changed is in the directory that they exported, for other servers.
Ctrl-C, or SIGTERM, lets answers under way come to their end first, for at most
--drain_seconds.

Without a key only this machine may ask, and by a name of its own. With
PPJAX_API_KEY in the environment clients must send "Authorization: Bearer KEY";
a --host that other machines reach wants one. The page asks for the key, and
/health needs none. What a browser asks for a page of another origin is refused,
but for those of --allow_origin.

Of a card, the book's entries whose keys come up, and what is to follow the
history, go into the conversation; its first message is the client's to show. A
client's own system message replaces all that, or follows it (--client_system).

--demo serves the quickstart's personas with masks made at once, which remove
the tenth of the channels that adds least. They show a cast at work, and not
what learned masks are like.
"""

from ppjax.base import compile_cache, flags
from ppjax.serving import config, server


def main(cfg: config.ServeConfig) -> int:
    """Serves until a signal."""
    compile_cache.enable()
    server.serve(cfg)
    return 0


if __name__ == '__main__':
    flags.run(config.ServeConfig, main)
