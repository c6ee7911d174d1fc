"""The engine answers for every family as transformers' own greedy decoding does, alone and in a batch, or refuses."""

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from model_families import CAUSAL, LONG, SHAPE, WINDOW, family_model
from stokehold.core.errors import InputError
from stokehold.core.records import Completion, Sample
from stokehold.data.tokenizer import ChatTokenizer
from stokehold.inference.borrow import borrowed
from stokehold.inference.decoding import Answer, Greedy, decode
from stokehold.inference.drafting import read_drafts
from stokehold.inference.engine import Engine

NEW_TOKENS = 20
CONTEXT = 160
MIN_GAP = 2e-5
"""Logits nearer than this count as a tie; rounding of another batch shape is ten times smaller."""


@pytest.fixture(scope="module", params=CAUSAL)
def engine(request: pytest.FixtureRequest, tokenizer: ChatTokenizer) -> Engine:
    context = "n_positions" if request.param == "gpt2" else "max_position_embeddings"
    sizes = {"vocab_size": tokenizer.size, context: CONTEXT}
    special = {"pad_token_id": tokenizer.pad_id, "eos_token_id": min(tokenizer.stop_ids)}
    # A head tied to the embedding makes random weights repeat their last token for ever.
    model = family_model(request.param, tie_word_embeddings=False, **sizes, **special)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(2 if weight.dim() > 1 and "embed" not in name and "wte" not in name else 1)
    return Engine(model, tokenizer)


@pytest.fixture(scope="module")
def asked(samples: list[Sample], tokenizer: ChatTokenizer) -> list[Sample]:
    """Prompts of many lengths, each longer than the window."""
    chosen = sorted(samples, key=lambda sample: len(tokenizer.prompt_ids(sample.question)))[::3]
    assert len(tokenizer.prompt_ids(chosen[0].question)) > WINDOW
    return chosen


@pytest.fixture(scope="module")
def completions(engine: Engine, asked: list[Sample]) -> list[Completion]:
    return engine.complete(asked, NEW_TOKENS, batch_size=len(asked))


def test_answers_are_those_of_generate(engine: Engine, completions: list[Completion], asked: list[Sample]) -> None:
    model, tokenizer = engine.model, engine.tokenizer
    variety = sum(len(set(done.token_ids)) for done in completions) / len(completions)
    assert variety > NEW_TOKENS / 2, "answers that repeat themselves compare little"
    assert model.config._attn_implementation == "eager"
    for sample, done in zip(asked, completions, strict=True):
        prompt = torch.tensor([tokenizer.prompt_ids(sample.question)])
        ids = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=sorted(tokenizer.stop_ids),
        )
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, prompt.shape[1] - 1 : -1]
        gaps = logits.topk(2).values.diff().abs()
        assert float(gaps.min()) > MIN_GAP, "a tie: choose another seed"
        assert list(done.token_ids) == ids[0, prompt.shape[1] :].tolist()
        expected = logits.float().log_softmax(-1).max(-1).values.tolist()
        assert list(done.token_logprobs) == pytest.approx(expected, abs=1e-4)


def test_one_by_one_and_streamed_it_says_the_same(
    engine: Engine, completions: list[Completion], asked: list[Sample]
) -> None:
    alone = engine.complete(asked, NEW_TOKENS, batch_size=1)
    for one, other in zip(alone, completions, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert one.gold_nll == pytest.approx(other.gold_nll, rel=1e-4)
    assert "".join(engine.stream(asked[-1].question, NEW_TOKENS)) == completions[-1].text


def test_rows_that_leave_a_batch_change_no_other(
    engine: Engine, completions: list[Completion], asked: list[Sample]
) -> None:
    """Finished rows are taken out of every layer's cache, the windows' too."""
    prompts = [engine.tokenizer.prompt_ids(sample.question) for sample in asked]
    answers = [Answer(row, budget=1 + 2 * row) for row in range(len(prompts))]
    stop_ids, nothing = engine.tokenizer.stop_ids, [[] for _ in prompts]
    with borrowed(engine.model):
        read_drafts(engine.model, answers, prompts, nothing, stop_ids, engine.tokenizer.pad_id)
        assert [answer.ended for answer in answers] == [True, *[False] * (len(answers) - 1)]
        decode(engine.model, answers[1:], stop_ids, Greedy())
    for answer, whole in zip(answers, completions, strict=True):
        assert answer.token_ids == list(whole.token_ids)[: answer.budget]


def test_likelihoods_are_those_of_the_model_itself(
    engine: Engine, completions: list[Completion], asked: list[Sample]
) -> None:
    for sample, done in zip(asked, completions, strict=True):
        head, tail = engine.tokenizer.answer_ids(sample.messages)
        labels = torch.tensor([[-100] * len(head) + tail])
        with torch.no_grad():
            loss = engine.model(input_ids=torch.tensor([head + tail]), labels=labels, use_cache=False).loss
        assert done.gold_nll == pytest.approx(float(loss), rel=1e-5)


def test_the_context_ends_where_the_rotary_embedding_would_change(tokenizer: ChatTokenizer) -> None:
    assert Engine(family_model("phi3"), tokenizer).context_tokens == 128
    assert Engine(family_model("phi3", **LONG), tokenizer).context_tokens == 32


UNCACHED = {
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 1}, "does not take past_key_values"),
    "lfm2": ({**SHAPE, "layer_types": ["conv", "full_attention"]}, "cache has layers of kind"),
    "recurrent_gemma": ({**SHAPE, "lru_width": 32}, "cache has layers of kind|does not take"),
}


@pytest.mark.parametrize("model_type", sorted(UNCACHED))
def test_a_model_without_a_cache_of_keys_and_values_is_refused(model_type: str, tokenizer: ChatTokenizer) -> None:
    shape, reason = UNCACHED[model_type]
    model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](vocab_size=96, **shape))
    with pytest.raises(InputError, match=reason):
        Engine(model, tokenizer)
