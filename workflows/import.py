"""Make a run of a folder that `genrec export` wrote.

Every file is compared with its hash. The run has no users and no ItemKNN prior, since both need the log.

genrec import demo-model
genrec import demo-model --storage other --name bought
"""

from workflows.cli import main

if __name__ == "__main__":
    main("import")
