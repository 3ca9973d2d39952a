"""Tokenizer, chat template and image settings of the embedded model, in the Hugging Face layout."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, VISION_PAD = "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL = (
    *(END_OF_TEXT, IM_START, IM_END),
    *(VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD),
)
# One token each, kept in the decoded text because rewards read them.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# Renders what Qwen2-VL's template does: ChatML with a default system turn, images as placeholders.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn.role + '\\n' }}
{%- if turn.content is string -%}
{{ turn.content }}
{%- else -%}
{%- for part in turn.content -%}
{%- if part.type == 'image' -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' -%}
{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else -%}
{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

IMAGE_SIDE = 112  # pixels: 64 patches, 16 image tokens
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "min_pixels": 56 * 56,
    "max_pixels": IMAGE_SIDE * IMAGE_SIDE,
    # Those of the corpus: with CLIP's, as in Qwen2-VL, these bright images would lie far from zero.
    "image_mean": [0.825, 0.825, 0.825],
    "image_std": [0.2, 0.2, 0.2],
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "resample": 3,
}


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train byte-level BPE on `texts`: one token per word of the corpus, one per digit."""
    tokenizer = Tokenizer(models.BPE())
    # A word, a digit or a punctuation mark, each with the space before it.
    words = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: merging ends when every word is one token
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TAGS])
    return tokenizer


def write_processor(directory: Path, tokenizer: Tokenizer) -> None:
    """Write all files of a model directory except the weights and config.json."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[
            token for token in SPECIAL if token not in (END_OF_TEXT, IM_END)
        ],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    ).save_pretrained(directory)
    ids = {name: tokenizer.token_to_id(name) for name in (IM_END, END_OF_TEXT)}
    files = {
        "preprocessor_config.json": PREPROCESSOR,
        "generation_config.json": {
            "eos_token_id": [ids[IM_END], ids[END_OF_TEXT]],
            "pad_token_id": ids[END_OF_TEXT],
            "do_sample": False,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
