"""Check the manifest of a cluster, a job or the service.

A field that is missing or unknown, a pod that is impossible, and processes for which there is no room are each one
message. CONFIG says what will run there; the command of a job says it itself.

genrec manifest cluster/manifests/full.yaml
genrec manifest cluster/manifests/cluster.yaml kuberay compute.rollout_actors=8
"""

from workflows.cli import main

if __name__ == "__main__":
    main("manifest")
