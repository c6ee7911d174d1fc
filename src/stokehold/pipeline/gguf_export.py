"""A model folder as one GGUF file, as llama.cpp reads it: weights under their names there, tokenizer, chat template.

Only families whose conversion is compared with llama.cpp's own answers are written; anything else is refused by name,
because a wrong permutation or offset still loads and answers nonsense. The file format and the names of tensors are
those of the `gguf` package, llama.cpp's writer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, LlamaFileType
from numpy.typing import NDArray
from safetensors import safe_open

from stokehold.core.errors import InputError, IntegrityError
from stokehold.pipeline.gguf_tokenizer import Vocabulary, read_vocabulary
from stokehold.store.models.weights import TIED_HEADS, tensor_shapes, weight_files

TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's weights differ from what llama.cpp computes with.

    `permuted`: it rotates neighbouring values of queries and keys, the folder's layout rotates halves. `norm_offset` is
    what its norms expect to be added already. `activation` is the only one it computes for the family.
    """

    architecture: gguf.MODEL_ARCH
    permuted: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, permuted=True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3),
    "gemma": Family(gguf.MODEL_ARCH.GEMMA, norm_offset=1.0, activation="gelu_pytorch_tanh"),
    "gemma2": Family(gguf.MODEL_ARCH.GEMMA2, norm_offset=1.0, activation="gelu_pytorch_tanh"),
}


@dataclass(frozen=True, slots=True)
class Written:
    """`pre` names llama.cpp's cutting of text; `exact` is whether it is this tokenizer's own."""

    path: Path
    tensors: int
    pre: str
    exact: bool


def write_gguf(folder: Path, target: Path, kind: str, name: str, licence: str = "") -> Written:
    """Converts the model in `folder`; `kind` is one of `TYPES`. Vectors stay float32 whatever the kind.

    Raises InputError for a family, a setting or a tokenizer that is not known to convert right, IntegrityError for
    weights that float16 cannot hold.
    """
    config = read_config(folder)
    family = FAMILIES[config["model_type"]]
    check(config, family)
    vocabulary = read_vocabulary(folder, int(config["vocab_size"]))
    plan = _plan(folder, config, family, kind)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[family.architecture])
    try:
        writer.add_name(name)
        if licence:
            writer.add_license(licence)
        writer.add_file_type(TYPES[kind][1])
        _add_shape(writer, config)
        _add_vocabulary(writer, vocabulary)
        for planned in plan:
            shape, dtype, size = planned.stored()
            writer.add_tensor_info(planned.name, shape, dtype, size, planned.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for planned, values in zip(plan, _values(plan, config, family), strict=True):
            writer.write_tensor_data(_stored(values, planned))
    finally:
        writer.close()
    return Written(target, len(plan), vocabulary.pre, vocabulary.exact)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor: where it is read, its name in the GGUF, and the type it is stored in."""

    file: Path
    source: str
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    def stored(self) -> tuple[tuple[int, ...], Any, int]:
        """Shape and type as stored, and bytes."""
        if self.kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            dtype = np.dtype(np.float32 if self.kind == GGMLQuantizationType.F32 else np.float16)
            return self.shape, dtype, int(np.prod(self.shape)) * dtype.itemsize
        packed = gguf.quants.quant_shape_to_byte_shape(self.shape, self.kind)
        return packed, np.dtype(np.uint8), int(np.prod(packed))


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's settings with the library's defaults filled in; InputError for a family that is not written here."""
    from transformers import AutoConfig  # seconds, and refusals above need none of it

    tree: dict[str, Any] = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).to_dict()
    if tree["model_type"] not in FAMILIES:
        raise InputError(f"GGUF is not written for {tree['model_type']}", str(folder), f"known: {', '.join(FAMILIES)}")
    return tree


