"""Run a server with settings that the command line has no option for: python -m tests.server.serve_run JSON FOLDER"""

import json
import sys

from tests.server.serving import embedded_engine
from vcp_clip_hf.server.app import create_app
from vcp_clip_hf.server.process import bind, run
from vcp_clip_hf.server.recipes import RecipeStore
from vcp_clip_hf.server.settings import ServerSettings


if __name__ == "__main__":
    settings, folder = ServerSettings(**json.loads(sys.argv[1])), sys.argv[2]
    listener = bind("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    app = create_app(lambda: (embedded_engine(), RecipeStore(folder, embedded_engine())), settings)
    run(app, listener, settings)
