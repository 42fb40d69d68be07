"""The kinds of source, a choice in the configuration of an encoder: one class of configuration each."""

from __future__ import annotations

from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding

SourceConfig = EmbeddingConfig
AnySource = TextEmbedding


def build_source(size: int, model_dim: int, config: SourceConfig) -> AnySource:
    """The source that `config` describes, giving vectors of width `model_dim`.

    size: of what is read: the vocabulary of text, the bins of a frame of speech, the channels of a picture.
    """
    return TextEmbedding(size, model_dim, config)