def check(config: Mapping[str, Any], family: Family) -> None:
    """Raises InputError for a setting under which llama.cpp would compute something else."""
    rope = config.get("rope_parameters") or {}
    kinds = ("default", "llama3") if config["model_type"] == "llama" else ("default",)
    act = config.get("hidden_activation") or config["hidden_act"]
    windowed = config.get("sliding_window") is not None and config["sliding_window"] < config["max_position_embeddings"]
    head = head_size(config)
    faults = {
        "quantization_config": bool(config.get("quantization_config")),
        f"rope type {rope.get('rope_type')}": rope.get("rope_type", "default") not in kinds,
        "rotation of a part of each head": rope.get("partial_rotary_factor", 1.0) != 1.0,
        f"activation {act}": act != family.activation,
        "sliding window": windowed and (config["model_type"] == "mistral" or config.get("use_sliding_window", False)),
        "mlp_bias": bool(config.get("mlp_bias")),
        "query_pre_attn_scalar": config.get("query_pre_attn_scalar", head) != head,
        "layer_types": config["model_type"] == "gemma2" and config["layer_types"] != _alternating(config),
    }
    for setting, present in faults.items():
        if present:
            model = config["model_type"]
            raise InputError(f"GGUF is not written for {model} with {setting}", model, "export without --gguf")


def head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _alternating(config: Mapping[str, Any]) -> list[str]:
    """What llama.cpp assumes of Gemma 2: every other layer sees a window, the first one too."""
    pair = ("sliding_attention", "full_attention")
    return [pair[layer % 2] for layer in range(config["num_hidden_layers"])]


def _plan(folder: Path, config: Mapping[str, Any], family: Family, kind: str) -> list[_Tensor]:
    names = gguf.get_tensor_name_map(family.architecture, config["num_hidden_layers"])
    shapes, found = tensor_shapes(folder), []
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as stored:
            inside = sorted(stored.keys())
        for source in inside:
            if config["tie_word_embeddings"] and TIED_HEADS.fullmatch(source):
                continue
            name = names.get_name(source, try_suffixes=SUFFIXES)
            if name is None:
                raise InputError(f"GGUF has no name for the tensor {source}", str(file), "export without --gguf")
            found.append(_Tensor(file, source, name, shapes[source], _kind(shapes[source], kind)))
    if config["model_type"] == "llama" and (config.get("rope_parameters") or {}).get("rope_type") == "llama3":
        width = head_size(config) // 2
        found.append(_Tensor(folder, "", "rope_freqs.weight", (width,), GGMLQuantizationType.F32))
    return found


def _kind(shape: tuple[int, ...], kind: str) -> GGMLQuantizationType:
    """Vectors in float32; rows that do not divide into blocks of 32 cannot be q8_0 and are float16."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = TYPES[kind][0]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return wanted if shape[-1] % block == 0 else GGMLQuantizationType.F16


def _values(plan: list[_Tensor], config: Mapping[str, Any], family: Family) -> Iterator[NDArray[np.float32]]:
    """What each tensor holds, as llama.cpp computes with it; one is in memory at a time."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for planned in plan:
        if not planned.source:
            yield llama3_factors(config)
            continue
        with safe_open(planned.file, framework="pt") as stored:
            values: NDArray[np.float32] = stored.get_tensor(planned.source).to(torch.float32).numpy()
        part = planned.name.split(".")[-2]
        if family.permuted and part in heads:
            values = interleaved(values, heads[part])
        if part.endswith("norm") and family.norm_offset:
            values = values + np.float32(family.norm_offset)
        yield np.ascontiguousarray(values)


def interleaved(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows [heads · (2 · half), …] of each head reordered: value i of the first half beside value i of the second."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def llama3_factors(config: Mapping[str, Any]) -> NDArray[np.float32]:
    """By what Llama 3's rope divides each frequency [head / 2]: 1 for the high ones, `factor` for the low ones."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = AutoConfig.for_model(**config)
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](settings, torch.device("cpu"))
    head = head_size(config)
    exponents = torch.arange(0, head, 2, dtype=torch.float64) / head
    plain = float(config["rope_parameters"]["rope_theta"]) ** -exponents
    factors: NDArray[np.float32] = (plain / slowed.double()).float().numpy()
    return factors


def _stored(values: NDArray[np.float32], planned: _Tensor) -> NDArray[Any]:
    if planned.kind == GGMLQuantizationType.F16 and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise IntegrityError("weights too large for float16", planned.source, "take --type bf16 or f32")
    stored: NDArray[Any] = gguf.quants.quantize(values, planned.kind)
    return stored


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    rope, head = config.get("rope_parameters") or {}, head_size(config)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
        writer.add_sliding_window(config["sliding_window"])


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    writer.add_token_merges(list(vocabulary.merges))
    add = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for role, number in vocabulary.special.items():
        add[role](number)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)
