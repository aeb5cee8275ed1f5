"""The miniature's tokenizer: a byte-level BPE learnt from its own questions; capitals and digits stay single."""

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .captions import caption
from .questions import questions
from .scenes import scene

PAD, BOS, UNKNOWN, EOS, IMAGE = range(5)
SPECIAL = ["<pad>", "<s>", "<unk>", "</s>", "<image>"]
VOCABULARY = 512  # rows of the embedding; the tokenizer fills nearly all
# a word with its leading space, a capital, a digit, a line break, a punctuation mark, a space
PIECES = r"\n| ?[A-Z]?[a-z]+|[A-Z]|[0-9]| ?[^\sA-Za-z0-9]|\s"


def learn(scenes: int = 1500) -> Tokenizer:
    """The same tokenizer every time: it is learnt from the first training scenes."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    core.train_from_iterator(_sentences(scenes), trainer)
    core.add_special_tokens([AddedToken("<image>", lstrip=True, special=True, normalized=False)])
    core.add_tokens([AddedToken("USER:", normalized=False), AddedToken("ASSISTANT:", lstrip=True, normalized=False)])
    return core


def _sentences(scenes: int):
    rng = random.Random(1)
    for seed in range(scenes):
        one = scene(seed)
        yield " " + caption(one, rng)
        for question in questions(one, rng=rng):
            yield "\n" + question.text
            yield " " + question.answer


def wrap(core: Tokenizer, close: bool = False) -> PreTrainedTokenizerFast:
    """As transformers wants it; `close` also ends a text with </s>, as a CLIP text tower pools there."""
    core = Tokenizer.from_str(core.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if close else "<s> $A", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="right" if close else "left",
        extra_special_tokens={} if close else {"image_token": "<image>"},
        model_max_length=77 if close else 2048,
    )
