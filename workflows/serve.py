"""Serve a finished run over HTTP, or two runs side by side.

Of two runs each has a share of the users.

RUN is the directory of a run's report, or its URL in an object store. The environment variable GENREC_API_KEY (16
characters or more) is the key that inserts, removals and reloads ask for. /docs shows every route.

genrec serve storage/runs/demo
genrec serve storage/runs/demo serve.port=8080 serve.replicas=2
genrec serve storage/runs/demo --second storage/runs/other --share 0.2
genrec serve s3://shop/genrec/runs/demo
"""

from workflows.cli import main

if __name__ == "__main__":
    main("serve")
