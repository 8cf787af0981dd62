"""Read the raw log and the catalogue into tables and splits.

The sources are parquet (also CSV, TSV and JSON lines), complete_journey, amazon, minionerec, movielens and recbole
(data.source).

genrec prepare demo cpu
genrec prepare industrial cpu data.path=/data/industrial
"""

from workflows.cli import main

if __name__ == "__main__":
    main("prepare")
