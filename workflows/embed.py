"""Embed the text of every item with a language model.

genrec embed demo cpu
genrec embed demo cpu embed.model=Qwen/Qwen3-Embedding-0.6B
"""

from workflows.cli import main

if __name__ == "__main__":
    main("embed")
