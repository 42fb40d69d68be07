"""The kinds of source, a choice in the configuration of an encoder: one class of configuration each."""

from __future__ import annotations

from regard.inputs.convolution import Convolution, ConvolutionConfig
from regard.inputs.embeddings import EmbeddingConfig, TextEmbedding
from regard.inputs.patches import Patches, PatchesConfig
from regard.inputs.speech import SpeechSource, SpeechSourceConfig

SourceConfig = EmbeddingConfig | SpeechSourceConfig | ConvolutionConfig | PatchesConfig
AnySource = TextEmbedding | SpeechSource | Convolution | Patches


def build_source(size: int, model_dim: int, config: SourceConfig) -> AnySource:
    """The source that `config` describes, giving vectors of width `model_dim`.

    size: of what is read: the vocabulary of text, the bins of a frame of speech, the channels of a picture.
    """
    if isinstance(config, SpeechSourceConfig):
        return SpeechSource(size, model_dim, config)
    if isinstance(config, ConvolutionConfig):
        return Convolution(size, model_dim, config)
    if isinstance(config, PatchesConfig):
        return Patches(size, model_dim, config)
    return TextEmbedding(size, model_dim, config)
