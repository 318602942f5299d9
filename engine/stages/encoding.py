"""The encode batch: prompts to text keys and values, each distinct prompt once."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ..api.request import GenerationRequest
from ..api.settings import Stage
from ..backends.networks import Networks
from ..batching.job import Job
from ..models.adapters import AdapterRows, Chosen, acting, padded
from ..models.checkpoint import Components
from ..models.networks import EncodedText
from ..models.tensors import Network
from ..models.transfers import sent

_CACHE_BYTES = 2 * 2**30  # most memory of the prompts that are kept, however many may be


class _Text(NamedTuple):
    """What is encoded once: a prompt, None where zeros stand for an empty one, under the adapters of a stage."""

    prompt: str | None
    adapters: Chosen


class Encoding:
    """Encodes prompts and keeps those that were asked for last, at most `kept` of them."""

    def __init__(self, components: Components, networks: Networks, kept: int = 256) -> None:
        self.components = components
        self.networks = networks
        self.kept = kept
        # Of its own: a fast tokenizer keeps its padding as state, and the door asks for none in other threads.
        self._tokenizers = copy.deepcopy(components.tokenizers)
        self._texts: OrderedDict[_Text, EncodedText] = OrderedDict()

    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode the prompts of `jobs`."""
        wanted = {
            t for job in jobs for stage in (job.request.draft, job.request.final) for t in self._wanted(job, stage)
        }
        new = sorted(wanted - self._texts.keys(), key=str)
        if new:
            self._texts |= zip(new, self._encoded(new), strict=True)
        for job in jobs:
            draft, final = job.request.draft, job.request.final
            job.shared.texts = self._sized(job, draft)
            job.shared.final_texts = None if draft.lora == final.lora else self._sized(job, final)
            job.shared.input_ids = self.tokenize([job.request.prompt])[0]
            job.shared.hints = self._hints(job.shared.pictures)
        for text in wanted:
            self._texts.move_to_end(text)
        room = _CACHE_BYTES // jobs[0].shared.texts[0].nbytes
        while len(self._texts) > min(self.kept, room):
            self._texts.popitem(last=False)

    def _hints(self, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Control images of further ControlNets (1, 3, H, W), by name -> hints (width, h, w)."""
        if not pictures:
            return {}
        images = sent(list(pictures.values()), self.networks.device)
        controllers = [self.networks.denoiser.controller(name) for name in pictures]
        hints = [c.embed_hint(i.to(self.networks.dtype))[0] for c, i in zip(controllers, images, strict=True)]
        return dict(zip(pictures, hints, strict=True))

    def _wanted(self, job: Job, stage: Stage) -> list[_Text]:
        """Texts of a stage, by `Branch`."""
        return [_Text(prompt, self.components.chosen(stage)) for prompt in self._prompts(job.request)]

    def _sized(self, job: Job, stage: Stage) -> tuple[EncodedText, ...]:
        """Encoded texts of a stage for the job's picture, by `Branch`."""
        sizes = job.request.framing.sizes(*(side * self.components.vae_scale_factor for side in job.shape))
        return tuple(self.networks.denoiser.sized(self._texts[text], sizes) for text in self._wanted(job, stage))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> token ids (B, T) int64, padded; longer prompts were refused before."""
        return self._padded(self._tokenizers[0], prompts)

    def _padded(self, tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
        length = self.components.max_tokens
        encoded = tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return encoded.input_ids

    def _prompts(self, request: GenerationRequest) -> tuple[str | None, str]:
        """Prompts by `Branch`; None where zeros stand for an empty one."""
        negative = request.negative_prompt
        return (None if self.components.zero_empty and not negative else negative), request.prompt

    def _encoded(self, texts: Sequence[_Text]) -> list[EncodedText]:
        """Encode prompts by every text encoder, their states side by side; pooled text comes from the last."""
        prompts = [text.prompt for text in texts]
        words = [prompt or "" for prompt in prompts]
        tokens = [self._padded(tokenizer, words) for tokenizer in self._tokenizers]
        *tokens, numbers, weights = sent([*tokens, *_adapters(texts)], self.networks.device)
        adapters = AdapterRows(numbers, weights) if any(text.adapters for text in texts) else None
        encoders = zip((Network.TEXT_ENCODER, Network.TEXT_ENCODER_2), tokens, strict=False)
        with acting(adapters):
            outputs = [self.networks(name, [ids]) for name, ids in encoders]
        states, pooled = torch.cat([output[0] for output in outputs], dim=-1), outputs[-1][1:]
        for tensor in (states, *pooled):
            for place in (i for i, prompt in enumerate(prompts) if prompt is None):
                tensor[place] = 0
        return self.networks.denoiser.encode(states, pooled, adapters)


def _adapters(texts: Sequence[_Text]) -> list[Tensor]:
    """Numbers and weights of each text's adapters, (B, J) each, on the host."""
    numbers, weights = zip(*(padded(text.adapters) for text in texts), strict=True)
    return [torch.tensor(numbers), torch.tensor(weights)]
