"""Captioning a batch of pictures, against the same models written plainly with a Python loop over words.

The plain ones are torch modules with the same weights: Show, Attend and Tell by its equations, the vision Transformer
by torch's own layers. Two ways to loop: "prefix", as most code does it, feeds all words so far at every step (the
Transformer has no cache) for as many steps as a caption may have; "word by word", which only the recurrent one can,
feeds one. Both sides encode the pictures by regard's encoder, which is in the times. Words are compared first: no speed
is told where they differ. Greedy search, random weights, float32.

python benchmarks/captioning.py
python benchmarks/captioning.py --rounds 3 --batch 32 --length 30
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.decoding.options import DecodingOptions
from regard.decoding.search import decode
from regard.inputs.convolution import ConvolutionConfig
from regard.inputs.patches import PatchesConfig
from regard.inputs.text import Tokenizer
from regard.layers.attention import AttentionConfig
from regard.layers.feed_forward import FeedForwardConfig
from regard.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from regard.models.no_encoder import NoEncoderConfig
from regard.models.show_attend_tell import ShowAttendTellConfig, ShowAttendTellDecoder
from regard.models.transformer_decoder import TransformerDecoder, TransformerDecoderConfig
from regard.models.transformer_encoder import TransformerEncoderConfig

BOS, EOS = Tokenizer.BOS, Tokenizer.EOS
WIDTH, HEADS, LAYERS, VOCABULARY = 192, 4, 2, 700


class PlainTell(nn.Module):
    """Xu et al. 2015 by its equations, one word at a time, with torch's LSTM cell."""

    def __init__(self, decoder: ShowAttendTellDecoder) -> None:
        super().__init__()
        self.of = decoder

    def forward(self, vectors: Tensor, steps: int) -> Tensor:
        of = self.of
        assert of.initial is not None and of.score_weight is not None
        hidden, cell = torch.tanh(of.initial(vectors.mean(1))).chunk(2, -1)
        word = torch.full((len(vectors),), BOS)
        ended = torch.zeros(len(vectors), dtype=torch.bool)
        found = []
        for _ in range(steps):
            embedded = of.embedding.tokens(word)
            keys = of.key(vectors)
            scores = torch.tanh(of.query(hidden)[:, None] + keys) @ of.score_weight[0]
            context = (scores.softmax(-1)[..., None] * vectors).sum(1) * torch.sigmoid(of.beta(hidden))
            hidden, cell = of.cell(torch.cat([embedded, context], -1), (hidden, cell))
            read = torch.tanh(embedded + of.of_state(hidden) + of.of_context(context))
            word = F.linear(read, of.head.weight, of.head.bias).argmax(-1).masked_fill(ended, EOS)
            ended |= word == EOS
            found.append(word)
        return torch.stack(found, 1)


class PlainTransformer(nn.Module):
    """torch's decoder layers with regard's weights; all words so far go through them at every step."""

    def __init__(self, decoder: TransformerDecoder) -> None:
        super().__init__()
        self.of = decoder
        self.layers = nn.ModuleList()
        for layer in decoder.layers:
            inner = layer.feed_forward.inner
            plain = nn.TransformerDecoderLayer(
                WIDTH, HEADS, inner.out_features, 0.0, "relu", batch_first=True, norm_first=True
            )
            own, cross = layer.self_attention, layer.cross_attention
            with torch.no_grad():
                for ours, theirs in (
                    (own.query_key_value.weight, plain.self_attn.in_proj_weight),
                    (own.query_key_value.bias, plain.self_attn.in_proj_bias),
                    (torch.cat([cross.query.weight, cross.key_value.weight]), plain.multihead_attn.in_proj_weight),
                    (torch.cat([cross.query.bias, cross.key_value.bias]), plain.multihead_attn.in_proj_bias),
                ):
                    theirs.copy_(ours)
                for ours, theirs in (
                    (own.output, plain.self_attn.out_proj),
                    (cross.output, plain.multihead_attn.out_proj),
                    (inner, plain.linear1),
                    (layer.feed_forward.outer, plain.linear2),
                    (layer.self_block.norm, plain.norm1),
                    (layer.cross_block.norm, plain.norm2),
                    (layer.feed_forward_block.norm, plain.norm3),
                ):
                    theirs.load_state_dict(ours.state_dict())
            self.layers.append(plain)

    def forward(self, vectors: Tensor, steps: int) -> Tensor:
        words = torch.full((len(vectors), 1), BOS)
        ended = torch.zeros(len(vectors), dtype=torch.bool)
        for _ in range(steps):
            hidden = self.of.embedding(words)
            mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
            for layer in self.layers:
                hidden = layer(hidden, vectors, tgt_mask=mask, tgt_is_causal=True)
            logits = self.of.head(self.of.norm(hidden[:, -1]))
            word = logits.argmax(-1).masked_fill(ended, EOS)
            ended |= word == EOS
            words = torch.cat([words, word[:, None]], 1)
        return words[:, 1:]


