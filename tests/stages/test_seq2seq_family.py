"""Small random BART, mBART, Marian, M2M100, Pegasus, BlenderBot, UMT5: tokens, logits, walks, texts, the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import engine
from engine.generation import growing_cache
from stages import families, masks
from stages.contracts import Checkpoint, Corpus, Examples, UserError
from stages.families import Batch
from stages.families.encoder_decoder import Decoding, ExampleRows, load
from stages.families.seq2seq import Seq2Seq
from stages.prepare import run as prepare
from stages.prepare.spec import PrepareOptions
from stages.prune.sequential import Collector
from stages.prune.walk import Walk, at_rest
from tests import tiny_pairs, tiny_seq2seq, tiny_whisper
from tests.running_stages import ran
from tests.tiny import change
from tests.tiny_encoder_decoders import symmetric

FAMILY = Seq2Seq()


@dataclass(frozen=True)
class Made:
    kind: str
    folder: Path
    corpus: Corpus
    data: Examples

    def rows(self, model: Any, split: str = "train") -> ExampleRows:
        return FAMILY.rows(model, self.folder, self.data, split, 1000, "option")

    def load(self) -> Any:
        return FAMILY.load(self.folder)


def make(kind: str, folder: Path) -> Made:
    path = tiny_seq2seq.save(kind, folder / "model")
    corpus = tiny_seq2seq.save_corpus(folder / "corpus", kind)
    out, _ = ran(folder, prepare, PrepareOptions(), "examples", {"model": Checkpoint(path, "model"), "data": corpus})
    return Made(kind, path, corpus, Examples(out.path, "examples"))


@pytest.fixture(scope="module", params=tiny_seq2seq.KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def test_the_head_gives_the_models_own_logits_and_the_states_are_the_blocks(made: Made) -> None:
    model = made.load()
    batch = made.rows(model).take(torch.arange(4))
    found: list[Tensor] = []
    for _, block in FAMILY.blocks(model):
        block.register_forward_hook(lambda m, args, out: found.append(out[0] if isinstance(out, tuple) else out))
    logits_BTV = model(**FAMILY.inputs(batch), use_cache=False).logits
    expected = list(found)
    found.clear()
    *states, last_BTD = FAMILY.states(model, batch)
    assert len(states) == 5
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(FAMILY.head(model)(last_BTD), logits_BTV)


@torch.no_grad()
def test_the_loss_is_that_of_transformers(made: Made) -> None:
    """Which shifts the labels itself, and gives the decoder what training with it gives."""
    model = made.load()
    rows = made.rows(model)
    batch = rows.take(torch.arange(6))
    model.config.decoder_start_token_id = rows.start
    # mBART's own shift moves the language from behind the text
    start_BT = batch["decoder_input_ids"]
    own = model(batch["input_ids"], attention_mask=batch["attention_mask"], decoder_input_ids=start_BT,
                labels=batch["labels"])  # fmt: skip
    logits_NV = FAMILY.head(model)(FAMILY.hidden(model, batch)).flatten(0, 1)
    loss = nn.functional.cross_entropy(logits_NV, batch["labels"].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, own.loss)
    use_BT = batch["use"].bool()
    assert torch.equal(use_BT, batch["labels"] >= 0)
    assert torch.equal(start_BT[:, 1:][use_BT[:, 1:]], batch["labels"][:, :-1][use_BT[:, 1:]])
    assert (start_BT[:, 0] == rows.start).all()


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_transformers(made: Made, beams: int) -> None:
    model = made.load()
    rows = made.rows(model, "test")
    batch = rows.take(torch.arange(4))
    prompt = made.data.facts()["prompt"]
    plain: dict[str, Any] = {"decoder_start_token_id": prompt[0], "num_beams": beams, "do_sample": False}
    language = prompt[1:]
    if language:
        plain["forced_bos_token_id"] = language[0]
    ids_BT = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                            max_new_tokens=8 + len(language), past_key_values=growing_cache(), **plain)  # fmt: skip
    found = FAMILY.generate(model, batch, Decoding(prompt, beams, 1.0, 8))
    assert any(found)
    for row, ids in zip(ids_BT.tolist(), found, strict=True):
        assert row[: len(prompt) + len(ids)] == [*prompt, *ids]


def test_texts_end_no_sooner_than_asked(made: Made) -> None:
    model = made.load()
    model.generation_config.forced_eos_token_id = model.config.eos_token_id
    batch = made.rows(model, "test").take(torch.arange(2))
    found = FAMILY.generate(model, batch, Decoding(made.data.facts()["prompt"], 2, 1.0, 6, min_new_tokens=6))
    assert [len(ids) for ids in found] == [6, 6]


@pytest.mark.parametrize("made", tiny_seq2seq.CLASSES, indirect=True)
def test_hessians_of_the_walk_are_those_of_plain_forwards_without_padding(made: Made) -> None:
    model = made.load()
    rows = made.rows(model)
    samples = rows.take(torch.arange(4))
    alone = [FAMILY.trim(rows.take(torch.tensor([i]))) for i in range(4)]
    walk = Walk(model, FAMILY, samples, "fp32", 2)
    draw = torch.Generator().manual_seed(1)
    with at_rest(model):
        for block, module in walk.blocks:
            linears = {f"{block}.{name}": m for name, m in module.named_modules() if isinstance(m, nn.Linear)}
            expected = plain_hessians(model, linears, alone)
            groups = Collector(linears, FAMILY, False).collect(walk)
            assert sum(len(group.names) for group in groups) == len(linears)
            for group in groups:
                for name in group.names:
                    scale = float(expected[name].abs().max())
                    torch.testing.assert_close(symmetric(group.H_II), expected[name], rtol=1e-4, atol=1e-5 * scale)
            zeros = {name: torch.rand(m.weight.shape, generator=draw) < 0.5 for name, m in linears.items()}
            masks.apply_(model, zeros)
            walk.advance()


def plain_hessians(model: Any, linears: dict[str, nn.Linear], rows: list[Batch]) -> dict[str, Tensor]:
    seen: dict[str, list[Tensor]] = {name: [] for name in linears}
    handles = [
        linear.register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args[0].flatten(0, 1)))
        for name, linear in linears.items()
    ]
    with torch.no_grad():
        for row in rows:
            model(**FAMILY.inputs(row), use_cache=False)
    for handle in handles:
        handle.remove()
    joined = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: 2 / len(X_TI) * X_TI.T @ X_TI for name, X_TI in joined.items()}


@torch.no_grad()
@pytest.mark.parametrize("made", tiny_seq2seq.CLASSES, indirect=True)
def test_the_engine_computes_and_writes_the_same_after_it_was_saved(made: Made, tmp_path: Path) -> None:
    model = made.load()
    prunable = FAMILY.prunable(model)
    draw = torch.Generator().manual_seed(2)
    masks.apply_(model, {name: torch.rand(m.weight.shape, generator=draw) < 0.6 for name, m in prunable.items()})
    batch = made.rows(model, "test").take(torch.arange(4))
    one = {name: tensor[:1] for name, tensor in batch.items()}

    def computed(model: Any) -> tuple[Tensor, list[list[list[int]]]]:
        prompt = made.data.facts()["prompt"]
        texts = [
            FAMILY.generate(model, given, Decoding(prompt, beams, 1.0, 8)) for given in (batch, one) for beams in (1, 3)
        ]
        return model(**FAMILY.inputs(batch), use_cache=False).logits, texts

    logits_BTV, texts = computed(model)
    engine.save(engine.convert(model, dtype="fp32"), tmp_path / "out")
    loaded = engine.load(tmp_path / "out")
    found_BTV, found_texts = computed(loaded)
    torch.testing.assert_close(found_BTV, logits_BTV, rtol=1e-4, atol=1e-4)
    assert found_texts == texts


def test_sources_and_targets_are_cut_at_the_models_positions(made: Made, tmp_path: Path) -> None:
    long = tiny_seq2seq.save_corpus(tmp_path / "corpus", made.kind, prompt="the red river " * 12)
    prepared, log = ran(
        tmp_path, prepare, PrepareOptions(), "examples", {"model": Checkpoint(made.folder, "model"), "data": long}
    )
    data, model = Examples(prepared.path, "examples"), made.load()
    batch = FAMILY.rows(model, made.folder, data, "train", 1000, "option").take(torch.arange(3))
    limited = made.kind != "umt5"
    assert (batch["input_ids"].shape[1] == tiny_seq2seq.CONTEXT) == limited
    assert bool(log.notes) == limited
    lengths = [len(ids) for ids in load(data, "train")["input_ids"]]
    last_B = batch["attention_mask"].sum(1) - 1
    assert [int(row[at]) for row, at in zip(batch["input_ids"], last_B, strict=True)] == [
        ids[-1] for ids in load(data, "train")[:3]["input_ids"]
    ]
    assert max(lengths) > tiny_seq2seq.CONTEXT
    model(**FAMILY.inputs(batch), use_cache=False)


# ---- what does not fit is refused ----


def refused(kind: str, folder: Path, source: str, target: str, prompt: str = "") -> UserError:
    path = tiny_seq2seq.save(kind, folder / "model")
    corpus = tiny_seq2seq.save_corpus(folder / "corpus", kind, prompt)
    facts = corpus.facts() | {"languages": {"source": source, "target": target}}
    tiny_whisper.write_facts(corpus.path, facts)
    corpus = Corpus(corpus.path, corpus.fingerprint)
    with pytest.raises(UserError) as caught:
        ran(folder, prepare, PrepareOptions(), "examples", {"model": Checkpoint(path, "model"), "data": corpus})
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "source", "target", "option", "says"),
    [
        ("mbart50", "", "de_DE", "data.languages.source", "marks languages; expected one of its"),
        ("mbart", "en_XX", "", "data.languages.target", "marks languages"),
        ("nllb", "eng_Latn", "German", "data.languages.target", "has no language 'German'"),
        ("m2m_100", "en_XX", "de", "data.languages.source", "has no language 'en_XX'"),
        ("marian_multilingual", "", "", "data.languages.target", "marks languages"),
        ("marian_multilingual", "eng", "deu", "data.languages.source", "marks the target language alone"),
        ("marian", "", "de", "data.languages.target", "marks no languages"),
        ("bart", "en", "", "data.languages.source", "marks no languages"),
    ],
)
def test_languages_that_the_tokenizer_needs_or_does_not_know_are_refused(
    kind: str, source: str, target: str, option: str, says: str, tmp_path: Path
) -> None:
    error = refused(kind, tmp_path, source, target)
    assert error.option == option
    assert says in error.message


@pytest.mark.parametrize("kind", ["mbart50", "marian", "marian_multilingual"])
def test_an_instruction_for_t5_is_refused_by_models_that_would_translate_it(kind: str, tmp_path: Path) -> None:
    languages = tiny_seq2seq.LANGUAGES.get(kind, ("", ""))
    error = refused(kind, tmp_path, *languages, prompt="translate English to German: ")
    assert error.option == "data.prompt"


def test_t5_takes_no_languages(tmp_path: Path) -> None:
    corpus = tiny_seq2seq.save_corpus(tmp_path / "corpus", "mbart50")
    with pytest.raises(UserError, match=r"data.languages.source: .* marks no languages"):
        families.get("t5").prompt(corpus, tiny_pairs.save_t5(tmp_path / "t5"))  # type: ignore[attr-defined]


def test_a_decoder_that_nothing_says_how_to_begin_is_refused(tmp_path: Path) -> None:
    path = tiny_seq2seq.save("bart", tmp_path / "model")
    for file, key in (("config.json", "decoder_start_token_id"), ("generation_config.json", "decoder_start_token_id")):
        change(path / file, {key: None})
    stated = tiny_seq2seq.save_corpus(tmp_path / "corpus", "bart")
    assert FAMILY.prompt(stated, path) == [2]  # transformers' default for a BART
    change(path / "generation_config.json", {"decoder_start_token_id": 7})
    assert FAMILY.prompt(stated, path) == [7]


@pytest.mark.parametrize("model_type", sorted(families.NOT_SUPPORTED))
def test_other_encoder_decoders_are_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(UserError, match=f"cannot be used .{model_type} ") as caught:
        families.name_of(model_type, is_encoder_decoder=True)
    assert caught.value.option == "model.path"
