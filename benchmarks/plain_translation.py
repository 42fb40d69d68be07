"""The other side of a training benchmark: the same translation model in torch's own parts, in a plain loop.

`nn.Transformer` between one shared embedding and its transpose, `F.cross_entropy` over all logits, AdamW: what anybody
would write. Weights, dropout places, loss and update are those of regard's model, so that both compute the same thing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.data.batches import Batch
from regard.inputs.embeddings import sinusoidal_positions
from regard.inputs.text import Tokenizer
from regard.layers.attention import MultiHeadAttention
from regard.models.encoder_decoder import EncoderDecoder
from regard.models.transformer_decoder import TransformerDecoderConfig
from regard.training.config import TrainingConfig
from regard.training.schedule import learning_rate


class PlainTransformer(nn.Module):
    """Post-norm encoder and decoder of `nn.Transformer` under one tied embedding.

    Dropout where regard's has it: on the embeddings and on every block's output. `nn.Transformer` also drops attention
    weights and inner activations; that is switched off, and lets torch take its fused attention.
    """

    def __init__(self, vocab: int, config: TransformerDecoderConfig) -> None:
        super().__init__()
        dim, dropout = config.model_dim, config.dropout
        assert config.norm.placement == "post" and config.embedding.dropout == dropout
        self.dim = dim
        self.embedding = nn.Embedding(vocab, dim, padding_idx=Tokenizer.PAD)
        heads, layers, width = config.attention.heads, config.num_layers, config.feed_forward.width
        self.transformer = nn.Transformer(dim, heads, layers, layers, width, dropout, batch_first=True)
        # As in regard's post-norm stacks, no norm follows the last block.
        self.transformer.encoder.norm = self.transformer.decoder.norm = None
        for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
            layer.dropout = nn.Identity()
            layer.self_attn.dropout = 0.0
            if hasattr(layer, "multihead_attn"):
                layer.multihead_attn.dropout = 0.0
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoidal_positions(0, 512, dim), persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids) * math.sqrt(self.dim) + self.positions[: ids.shape[1]])

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Ids [batch, source_len], [batch, target_len] -> logits [batch, target_len, vocab]."""
        past_end = source == Tokenizer.PAD
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1]) < 0  # True: not allowed
        hidden = self.transformer(
            self.embed(source),
            self.embed(target),
            tgt_mask=causal,
            src_key_padding_mask=past_end,
            memory_key_padding_mask=past_end,
            tgt_is_causal=True,
        )
        return F.linear(hidden, self.embedding.weight)

    @torch.no_grad()
    def take(self, model: EncoderDecoder) -> None:
        """Takes over the weights of regard's model."""
        self.embedding.weight.copy_(model.encoder.embedding.weight)
        sides = ((self.transformer.encoder, model.encoder), (self.transformer.decoder, model.decoder))
        for own, other in sides:
            for mine, theirs in zip(own.layers, other.layers, strict=True):
                _take_attention(mine.self_attn, theirs.self_attention)
                pairs = [(mine.linear1, theirs.feed_forward.inner), (mine.linear2, theirs.feed_forward.outer)]
                if hasattr(mine, "multihead_attn"):
                    _take_attention(mine.multihead_attn, theirs.cross_attention)
                    norms = (theirs.self_block.norm, theirs.cross_block.norm, theirs.feed_forward_block.norm)
                    pairs += zip((mine.norm1, mine.norm2, mine.norm3), norms, strict=True)
                else:
                    norms = (theirs.attention_block.norm, theirs.feed_forward_block.norm)
                    pairs += zip((mine.norm1, mine.norm2), norms, strict=True)
                for to, source in pairs:
                    to.load_state_dict(source.state_dict())


def _take_attention(to: nn.MultiheadAttention, source: MultiHeadAttention) -> None:
    projections = [source.query_key_value] if source.is_self else [source.query, source.key_value]
    assert to.in_proj_weight is not None
    to.in_proj_weight.copy_(torch.cat([linear.weight for linear in projections]))
    to.in_proj_bias.copy_(torch.cat([linear.bias for linear in projections]))
    to.out_proj.load_state_dict(source.output.state_dict())


class PlainLoop:
    """Forward, loss, backward, clip, update. dtype: bfloat16 runs the forward under autocast."""

    def __init__(self, model: nn.Module, config: TrainingConfig, dtype: torch.dtype) -> None:
        self.model, self.config, self.dtype = model, config, dtype
        optimizer = config.optimizer
        matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
        )
        self.step = 0

    def loss(self, batch: Batch, smoothing: float, dtype: torch.dtype) -> Tensor:
        """Mean over the batch's real target tokens, nats."""
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = self.model(batch.source.values, batch.target_inputs)
            return F.cross_entropy(
                logits.flatten(0, 1),
                batch.target_outputs.flatten(),
                ignore_index=Tokenizer.PAD,
                label_smoothing=smoothing,
            )

    def update(self, batch: Batch) -> None:
        self.step += 1
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(batch, self.config.label_smoothing, self.dtype).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config.max_steps, self.config.schedule)
        self.optimizer.step()

    @torch.no_grad()
    def validation_loss(self, batches: list[Batch]) -> float:
        """Nats a real target token, without smoothing or dropout, in float32."""
        self.model.eval()
        tokens = sum(batch.num_target_tokens for batch in batches)
        losses = (float(self.loss(batch, 0.0, torch.float32)) * batch.num_target_tokens for batch in batches)
        return sum(losses) / tokens
