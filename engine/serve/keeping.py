"""Records of what a server draws: a manifest and an audit line for every picture, before anybody is told of it."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..api.result import GenerationResult
from ..api.writing import sweep
from ..engine import Engine
from ..records.audit import LOG_NAME, AuditLog, file_hash
from ..records.credentials import Signer
from ..records.output import OutputFolder, check_writable, manifest_beside
from ..records.stores import Query
from .breaker import Breaker
from .config import Records
from .errors import ApiError

_ID = re.compile(r"twig-[0-9a-f]{32}-[0-9]{1,3}(-[0-9a-f]{32})?")


class Kept(NamedTuple):
    """A record: its id, by which auditors ask for it, and the digest and path of its manifest."""

    id: str
    sha256: str
    path: Path


def signer_of(config: Records) -> Signer | None:
    """What signs pictures, None where the operator names nothing. Raises RecordError, InvalidRequestError."""
    return None if config.sign is None else Signer.load(*config.sign)


class Keeper:
    """Keeps records of what engines make, as `config` says, in one chain.

    records: by which they are written, and told whether they can be.
    signer: gives their pictures content credentials, where the operator has a certificate. Raises what loading it does.
    """

    def __init__(self, config: Records) -> None:
        self.config, self.signer = config, signer_of(config)
        place = config.log or config.folder / LOG_NAME
        self.log = AuditLog(place, prompts=config.prompts, root=config.folder)
        self.records = Breaker("records", self._check, threads=1)  # for they form one chain

    def prepare(self) -> None:
        """Raise RecordError or OSError unless records can be written; sweep what a killed server left half written."""
        self._check()
        sweep(self.config.folder)

    async def keep(self, result: GenerationResult, engine: Engine) -> Kept:
        """Write the record of a result that `engine` made; it is on the disk when this returns.

        Raises UnavailableError where it cannot be written.
        """
        return await self.records.run(self._keep, result, engine)

    async def find(self, id: str) -> dict[str, Any]:
        """The record of that id: its manifest, and the lines that name it. Raises ApiError where there is none."""
        return await asyncio.to_thread(self._find, id)

    def place(self, id: str) -> Path:
        """Where the manifest of that id lies. Raises ApiError where there is none."""
        path = self.config.folder / f"{id}.json"
        if not _ID.fullmatch(id) or not path.is_file():
            raise ApiError(404, "record_not_found", "there is no record of this id", param="id")
        return path

    def _check(self) -> None:
        check_writable(self.config.folder, self.log)

    def _keep(self, result: GenerationResult, engine: Engine) -> Kept:
        if self.config.pictures:
            path = manifest_beside(OutputFolder.of(engine, self.config.folder, self.log, self.signer).save(result))
        else:
            path = self.log.append(result, engine)
        return Kept(path.stem, file_hash(path), path)

    def _find(self, id: str) -> dict[str, Any]:
        path = self.place(id)
        digest = file_hash(path)
        lines = [line for line in self.log.search(Query(manifest_sha256=digest)) if line.manifest == path.name]
        return {
            "id": id,
            "object": "twig.record",
            "manifest_sha256": digest,
            "manifest": json.loads(path.read_bytes()),
            "lines": [json.loads(line.model_dump_json(exclude_none=True)) for line in lines],
        }
