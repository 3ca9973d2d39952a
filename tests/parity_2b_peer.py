"""transformers' side of `test_parity_2b`, a process of its own so that its memory is given back.

    python -m tests.parity_2b_peer MODEL_DIRECTORY CASE.npz DTYPE NEW_TOKENS OUT.npz

Writes what every layer puts out, the logits and greedy tokens of the one prompt in CASE.npz, and
the least distance of the likeliest to the second likeliest token on the way.
"""

import sys

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration

from tests.peers import recorded_layers


def main(directory: str, case: str, dtype: str, new_tokens: str, out: str) -> None:
    peer, loading = Qwen2VLForConditionalGeneration.from_pretrained(
        directory, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(loading.values()), loading
    given = np.load(case)
    tokens = torch.tensor(given["tokens"]).long()[None]
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == peer.config.image_token_id).int(),
        "pixel_values": torch.tensor(given["pixels"]),
        "image_grid_thw": torch.tensor(given["grid"])[None],
    }
    found = {}
    with torch.inference_mode():
        with recorded_layers(peer) as states:
            found["logits"] = peer(**inputs).logits[0].float().numpy()
        for tower, layers in states.items():
            for number, state in enumerate(layers):
                found[f"{tower} layer {number}"] = (
                    state.reshape(-1, state.shape[-1]).float().numpy()
                )
        if int(new_tokens):
            made = peer.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=int(new_tokens),
                output_scores=True,
                return_dict_in_generate=True,
            )
            found["tokens"] = made.sequences[0, tokens.shape[1] :].numpy()
            best = torch.cat(made.scores).topk(2).values
            found["margin"] = (best[:, 0] - best[:, 1]).min().numpy()
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
