"""Run everything, from the raw log to the report.

genrec full demo cpu
genrec full industrial versions/v1 a100 data.path=/data/industrial storage=/data/runs
"""

from workflows.cli import main

if __name__ == "__main__":
    main("full")
