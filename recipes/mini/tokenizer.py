#!/usr/bin/env python3
"""Trains a tokenizer for a mini model on what is asked and answered in the synthetic world.

    tpo synthetic --export out/rows train 6000
    pip install tokenizers
    recipes/mini/tokenizer.py out/rows/rows.jsonl out/tokenizer.json
    recipes/mini/tokenizer.py --chatml out/rows/rows.jsonl out/tokenizer.json

Byte pairs that occur often become one token, digits stay single, any text can be written. The task tokens get the
last ids. That of assets/mini was trained in this way on other clips and without their captions; another
one needs a model of its own, whose tpo.json has its ids. With --chatml prompts are LLaVA-OneVision's: the tokens of
Qwen2 in its order before those of the tasks, and no BOS. That of assets/mini-ov is from `train 1500`.
"""

import json
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

MERGES = 420
SPECIAL = ["<unk>", "<s>", "</s>"]
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
TASKS = ["<box_begin>", "<time_begin>", "<temp>", "<boxes>", "<track_begin>", "<tracking>", "<track_box>"]


def in_words(annotation):
    """A place or times as a model without heads writes them."""
    if "box" in annotation:
        return "[" + ", ".join(f"{side:.3f}" for side in annotation["box"]) + "]"
    return ", ".join(f"{start:.1f} - {end:.1f} seconds" for start, end in annotation.get("spans", []))


def texts(rows, chatml):
    for line in open(rows):
        row = json.loads(line)
        annotations = iter(row["annotations"])
        for turn in row["turns"]:
            answer = turn["answer"]
            if "<task:" in answer:
                answer = answer.split("<task:")[0] + in_words(next(annotations)) + answer.split(">")[-1]
            # As prompts lay them out, and as an answer stands by itself.
            if chatml:
                # Between special tokens, which no pair reaches over.
                yield from ("system\nYou are a helpful assistant.", "user\n", "\n" + turn["question"], "assistant\n")
            else:
                yield f"[INST] <Video></Video>[/INST] [INST] {turn['question']} [/INST] "
            yield answer


def main(rows, out, chatml):
    special = [] if chatml else SPECIAL
    tokenizer = Tokenizer(models.BPE(unk_token=None if chatml else "<unk>"))
    # Digits one by one: numbers are read and written place by place.
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 256 + MERGES,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(rows, chatml), trainer)
    if chatml:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in CHATML])
    else:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TASKS])
    tokenizer.save(out)
    print(f"{out}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    files = [arg for arg in sys.argv[1:] if arg != "--chatml"]
    if len(files) != 2:
        sys.exit(__doc__)
    main(*files, "--chatml" in sys.argv)
