"""Models that say what they are told to: one idle layer, and a head that answers every token with its successor."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from stokehold.data.tokenizer import ChatTokenizer

HIDDEN = 320
"""At least the tokens of the tokenizers that tests make: each has a direction of its own."""


def reciter(tokenizer: ChatTokenizer, successors: Mapping[int, int], context: int = 512) -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=tokenizer.size,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        eos_token_id=min(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    with torch.random.fork_rng():
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for part in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            part.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(tokenizer.size, HIDDEN))
        model.lm_head.weight.zero_()
        for token, following in successors.items():
            model.lm_head.weight[following, token] = 1.0
    return model.eval()
