"""Train the policy on the log: supervised fine-tuning.

genrec sft demo cpu
genrec sft demo cpu learning.sft.lr=1e-3 seed=1
"""

from workflows.cli import main

if __name__ == "__main__":
    main("sft")
