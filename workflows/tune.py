"""Search reward weights, or other keys, with Ray Tune.

Ends with the trials, best first on validation, whether one of them beats the config, and tuned.yaml to take it.

genrec tune demo cpu tune.trials=8
genrec tune demo cpu tune.searcher=optuna tune.scheduler=asha tune.space.prefix=[0,1] tune.trials=24
"""

from workflows.cli import main

if __name__ == "__main__":
    main("tune")
