"""Search reward weights: each trial is a short run of grpo.

Ends with the trials, best first by NDCG@10 on validation, and the overrides of the best one.

genrec tune demo cpu tune.trials=8
"""

from workflows.cli import main

if __name__ == "__main__":
    main("tune")
