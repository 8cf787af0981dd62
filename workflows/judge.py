"""Let a language model judge the answers of a finished run.

A run is the directory of its report, or its URL in an object store. The key judge.url names any OpenAI-compatible
server, whose password comes from the environment variable judge.key_variable (GENREC_JUDGE_KEY). After an interruption
the same command asks only what is missing.

genrec judge storage/runs/demo judge.url=https://host/v1 judge.model=NAME
genrec judge storage/runs/demo judge.url=http://localhost:8000/v1 judge.model=NAME judge.queries=50 judge.passes=1
"""

from workflows.cli import main

if __name__ == "__main__":
    main("judge")
