"""Show the report of a finished run, or several runs side by side.

A run is the directory of its report, such as storage/runs/demo, or its URL in an object store. The page, and its
Markdown and JSON twins, are written into the directory --out.

genrec report storage/runs/demo
genrec report storage/runs/demo storage/runs/other --out compared
"""

from workflows.cli import main

if __name__ == "__main__":
    main("report")
