"""From the checkpoints of ``train.joey`` to the Hugging Face directory that is shipped."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from kangaroo_jax.files import write_json
from kangaroo_jax.model import LlamaConfig, abstract_params
from kangaroo_jax.store import config_to_hf, write_hf
from train.byte_tokenizer import write_byte_tokenizer
from train.checkpoints import check_format


def export_joey(config: LlamaConfig, checkpoints: Path, out: Path) -> int:
    """Write the newest params of a training run as a Hugging Face directory: bf16 weights, tokenizer, configs.

    Args:
        config: shape of the model that was trained.
        checkpoints: the folder ``checkpoints`` that ``train.training_loop.fit`` wrote; it is only read.
        out: the directory to write.

    Returns:
        The optimiser step of the params.

    Raises:
        ValueError: if there is no checkpoint, or the newest is of another format.
    """
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
    if not steps:
        raise ValueError(f"no checkpoint in {checkpoints}; run python -m train.joey first")
    check_format(checkpoints)
    # The optimiser's state, two thirds of the file, is left alone.
    wanted = {"params": abstract_params(config)}
    restore = ocp.args.PyTreeRestore(
        wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.restore((checkpoints / str(max(steps)) / "default").absolute(), args=restore)
    write_hf(out, config, jax.device_get(saved["params"]), jnp.bfloat16)
    write_byte_tokenizer(out)
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config_to_hf(config)["eos_token_id"],
        "do_sample": False,
    }
    write_json(out / "generation_config.json", generation)
    return max(steps)
