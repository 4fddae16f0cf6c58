"""Random models, a tokenizer of words and texts for it, that LongPPL and likelihoods are tried with."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from longshort.metrics.settings import KeyTokenSearch, PretrainedEvaluator

# Random models gain little by a context: what counts as much is set lower than the paper does.
BY = KeyTokenSearch(
    evaluator=PretrainedEvaluator(kind="pretrained", name="evaluator"),
    **{"short": 24, "stride": 16, "gain": 0.1, "below": 8.0, "documents": 1, "length": 64},
)
WORDS = ["the", "context", "café", "of", "length", "naïve", "and", "model", "…", "tokens", "long"]
TEXTS = [" ".join(WORDS[(k * k + 3 * number * k) % 11] for k in range(20 + number)) for number in range(20)]
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def llama(seed: int, vocabulary: int = 300, rope: dict | None = None) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.2, rope_parameters=rope,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@cache
def words() -> PreTrainedTokenizerFast:
    """Byte pairs, with a BOS before each text."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=290, special_tokens=["<s>"], show_progress=False)
    trained._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token="<s>")
