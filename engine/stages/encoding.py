"""The encode batch: prompts to text keys and values, each distinct prompt once."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..api.choices import PromptSyntax
from ..api.request import GenerationRequest
from ..api.settings import Stage
from ..avoidance.restating import restated
from ..avoidance.words import lexicon
from ..backends.networks import Networks
from ..batching.carried import Said
from ..batching.job import Job
from ..models.adapters import AdapterRows, Chosen, adapter_tensors
from ..models.components import Components
from ..models.networks import EncodedText
from ..models.prompts import Chunk, chunked, weighted
from ..models.tensors import Network
from ..models.transfers import sent
from ..sampling.rows import Branch

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_CACHE_BYTES = 2 * 2**30  # most memory of the prompts that are kept, however many may be


class Wanted(NamedTuple):
    """A text to encode: a prompt, None where zeros stand for it, as so many chunks, without the last `skip` layers.

    adapters: of the stage that it is for.
    """

    prompt: str | None
    syntax: PromptSyntax
    skip: int | None
    chunks: int
    adapters: Chosen = ()


Pair = tuple[Wanted, Wanted]
"""Texts of a stage, by `Branch`."""


class Encoding:
    """Encodes prompts and keeps those that were asked for last, at most `kept` of them."""

    def __init__(self, components: Components, networks: Networks, kept: int = 256) -> None:
        self.components = components
        self.networks = networks
        self.kept = kept
        # Of its own: a fast tokenizer keeps its padding as state, and the door asks for none in other threads.
        self._tokenizers = copy.deepcopy(components.tokenizers)
        self._texts: OrderedDict[Wanted, EncodedText] = OrderedDict()

    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode the prompts of `jobs`."""
        asked = [
            (self._asked(job.request, job.request.draft), self._asked(job.request, job.request.final)) for job in jobs
        ]
        others = [self._restated(job.request, final) for job, (_, final) in zip(jobs, asked, strict=True)]
        wanted = {text for stages in asked for pair in stages for text in pair} | {text for text in others if text}
        new = sorted(wanted - self._texts.keys(), key=lambda text: (*_kind(text), str(text)))
        groups = [list(alike) for _, alike in groupby(new, _kind)]
        read = [self._read(group) for group in groups]
        there = iter(sent([tensor for tensors in read for tensor in tensors], self.networks.device) if read else ())
        for group, tensors in zip(groups, read, strict=True):
            self._texts |= zip(group, self._encoded(group, [next(there) for _ in tensors]), strict=True)
        for job, (draft, final), other in zip(jobs, asked, others, strict=True):
            job.shared.texts = self._sized(job, draft)
            job.shared.final_texts = None if draft == final else self._sized(job, final)
            if other is not None:
                (said,) = self._sized(job, [other])
                job.shared.restated = Said(said, self._ids(other).flatten())
            job.shared.input_ids = self._ids(draft[Branch.CONDITIONAL]).flatten()
            job.shared.hints = self._hints(job.shared.pictures)
            job.chunks = draft[Branch.CONDITIONAL].chunks
        for text in wanted:
            self._texts.move_to_end(text)
        self._forget()

    @torch.inference_mode()
    def rehearse(self) -> None:
        """Encode two texts, as many as the least request has, and keep nothing of them."""
        texts = [Wanted("", PromptSyntax.PLAIN, None, 1)] * 2
        self._encoded(texts, sent(self._read(texts), self.networks.device))

    def _hints(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Control images of further ControlNets (1, 3, H, W), by name -> hints (width, h, w)."""
        if not pictures:
            return {}
        images = sent(list(pictures.values()), self.networks.device)
        controllers = [self.networks.denoiser.controller(name) for name in pictures]
        hints = [c.embed_hint(i.to(self.networks.dtype))[0] for c, i in zip(controllers, images, strict=True)]
        return dict(zip(pictures, hints, strict=True))

    def _sized(self, job: Job, texts: Sequence[Wanted]) -> tuple[EncodedText, ...]:
        """Encoded texts for the job's picture, in the order given: of a `Pair` by `Branch`."""
        sizes = job.request.framing.sizes(*(side * self.components.vae_scale_factor for side in job.shape))
        return tuple(self.networks.denoiser.sized(self._texts[text], sizes) for text in texts)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Plain prompts of one chunk each -> token ids (B, T) int64, padded."""
        texts = [Wanted(prompt, PromptSyntax.PLAIN, None, 1) for prompt in prompts]
        return torch.cat([self._ids(text) for text in texts])

    def _forget(self) -> None:
        """Let those go that were asked for least lately, where they are too many or take too much."""
        taken = sum(text.nbytes for text in self._texts.values())
        while len(self._texts) > 1 and (len(self._texts) > self.kept or taken > _CACHE_BYTES):
            taken -= self._texts.popitem(last=False)[1].nbytes

    def _asked(self, request: GenerationRequest, stage: Stage) -> Pair:
        """Texts of a stage, of as many chunks each; None where zeros stand for an empty one.

        As in diffusers' pipelines, no layer is skipped for a negative prompt.
        """
        negative, syntax = request.negative_prompt, request.prompt_syntax
        count = max(len(self._chunks(prompt, syntax)) for prompt in (negative, request.prompt))
        unsaid = None if self.components.zero_empty and not negative else negative
        adapters = self.components.chosen(stage)
        conditional = Wanted(request.prompt, syntax, request.clip_skip, count, adapters)
        return Wanted(unsaid, syntax, None, count, adapters), conditional

    def _restated(self, request: GenerationRequest, final: Pair) -> Wanted | None:
        """The prompt of finals said in another order; None where that is not asked for, or it lists nothing.

        One with marks of its syntax stays as it is written.
        """
        segmenter = self.components.segmenter
        if request.avoidance.restated_prompt is None or segmenter is None or request.words != request.prompt:
            return None
        words = restated(request.prompt, lexicon(segmenter.labels, segmenter.background))
        return None if words is None else final[Branch.CONDITIONAL]._replace(prompt=words)

    def _chunks(self, prompt: str | None, syntax: PromptSyntax) -> list[Chunk]:
        return chunked(self._tokenizers[0], prompt or "", syntax, self.components.max_tokens)

    def _padded(self, text: Wanted) -> list[Chunk]:
        """The chunks of a text, and empty ones up to their number, as the web interfaces pad."""
        chunks = self._chunks(text.prompt, text.syntax)
        return chunks + [Chunk()] * (text.chunks - len(chunks))

    def _ids(self, text: Wanted) -> Tensor:
        """Token ids (chunks, T) int64 for the first encoder."""
        return torch.tensor(self._token_ids(self._tokenizers[0], self._padded(text)))

    def _token_ids(self, tokenizer: CLIPTokenizer, chunks: Sequence[Chunk]) -> list[list[int]]:
        return [chunk.padded(tokenizer, self.components.max_tokens) for chunk in chunks]

    def _read(self, texts: Sequence[Wanted]) -> list[Tensor]:
        """What encoders read of texts, on the host.

        Token ids (chunks, T) for each; numbers and weights (B, J) of adapters where any text has some; and weights of
        tokens (chunks, T) where any is weighted.
        """
        chunks = [chunk for text in texts for chunk in self._padded(text)]
        read = [torch.tensor(self._token_ids(tokenizer, chunks)) for tokenizer in self._tokenizers]
        read += adapter_tensors([text.adapters for text in texts])
        if any(chunk.is_weighted for chunk in chunks):
            read.append(torch.tensor([chunk.all_weights(self.components.max_tokens) for chunk in chunks]))
        return read

    def _encoded(self, texts: Sequence[Wanted], read: Sequence[Tensor]) -> list[EncodedText]:
        """Encode texts of one number of chunks that skip as many layers; read: as `_read`, where the networks are.

        The states of all text encoders lie side by side, those of chunks one after the other; pooled text is the last
        encoder's of the first chunk.
        """
        count = len(self._tokenizers)
        tokens, rest, adapted = read[:count], read[count:], any(text.adapters for text in texts)
        adapters, weighing = (AdapterRows(*rest[:2]), rest[2:]) if adapted else (None, rest)
        of_chunks = adapters and adapters.repeated(texts[0].chunks)
        encoders = zip((Network.TEXT_ENCODER, Network.TEXT_ENCODER_2), tokens, strict=False)
        outputs = [self.networks.text_states(name, each, texts[0].skip, of_chunks) for name, each in encoders]
        parts = [weighted(output[0], *weighing) for output in outputs]
        states = torch.cat(parts, dim=-1).unflatten(0, (len(texts), -1)).flatten(1, 2)
        pooled = [each.unflatten(0, (len(texts), -1))[:, 0] for each in outputs[-1][1:]]
        for tensor in (states, *pooled):
            for place in (i for i, text in enumerate(texts) if text.prompt is None):
                tensor[place] = 0
        return self.networks.denoiser.encode(states, pooled, adapters)


def _kind(text: Wanted) -> tuple[int, int]:
    """What texts that are encoded together have in common, in numbers."""
    return text.chunks, -1 if text.skip is None else text.skip
