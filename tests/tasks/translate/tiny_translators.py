"""Small translation models: one of random weights, one taught in a few seconds to translate and turn round."""

from __future__ import annotations

import random

import torch

from regard.decoding.options import DecodingOptions
from regard.inputs.text import Tokenizer, TokenizerConfig
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig
from regard.tasks.translate.translator import Translator, TranslatorConfig
from regard.training.objective import cross_entropy

WORDS = {
    "one": "eins", "two": "zwei", "five": "fünf", "six": "sechs", "dog": "Hund", "cat": "Katze", "sun": "Sonne",
}  # fmt: skip
LONGEST = 5  # source tokens, the end token counted: four words
SENTENCES = ["A dog runs.", "Zwei Hunde laufen schön!", "Ein 😀 lacht, naïve café."]


def reversed_translation(source: str) -> str:
    """What the trained model has learnt."""
    return " ".join(WORDS[word] for word in reversed(source.split()))


def phrases(count: int, seed: int, longest: int = LONGEST - 1) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(list(WORDS), k=chance.randint(1, longest))) for _ in range(count)]


def make(source: Tokenizer, target: Tokenizer, config: EncoderDecoderConfig, longest: int, seed: int) -> Translator:
    torch.manual_seed(seed)
    model = EncoderDecoder(len(source), len(target), config)
    about = {"records": 13, "train": "abc"}
    training = {"data": about, "parameters": model.num_parameters()}
    return Translator(
        model, source, target, TranslatorConfig("en", "de", config, DecodingOptions(max_length=23), longest, training)
    )


def transformer(model_dim: int, num_layers: int, heads: int, width: int) -> EncoderDecoderConfig:
    attention, feed_forward = AttentionConfig(heads=heads), FeedForwardConfig(width=width)
    return EncoderDecoderConfig(
        TransformerEncoderConfig(model_dim, num_layers, attention, feed_forward, dropout=0.0),
        TransformerDecoderConfig(model_dim, num_layers, attention, feed_forward, dropout=0.0),
    )


def random_translator() -> Translator:
    """Random weights, large enough that its outputs depend on its input; two layers of three heads, joint subwords."""
    tokenizer = Tokenizer.train(SENTENCES, TokenizerConfig("bpe", 270, min_frequency=1))
    translator = make(tokenizer, tokenizer, transformer(30, 2, 3, 17), 31, seed=3)
    with torch.no_grad():
        for name, parameter in translator.model.named_parameters():
            if parameter.dim() > 1 and "tokens" not in name:
                parameter.mul_(2.5)
    return translator


def taught_translator() -> Translator:
    """Translates English words and turns their order round; trained on phrases of up to four words until it is sure."""
    sides = list(WORDS), list(WORDS.values())
    source, target = (
        Tokenizer.train(side * 3, TokenizerConfig("bpe", size, min_frequency=1))
        for side, size in zip(sides, (281, 291), strict=True)
    )
    return _taught(make(source, target, transformer(32, 1, 2, 48), LONGEST, seed=1))


def _taught(translator: Translator) -> Translator:
    model = translator.model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.98), weight_decay=0.0)
    num_steps = 250
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 8e-3, num_steps)
    for step in range(num_steps):
        sources = phrases(32, seed=1000 + step)
        ids = translator.source_tokenizer.encode_ids(sources)
        outputs = translator.target_tokenizer.encode_ids([reversed_translation(text) for text in sources])
        source, lengths = padded([[*one, Tokenizer.EOS] for one in ids])
        target, _ = padded([[*one, Tokenizer.EOS] for one in outputs])
        inputs = torch.cat([torch.full((len(target), 1), Tokenizer.BOS), target[:, :-1]], dim=1)
        real = target != Tokenizer.PAD
        hidden = model(source, lengths, inputs)
        loss = cross_entropy(hidden[real], model.decoder.head, target[real]).objective / real.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()
    return translator


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids behind each other's padding, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    result = torch.full((len(rows), int(lengths.max())), Tokenizer.PAD)
    for number, row in enumerate(rows):
        result[number, : len(row)] = torch.tensor(row)
    return result, lengths
