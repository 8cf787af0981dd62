"""Write a finished run as a Hugging Face folder.

Others load it without genrec. RUN is the directory of a run's report, or its URL in an object store; DIR is a new
folder. It holds the model with its adapters merged, a tokenizer with the SID tokens, a model card, hashes, and
catalog_logits.py, which keeps `generate` inside the catalogue. What a plain model cannot hold, such as an item head or
a prior, is said in the card and as a warning.

genrec export storage/runs/demo demo-model --licence apache-2.0
"""

from workflows.cli import main

if __name__ == "__main__":
    main("export")
