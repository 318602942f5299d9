"""The encode batch: prompts to text keys and values, each distinct prompt once."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ..api.request import GenerationRequest
from ..backends.networks import Networks
from ..batching.job import Job
from ..models.checkpoint import Components
from ..models.networks import EncodedText
from ..models.tensors import Network
from ..models.transfers import sent

_CACHE_BYTES = 2 * 2**30  # most memory of the prompts that are kept, however many may be


class Encoding:
    """Encodes prompts and keeps those that were asked for last, at most `kept` of them."""

    def __init__(self, components: Components, networks: Networks, kept: int = 256) -> None:
        self.components = components
        self.networks = networks
        self.kept = kept
        # Of its own: a fast tokenizer keeps its padding as state, and the door asks for none in other threads.
        self._tokenizers = copy.deepcopy(components.tokenizers)
        self._texts: OrderedDict[str | None, EncodedText] = OrderedDict()

    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode the prompts of `jobs`."""
        wanted = {p for job in jobs for p in self._prompts(job.request)}
        new = sorted(wanted - self._texts.keys(), key=str)
        if new:
            self._texts |= zip(new, self._encoded(new), strict=True)
        for job in jobs:
            sizes = job.request.framing.sizes(*(side * self.components.vae_scale_factor for side in job.shape))
            texts = (self._texts[p] for p in self._prompts(job.request))
            job.shared.texts = tuple(self.networks.denoiser.sized(text, sizes) for text in texts)
            job.shared.input_ids = self.tokenize([job.request.prompt])[0]
            job.shared.hints = self._hints(job.shared.pictures)
        for prompt in wanted:
            self._texts.move_to_end(prompt)
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

    def _encoded(self, prompts: Sequence[str | None]) -> list[EncodedText]:
        """Encode prompts by every text encoder, their states side by side; pooled text comes from the last."""
        words = [prompt or "" for prompt in prompts]
        tokens = sent([self._padded(tokenizer, words) for tokenizer in self._tokenizers], self.networks.device)
        encoders = zip((Network.TEXT_ENCODER, Network.TEXT_ENCODER_2), tokens, strict=False)
        outputs = [self.networks(name, [ids]) for name, ids in encoders]
        states, pooled = torch.cat([output[0] for output in outputs], dim=-1), outputs[-1][1:]
        for tensor in (states, *pooled):
            for place in (i for i, prompt in enumerate(prompts) if prompt is None):
                tensor[place] = 0
        return self.networks.denoiser.encode(states, pooled)
