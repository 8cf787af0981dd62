"""Let a finished run go on learning from new events.

RUN is the directory of a run's report, or its URL in an object store; LOG is a table of interactions. Events are
appended to the log, items of --items that the catalogue lacks are inserted, and the policy trains for some steps on new
queries and a share of old ones, held near to what it was. NDCG@10 on old and on new validation queries decides whether
the new run is published.

genrec update storage/runs/demo --log today.parquet --items new_items.parquet
genrec update storage/runs/demo --log today.parquet learning.update.steps=200
genrec update storage/runs/demo --back
"""

from workflows.cli import main

if __name__ == "__main__":
    main("update")
