"""Test the policy, compare it with baselines, write the report.

genrec evaluate demo cpu
"""

from workflows.cli import main

if __name__ == "__main__":
    main("evaluate")
