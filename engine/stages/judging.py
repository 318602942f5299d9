"""The judge batch: finals to scores and decisions, and the explanation of what led to them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..api.event import State
from ..api.result import Attempt, Explanation
from ..api.rules import Decision
from ..batching.arenas import Arenas
from ..batching.job import Job, by_shape
from ..judging.judge import PREFIX, Judge, Launched, Measured
from ..judging.similarity import judge
from ..models.components import Components
from ..models.pictures import eight_bits
from ..models.transfers import fetched, sent
from ..sampling.rows import Branch, Hint
from .decoding import Decoder, check_finite, finite

_ENDS = {Decision.ACCEPT: State.ACCEPTED, Decision.REVIEW: State.REVIEW, Decision.REFUSE: State.REFUSED}
"""State that a judged job ends in, by what the rule made of it."""


class Judging:
    """Decodes finals and holds them to their requests' rules."""

    def __init__(self, components: Components, arenas: Arenas, decoder: Decoder, judge: Judge) -> None:
        self.components = components
        self.arenas = arenas
        self.decoder = decoder
        self.judged_by = judge

    @torch.inference_mode()
    def judge(self, jobs: Sequence[Job]) -> None:
        """Score pictures of one shape against their draft or source, or all of them against none; `apart`.

        A finished run, and one that an early verdict ends, is appended to the job's attempts.
        """
        latents = torch.stack([self.arenas.latent(job) for job in jobs])
        flags = finite(latents)
        if self.judged_by.extra_metrics:  # they are a user's, and are shown nothing that is none
            check_finite(jobs, flags.tolist())
        pixels = self._pixels(jobs, latents)
        self._decode_drafts(jobs)
        launched = self._launched(jobs, pixels)
        found, *tables = fetched([{"finite": flags, "drawn": eight_bits(pixels)}, *launched.tables])
        check_finite(jobs, found["finite"].tolist())
        drawn = found["drawn"].numpy()
        asked = [self.judged_by.asked(job.request.words, job.own.control_map) for job in jobs]
        measured = self.judged_by.read(tables, launched.nearest, drawn, asked)
        for job, image, picture, one in zip(jobs, pixels, drawn, measured, strict=True):
            self._keep_attempt(job, image, picture, one)

    def apart(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Jobs in groups that are judged together: of one shape, and held against their drafts or not."""
        found = []
        for group in by_shape(jobs):
            alone = [job for job in group if self._stands_alone(job)]
            found += [each for each in (alone, [job for job in group if job not in alone]) if each]
        return found

    def _stands_alone(self, job: Job) -> bool:
        """Whether the job's picture is held against registered works at most: a draft, or one of unknown shape."""
        return job.own.delivered or not self.judged_by.compares(job.request)

    def _pixels(self, jobs: Sequence[Job], latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W); drafts that are delivered were decoded when they were segmented."""
        if all(job.own.delivered and job.shared.previewed is None for job in jobs):
            return torch.cat([job.shared.reference for job in jobs])
        return self.decoder.decode(latents)

    def _launched(self, jobs: Sequence[Job], pixels: Tensor) -> Launched:
        if self._stands_alone(jobs[0]):
            return self.judged_by.launch_alone(pixels)
        references = torch.cat([job.shared.reference for job in jobs])
        (masks,) = sent([torch.stack([job.shared.shape for job in jobs])], pixels.device)
        return self.judged_by.launch(pixels, references, masks)

    def _decode_drafts(self, jobs: Sequence[Job]) -> None:
        """Decode drafts in full, once, that were seen as previews so far and that finals are now held against."""
        held = list({id(job.shared): job.shared for job in jobs if self._is_held(job)}.values())
        due = [(shared, shared.previewed) for shared in held if shared.previewed is not None]
        if not due:
            return
        pixels = self.decoder.decode(torch.stack([latent for _, latent in due]))
        (found,) = fetched([{"drawn": eight_bits(pixels)}])
        for (shared, _), one, drawn in zip(due, pixels, found["drawn"].numpy(), strict=True):
            shared.reference, shared.drawn, shared.previewed = one[None].clone(), drawn.copy(), None

    def _is_held(self, job: Job) -> bool:
        """Whether anything is made of how like its draft the job's picture is."""
        return not job.own.delivered and (self.judged_by.compares(job.request) or job.request.explain)

    def ending(self, job: Job) -> State:
        """State that a job ends in after its last attempt."""
        if not self.judged_by.holds(job.request):
            return State.NOT_JUDGED
        attempt = job.own.attempts[-1]
        return _ENDS[attempt.decision if attempt.passed else self.judged_by.rule(job.request).then]

    def wants_redraft(self, job: Job) -> bool:
        """Whether the job's last attempt had lost an object of its map, and another draft is due for that.

        It can help where the map's objects came from the draft: a few steps may have drawn what cannot be drawn again.
        """
        request, score = job.request, job.own.attempts[-1].scores.get("classes_kept")
        lost = score is not None and score.crossed
        due = request.redraft is not None and request.source is None and not job.redrafted
        return lost and due and job.own.inherits

    def _keep_attempt(self, job: Job, image: Tensor, drawn: np.ndarray, measured: Measured) -> None:
        own, run = job.own, job.trajectory
        assert run is not None
        values: dict[str, float | None] = dict(measured.values)
        if self._stands_alone(job):
            values |= {name: None for name in self.judged_by.directions if not name.startswith(PREFIX)}
        judged = judge(values, self.judged_by.rule(job.request), self.judged_by.directions, measured.words)
        if not run.done:
            passed = judged.decision is not Decision.REFUSE
            own.early.append((run.step, passed))
            if passed or not job.request.similarity.early_stops:
                return
        rows, steps, saved = (0, 0, 0) if own.delivered else (run.rows_spent, run.step, run.rows_left)
        own.drawn, own.image = drawn.copy(), image.clone() if job.request.explain else None
        own.attempts.append(
            Attempt(
                own.seed, own.policy, judged.scores, rows, steps, saved, tuple(own.early),
                judged.decision, judged.reasons, measured.nearest, own.shapes,
            )
        )  # fmt: skip

    def explanation(self, job: Job) -> Explanation:
        """What the last attempt's mechanisms did, step by step."""
        assert job.trajectory is not None
        own, plan = job.own, job.trajectory.plan
        policy = own.attempts[-1].avoidance
        maps, seen = fetched(self._maps(job))
        ids = job.shared.input_ids.tolist()
        unseen = torch.full((len(plan), 2, 2, len(ids)), torch.nan)  # a draft that was delivered
        masses = seen.get("masses", unseen).numpy().copy()
        noise = policy.masked_noise
        return Explanation(
            tokens=tuple(self.components.tokenizer.convert_ids_to_tokens(ids)),
            mass_inside=masses[:, 0, 0],
            mass_outside=masses[:, 0, 1],
            neutral_inside=masses[:, 1, 0],
            neutral_outside=masses[:, 1, 1],
            guidance=np.array([sum(r.weight for r in rows if r.branch is Branch.CONDITIONAL) for rows in plan]),
            control=np.array([max(r.control for r in rows) for rows in plan]),
            noise=np.array([
                noise.strength if noise is not None and noise.active(step, len(plan)) else 0.0
                for step in range(len(plan))
            ]),
            negative=np.array([sum(-r.weight for r in rows if r.hint is Hint.OWN) for rows in plan]),
            rows=np.array([len(rows) for rows in plan]),
            noise_moved=float((seen["moved"] - own.noise).norm() / own.noise.norm()) if "moved" in seen else 0.0,
            similarity={name: values.numpy().copy() for name, values in maps.items()},
            repulsion=seen["pushes"].numpy().copy(),
        )  # fmt: skip

    def _maps(self, job: Job) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of a job to explain: maps of its similarity, and what its steps left on the device."""
        assert job.trajectory is not None
        own = job.own
        maps = self.judged_by.maps(own.image, None if own.delivered else job.shared.reference, own.attempts[-1].nearest)
        left = {"pushes": self.arenas.arena(job).pushes[job.slot, : len(job.trajectory.plan)]}
        if own.masses:
            left["masses"] = torch.stack(own.masses)
        if own.moved is not None:
            left["moved"] = own.moved
        return maps, left