def models() -> dict[str, tuple[EncoderDecoder, Callable[[Tensor, int], Tensor], str]]:
    """Name -> regard's model, the plain decoder of the same weights, and how that one loops."""
    attention, feed_forward = AttentionConfig(heads=HEADS), FeedForwardConfig(width=2 * WIDTH)
    convolution = ConvolutionConfig("convolution", (48, 96, 192), stem_kernel=5, stem_stride=4)
    told = EncoderDecoder(
        3,
        VOCABULARY,
        EncoderDecoderConfig(
            NoEncoderConfig("none", WIDTH, convolution),
            ShowAttendTellConfig("show-attend-tell", WIDTH, 256, WIDTH),
        ),
    )
    seen = EncoderDecoder(
        3,
        VOCABULARY,
        EncoderDecoderConfig(
            TransformerEncoderConfig(WIDTH, LAYERS, attention, feed_forward, embedding=PatchesConfig("patches", 16)),
            TransformerDecoderConfig(WIDTH, LAYERS, attention, feed_forward),
        ),
    )
    assert isinstance(told.decoder, ShowAttendTellDecoder) and isinstance(seen.decoder, TransformerDecoder)
    return {
        "Show, Attend and Tell": (told, PlainTell(told.decoder).eval(), "word by word"),
        "vision Transformer": (seen, PlainTransformer(seen.decoder).eval(), "prefix"),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=30, help="most words of a caption")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (arguments.batch, arguments.side, arguments.side, 3), dtype=torch.uint8)
    lengths = torch.full((arguments.batch,), arguments.side)
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{arguments.batch} pictures of {arguments.side} x {arguments.side}, up to {arguments.length} words, greedy")
    options = DecodingOptions(max_length=arguments.length)
    for name, (model, plain, how) in models().items():
        model.eval()

        def ours(model: EncoderDecoder = model) -> list[list[int]]:
            memories, _ = model.encode(pixels, lengths)
            found = decode(model.decoder, memories, options, bos=BOS, eos=EOS)
            return [best.tokens for best, *_ in found]

        def theirs(model: EncoderDecoder = model, plain: Callable[[Tensor, int], Tensor] = plain) -> list[list[int]]:
            memories, _ = model.encode(pixels, lengths)
            rows = plain(memories["source"].vectors, arguments.length).tolist()
            return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]

        same = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
        if same < arguments.batch:
            print(f"{name}: only {same} of {arguments.batch} captions are the same, so no speed is told")
            continue
        times = [(seconds(ours), seconds(theirs)) for _ in range(arguments.rounds)]
        ratios = sorted(slow / fast for fast, slow in times)
        fast, slow = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name}: {fast:.3f} s, plainly ({how}) {slow:.3f} s: {statistics.median(ratios):.2f} times as fast"
            f" [{ratios[0]:.2f}, {ratios[-1]:.2f}]; {arguments.batch / fast:.0f} pictures a second"
        )


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
