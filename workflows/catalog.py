"""Insert or remove items of a finished run, without retraining.

No other item changes its semantic ID, and what assign wrote stays as it is: each change is a directory of its own.

genrec catalog insert new_items.parquet demo cpu
genrec catalog remove 1029743,1106523 demo cpu
"""

from workflows.cli import main

if __name__ == "__main__":
    main("catalog")
