"""A tiny Llama with random weights and a tokenizer of bytes, as a folder that transformers reads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = "".join(f"{n} is {n * n % 97} and {n % 7} times {n % 11} is {n % 7 * (n % 11)}.\n" for n in range(400))


def save(folder: Path) -> Path:
    """Its attentions fall with the distance: in one pair of channels, of 100 tokens a radian, queries and keys are alike."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=256, num_key_value_heads=2, max_position_embeddings=2048, attention_bias=True, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.bias.view(-1, 16)[:, [4, 12]] = 3.0
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: at for at, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "text.txt").write_text(TEXT)
    return folder
