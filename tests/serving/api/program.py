"""A server of fakes as a process of its own: SECONDS_A_TOKEN DRAIN_SECONDS."""

import sys
import tempfile

from ppjax.models import base_model
from ppjax.pages import listening
from ppjax.serving import config, server
from tests.serving import fakes

if __name__ == '__main__':
    own = fakes.texts_of(base_model.open_base_model(base_model.SMOLLM2).tokenizer())
    engine = fakes.Engine(fakes.saying(own, 'One two three four five six seven. ' * 9))
    engine.delay = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as personas:
        cfg = config.ServeConfig(
            base_model='tiny',
            personas=personas,
            port=0,
            drain_seconds=float(sys.argv[2]),
        )
        with listening.listen(cfg.host, cfg.port) as port:
            server.run(fakes.make_service(own, engine), port, cfg, key=None)
    print('ends:', *engine.ends, flush=True)
