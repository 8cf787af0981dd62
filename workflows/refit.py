"""Train again after validation, on its events too, to be served.

genrec refit demo cpu
genrec refit demo cpu learning.sft.epochs=8
"""

from workflows.cli import main

if __name__ == "__main__":
    main("refit")
