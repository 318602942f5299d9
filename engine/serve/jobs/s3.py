"""Artefacts in S3-compatible storage, by boto3; credentials are those that boto3 finds."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ...api.errors import UnreachableError

_TAKEN = ("PreconditionFailed", "ConditionalRequestConflict")
_MISSING = ("NoSuchKey", "404")
_BATCH = 1000  # keys of one call that deletes


class S3Artefacts:
    """Artefacts in the bucket of `place`, `s3://bucket/prefix`. endpoint: address of a storage that is not Amazon's."""

    def __init__(self, place: str, endpoint: str | None = None) -> None:
        parts = urlsplit(place)
        self.place, self.bucket = place, parts.netloc
        self._prefix = f"{prefix}/" if (prefix := parts.path.strip("/")) else ""
        waits = Config(connect_timeout=5, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 2})
        self._client = boto3.client("s3", endpoint_url=endpoint, config=waits)

    def check(self) -> None:
        """See `Artefacts`."""
        with self._told():
            self._client.head_bucket(Bucket=self.bucket)

    def put(self, name: str, data: bytes) -> bool:
        """See `Artefacts`. The storage itself refuses what is there already."""
        with self._told():
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*")
            except ClientError as error:
                if error.response["Error"]["Code"] in _TAKEN:
                    return False
                raise
        return True

    def get(self, name: str) -> bytes | None:
        """See `Artefacts`."""
        with self._told():
            try:
                data: bytes = self._client.get_object(Bucket=self.bucket, Key=self._prefix + name)["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in _MISSING:
                    return None
                raise
        return data

    def delete(self, names: Collection[str]) -> None:
        """See `Artefacts`."""
        keys = [{"Key": self._prefix + name} for name in names]
        with self._told():
            for start in range(0, len(keys), _BATCH):
                self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys[start : start + _BATCH]})

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise UnreachableError(f"the artefacts at {self.place} cannot be used: {error}") from error
