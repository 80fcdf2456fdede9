"""A checkpoint as transformers runs it: what ``bench.peers`` compares with. It needs torch, this project does not."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kangaroo_jax.store import resolve


def their_directory(name: str) -> Path:
    """Return the directory of a checkpoint that transformers can read.

    Raises:
        ValueError: if there is none, or it holds a converted checkpoint only.
    """
    directory = resolve(name)
    if not [*directory.glob("*.safetensors"), *directory.glob("pytorch_model*.bin")]:
        raise ValueError(
            f"{directory} has no weights that transformers reads (*.safetensors, pytorch_model*.bin): "
            "pass --hf with the Hugging Face directory that it was converted from"
        )
    return directory


def check_torch() -> None:
    """Raise ValueError if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError("transformers' generate needs torch, and it is not installed: pip install torch")


class Transformers:
    """A checkpoint as transformers runs it, on torch's first GPU if there is one.

    Attributes:
        device: where it runs.
        version: versions of transformers and torch.
    """

    def __init__(self, directory: Path, dtype: str) -> None:
        """Load the checkpoint; ``check_torch`` first."""
        import transformers

        transformers.logging.set_verbosity_error()  # It would warn of its own early exit's options.
        transformers.logging.disable_progress_bar()
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        # torch is transformers' own; this project imports it nowhere.
        self._torch: Any = sys.modules["torch"]
        self.device = "cuda" if self._torch.cuda.is_available() else "cpu"
        self._model.to(self.device).eval()
        self.version = f"transformers {transformers.__version__}, torch {self._torch.__version__}"

    def generate(self, ids: Sequence[int], tokens: int, eos: Sequence[int], **options: Any) -> list[int]:
        """Return the new ids of greedy decoding, EOS included; ``options`` are ``generate``'s own."""
        prompt = self._torch.tensor([list(ids)], device=self.device)
        out = self._model.generate(
            prompt,
            attention_mask=self._torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=list(eos) or None,
            pad_token_id=0,
            **options,
        )
        return out[0, len(ids) :].tolist()
