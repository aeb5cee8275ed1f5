"""CLIP's text tower and visual projection beside a vision tower: what text-guided methods read."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from .chat import Special

# the checkpoint whose vision tower LLaVA-1.5 and 1.6 were built on: image size, patch size, width, layers
CHECKPOINTS = {(336, 14, 1024, 24): "openai/clip-vit-large-patch14-336"}


class ClipText:
    """Loaded on first need, from the folder `clip` inside a model's folder or from the hub."""

    def __init__(self, place: str, tower):
        self.place, self.tower, self.parts = place, tower, None
        self.inert = str  # what a visitor says, its special tokens broken; as it is until the tokenizer is there

    @classmethod
    def beside(cls, folder: str, tower) -> "ClipText | None":
        """The text tower that belongs to a vision tower: bundled with the model, else a known checkpoint, else None."""
        if (Path(folder) / "clip").is_dir():
            return cls(str(Path(folder) / "clip"), tower)
        shape = tower.config
        known = CHECKPOINTS.get((shape.image_size, shape.patch_size, shape.hidden_size, shape.num_hidden_layers))
        return known and cls(known, tower)

    def words(self, text: str) -> Tensor:
        """The text's embedding [K, P], float32. One longer than the tower reads is cut into K pieces (CDPruner's way).

        Raises ValueError where the text tower cannot be had.
        """
        model, tokenizer, projection = self._load()
        pieces = [torch.tensor([ids]) for ids in self._pieces(tokenizer, self.inert(text), model.text_model)]
        ends = [model.text_model(ids.to(projection.device))[1] for ids in pieces]
        return torch.cat([model.text_projection(end) for end in ends]).float()

    def relevance(self, words: Tensor, features: Tensor) -> Tensor:
        """Cosine [N] of a text's words [K, P] and each of the patches `features` [N, D], post-normed and projected; raw
        sign, the mean over the pieces."""
        _, _, projection = self._load()
        patches = functional.linear(self.tower.post_layernorm(features).float(), projection)
        return functional.cosine_similarity(words[:, None], patches[None], dim=-1).mean(0)

    def last_words(self, text: str) -> Tensor:
        """The embedding [1, P] as Recoverable's released code takes it: at the last padded position, not the end."""
        model, tokenizer, projection = self._load()
        padded = {"padding": "max_length", "max_length": model.text_model.config.max_position_embeddings}
        ids = tokenizer(self.inert(text), truncation=True, return_tensors="pt", **padded).input_ids
        return model.text_projection(model.text_model(ids.to(projection.device))[0][:, -1]).float()

    def last_relevance(self, words: Tensor, states: Tensor) -> Tensor:
        """The cosine [N] of that code: `states` [1+N, D] without the post norm."""
        _, _, projection = self._load()
        patches = functional.linear(states[1:].float(), projection)
        return functional.cosine_similarity(words, patches, dim=-1)

    @staticmethod
    def _pieces(tokenizer, text, text_model) -> list[list[int]]:
        whole, empty = tokenizer(text).input_ids, tokenizer("").input_ids
        room = text_model.config.max_position_embeddings - len(empty)
        start, end = empty[:1], empty[1:]
        words = whole[len(start) : len(whole) - len(end)]
        return [[*start, *words[i : i + room], *end] for i in range(0, max(len(words), 1), room)]

    def _load(self):
        if self.parts is None:
            read = self._from_folder if Path(self.place).is_dir() else self._from_hub
            try:
                model, projection = read()
                tokenizer = AutoTokenizer.from_pretrained(self.place)
            except OSError as error:
                raise ValueError(
                    f"the CLIP text tower {self.place} could not be read ({str(error).splitlines()[0]}): connect once "
                    "so that it can be fetched, or put it into a folder clip inside the model's folder"
                ) from error
            self.inert, device = Special(tokenizer).inert, self.tower.post_layernorm.weight.device
            self.parts = model.to(device).eval(), tokenizer, projection.detach().float().to(device)
        return self.parts

    def _from_folder(self):
        weights = load_file(Path(self.place) / "model.safetensors")
        config = CLIPTextConfig.from_pretrained(self.place)
        projection = weights.pop("visual_projection.weight")
        return CLIPTextModelWithProjection.from_pretrained(None, config=config, state_dict=weights), projection

    def _from_hub(self):
        """OpenAI's repository may hold its weights pickled; transformers then reads tensors only, no code."""
        model = CLIPModel.from_pretrained(self.place)
        projection = model.visual_projection.weight
        del model.vision_model
        return model, projection
