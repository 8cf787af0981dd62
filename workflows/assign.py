"""Give every item a semantic ID, and build the trie.

The quantizer (sid.quantizer) turns item vectors into codes; items that would share their codes are moved to free ones.

genrec assign demo cpu
genrec assign demo cpu sid.quantizer=rqvae sid.codebook_size=128
"""

from workflows.cli import main

if __name__ == "__main__":
    main("assign")
