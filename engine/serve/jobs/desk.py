"""Where jobs are handed in, asked after and called off, whichever server runs them."""

import asyncio
import json
import math
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...api.errors import RecordError, UnreachableError
from ...api.request import GenerationRequest
from ..bodies import ImageBody
from ..breaker import Breaker
from ..config import Jobs
from ..errors import LIMIT, ApiError
from ..keys import LOCAL, Key
from .artefacts import Artefacts, open_artefacts
from .sql import SqlJobs
from .store import Job, JobStore, Status

PREFIX = "job-"
_THREADS = 4
_BUSY = 10.0  # seconds after which a full list of jobs is worth another try


@dataclass(frozen=True)
class Ticket:
    """What a job is drawn from: the body that its client sent, and the request that was made of it, with its seed."""

    body: ImageBody
    request: GenerationRequest

    def to_bytes(self) -> bytes:
        """Two lines of JSON."""
        return f"{self.body.model_dump_json()}\n{self.request.to_json()}\n".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote."""
        body, request = data.decode().splitlines()
        return cls(ImageBody.model_validate_json(body), GenerationRequest.from_json(request))


class Desk:
    """Takes jobs in and gives their answers out.

    owner: tells this server from others that share its database. places: by which database and artefacts are used.
    keys: names of the keys of idempotency that are answered here just now, with the fingerprint of what was asked for.
    """

    def __init__(self, config: Jobs, folder: Path) -> None:
        self.config = config
        self.store: JobStore = SqlJobs(config.store or f"sqlite:///{folder / 'jobs.db'}")
        self.artefacts: Artefacts = open_artefacts(config.artefacts or str(folder / "jobs"), config.endpoint)
        self.owner = uuid.uuid4().hex
        self.came = asyncio.Event()
        self.places = Breaker("jobs", self.check, _THREADS)
        self.keys = dict[str, str]()

    def check(self) -> None:
        """Raise RecordError or OSError unless jobs can be kept."""
        self.artefacts.check()
        self.store.check()

    async def submit(self, ticket: Ticket, key: Key, id: str | None = None) -> dict[str, Any]:
        """Keep a job, and say what is known of it; its request is kept before it is. Raises ApiError where it is full.

        id: under which it may have been kept already.
        """
        now = time.time()
        job = Job(id or f"{PREFIX}{uuid.uuid4().hex}", key.id, ticket.request.priority, now, now)
        await self.places.run(self._keep, job, ticket)
        self.came.set()
        return self._told(job)

    async def look(self, id: str, key: Key) -> dict[str, Any]:
        """What is known of a job of this key's, with its answer if it is done. Raises ApiError where there is none."""
        job = await self._found(id, key)
        return await self.places.run(self._told, job)

    async def drop(self, id: str, key: Key) -> tuple[dict[str, Any], Ticket | None]:
        """Call a job off, or forget its answer where it has ended; with the ticket of one that nobody had begun.

        Raises ApiError where there is none.
        """
        job = await self._found(id, key)
        if not await self.places.run(self.store.cancel, job.id, time.time()):
            await self.places.run(self.forget, [job.id])
            return {"id": job.id, "object": "twig.job", "deleted": True}, None
        data = await self.places.run(self._taken_back, f"{job.id}-request")
        told = {"id": job.id, "object": "twig.job", "status": Status.CANCELLED, "deleted": False}
        if data is None or job.status is not Status.QUEUED:
            return told, None
        return told, await asyncio.to_thread(Ticket.from_bytes, data)

    def forget(self, ids: list[str]) -> None:
        """Forget jobs and kept answers, what they are known by last."""
        self.artefacts.delete([f"{id}-{kind}" for id in ids for kind in ("request", "answer")])
        self.store.delete(ids)

    def waiting(self) -> float:
        """How many jobs are queued; no number while nobody can tell."""
        return math.nan if self.places.why is not None else self.store.waiting()

    def _taken_back(self, name: str) -> bytes | None:
        data = self.artefacts.get(name)
        self.artefacts.delete([name])
        return data

    def _keep(self, job: Job, ticket: Ticket) -> None:
        if self.store.waiting() >= self.config.waiting:
            message = f"{self.config.waiting} jobs are waiting already"
            raise ApiError(429, "queue_full", message, type=LIMIT, retry_after=_BUSY)
        if job.tenant != LOCAL.id and self.store.waiting(job.tenant) >= self.config.each:
            message = f"{self.config.each} jobs of this key are waiting already, as many as may"
            raise ApiError(429, "too_many_jobs", message, type=LIMIT, retry_after=_BUSY)
        kept = self.artefacts.put(f"{job.id}-request", ticket.to_bytes())
        try:
            self.store.add(job)
        except UnreachableError:
            if kept:  # it holds a prompt, and nobody would come back for it
                with suppress(RecordError, OSError):
                    self.artefacts.delete([f"{job.id}-request"])
            raise

    async def _found(self, id: str, key: Key) -> Job:
        job = await self.places.run(self.store.find, id[:64])
        if job is None or job.tenant != key.id:
            raise ApiError(404, "job_not_found", "there is no job of this id, or it was forgotten", param="id")
        return job

    def _told(self, job: Job) -> dict[str, Any]:
        told = {"id": job.id, "object": "twig.job", "status": job.status, "created": int(job.created)}
        if job.status is not Status.DONE:
            return told
        answer = self.artefacts.get(f"{job.id}-answer")
        body = None if answer is None else json.loads(answer)
        return told | {"response": {"status_code": job.code, "body": body}}
