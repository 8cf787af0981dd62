"""Run a benchmark: alternatives measured in turn, in one run.

genrec bench decode demo cpu
genrec bench losses demo cpu bench.variants=[cross_entropy,focal] bench.seeds=3 --json
"""

from workflows.cli import main

if __name__ == "__main__":
    main("bench")
