"""A storage of a directory in an object store: its artifacts, its runs, and what the newest of each name is."""

import json
from pathlib import Path

from support.s3_server import S3Server

from genrec.data.artifact_cache import MANIFEST, ArtifactCache
from genrec.data.object_store import ObjectStore
from genrec.inference.run_place import NEWEST

NO_ARTIFACTS = ("runs", "live", "serving", "cache", "backbones")


def upload_storage(storage: Path, s3: S3Server) -> None:
    """Put the finished artifacts and the runs of ``storage`` into the server's bucket."""
    cache = ArtifactCache(ObjectStore(s3.url()), storage)
    for folder in storage.glob("*/*"):
        if folder.is_dir() and folder.parent.name not in NO_ARTIFACTS:
            (folder / MANIFEST).touch()
            cache.upload(folder, folder)
    for run in storage.glob("runs/*"):
        cache.store.upload({f"runs/{run.name}/{file.name}": file for file in run.iterdir()})
        if run.is_symlink():
            cache.store.write(f"runs/{run.name}/{NEWEST}", json.dumps({"run": run.resolve().name}).encode())
