"""Stage `evaluate`: measures the quality of one model, and its recovery against the dense model.

Causal models have perplexity and lm-eval tasks; encoder-decoders have scores of the texts they generate. The result of
each window or item is kept for paired comparisons.

Floating-point models are computed in fp32, quantized ones in int8; by torch, or by the sparse engine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages import checkpoints, counts, devices, engine_models, families, tokens
from stages.contracts import Artifact, Checkpoint, Corpus, DataSet, Examples, Log, Metrics, UserError
from stages.data.formats import rows_of
from stages.evaluate import generation, lm_eval_tasks, normalizers, perplexity, scoring, windows
from stages.evaluate.early import check_options
from stages.evaluate.metrics import METRICS, Judged, Measurement
from stages.evaluate.spec import EvaluateOptions, Generation, Perplexity
from stages.families import UNLIMITED, Family, encoder_decoder
from stages.families.encoder_decoder import EncoderDecoder
from stages.quantize import schemes

Measured = dict[str, dict[str, Any]]
"""`{name: {"value", "stderr" | None, "protocol"}}`, what metrics.json holds."""
FULL_WINDOW = "_full_window"
"""Suffix of metrics and files of clips that were also evaluated in full windows."""


def check(config: EvaluateOptions, model: Checkpoint, data: DataSet, test_data: Corpus | None = None) -> None:
    """Raises UserError for what cannot be measured: metrics of another family, lengths beyond the model's context, more
    windows than the split has, tasks whose documents are not available."""
    family = families.of(model.path)
    check_options(config, family.name, data.format)
    shell = counts.shell(model)
    if isinstance(data, Examples) and config.generation:
        _check_generation(config.generation, data, family.context(shell))
        assert isinstance(family, EncoderDecoder)
        family.rows(shell, model.path, data, config.generation.split, UNLIMITED, "evaluate.generation.split")
        generation.chosen_items(config.generation, encoder_decoder.load(data, config.generation.split))
    if isinstance(data, Corpus):
        tokenizer = family.tokenizer(model.path)
        if config.perplexity:
            _windows(config.perplexity, family.context(shell), tokenizer, data)
        for task in config.tasks:
            lm_eval_tasks.check(task, data)
        judged = Judged(shell, tokenizer, family, data, config.batch_size, test_data, run_code=config.run_code)
        for asked in config.metrics:
            METRICS.get(asked.name).check(asked, judged)


def run(config: EvaluateOptions, inputs: Mapping[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Measures the quality of the model. Also writes `windows.jsonl` of perplexity, `hypotheses.jsonl` of
    encoder-decoders, and what metrics keep of each item.

    Inputs: `model` (Checkpoint), `data` (Corpus; Examples for encoder-decoders), and optionally `test_data` (Corpus,
    whose items metrics evaluate) and `baseline` (Metrics of the dense model). Output: Metrics.
    """
    source, data, baseline = inputs["model"], inputs["data"], inputs.get("baseline")
    assert isinstance(source, Checkpoint)
    assert isinstance(data, DataSet)
    family = families.of(source.path)
    check_options(config, family.name, data.format)
    model, precision = _load(source, config.runtime, log.device)
    measured: Measured = {}
    parts: dict[str, float] = {}
    if isinstance(family, EncoderDecoder):
        assert isinstance(data, Examples)
        if config.generation:
            _check_generation(config.generation, data, family.context(model))
            measured, parts = _generation(config.generation, config.batch_size, model, family, source, data, out, log)
    else:
        assert isinstance(data, Corpus)
        test_data = inputs.get("test_data")
        assert test_data is None or isinstance(test_data, Corpus)
        measured = _language_modelling(config, model, family, source, data, test_data, out, log)
    for metric in measured.values():
        metric["protocol"] |= {"precision": precision, "threads": torch.get_num_threads(), "runtime": config.runtime}
    (out / "metrics.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    log.facts(data_digest=data.digest)
    summary = {name: metric["value"] for name, metric in measured.items()} | parts
    summary |= {f"{name}_stderr": m["stderr"] for name, m in measured.items() if m["stderr"] is not None}
    if isinstance(baseline, Metrics):
        summary |= recovery(measured, baseline.values())
    return summary


def _load(source: Checkpoint, runtime: str, device: str) -> tuple[Any, str]:
    """Returns the model, and the precision of its quantized or prunable linears. Int8 and the engine run on the CPU
    only."""
    scheme = schemes.of(source)
    precision = scheme.precision if scheme else "fp32"
    if runtime == "engine":
        return engine_models.load(source, "int8" if scheme else "fp32", "evaluate.runtime"), precision
    model = checkpoints.load(source, torch.float32)
    return model if scheme else model.to(devices.of(device)), precision


def recovery(measured: Measured, dense: Measured) -> dict[str, float]:
    """Returns the percentage of the dense model's quality, `{name}_recovery`: value / dense, or dense / value where
    lower is better.

    A metric on which the better of the two models has 0 has no recovery, nor has one that only describes a model.
    """
    found = {}
    for name, metric in measured.items():
        if metric["protocol"].get("describes"):
            continue
        ours, theirs = metric["value"], dense[name]["value"]
        over, under = (ours, theirs) if lm_eval_tasks.higher_is_better(metric) else (theirs, ours)
        if under:
            found[f"{name}_recovery"] = 100 * over / under
    return found


def _language_modelling(
    config: EvaluateOptions, model: Any, family: Family, source: Checkpoint, data: Corpus, test_data: Corpus | None,
    out: Path, log: Log,
) -> Measured:  # fmt: skip
    tokenizer = family.tokenizer(source.path)
    measured: Measured = {}
    if config.perplexity:
        asked = config.perplexity
        measured["perplexity"] = _perplexity(asked, config.batch_size, model, family, tokenizer, data, out, log)
    for task in config.tasks:
        measured |= lm_eval_tasks.run(task, model, tokenizer, data, log)
    judged = Judged(model, tokenizer, family, data, config.batch_size, test_data, out, config.run_code)
    for further in config.metrics:
        found = METRICS.get(further.name).measure(further, judged, log)
        several = {further.name: found} if isinstance(found, Measurement) else found
        if twice := sorted(several.keys() & measured.keys()):
            raise UserError(f"{twice[0]} was measured already, by another metric or task", "evaluate.metrics")
        measured |= {name: _as_json(measurement) for name, measurement in several.items()}
    return measured


def _as_json(found: Measurement) -> dict[str, Any]:
    unit = {"unit": found.unit} if found.unit else {}
    ranks = {"describes": True} if found.higher_is_better is None else {"higher_is_better": found.higher_is_better}
    protocol = found.protocol | ranks | unit
    return {"value": found.value, "stderr": found.stderr, "protocol": protocol}


def _windows(config: Perplexity, context: int, tokenizer: Any, data: Corpus) -> Tensor:
    return perplexity.windows_of(
        data, config.split, tokenizer, context, config.length, config.windows, "evaluate.perplexity", config.bos,
        config.joined_by, config.documents,
    )  # fmt: skip


def _perplexity(
    config: Perplexity, batch_size: int, model: Any, family: Family, tokenizer: Any, data: Corpus, out: Path, log: Log
) -> dict[str, Any]:
    ids_NL = _windows(config, family.context(model), tokenizer, data)
    start = time.perf_counter()
    nll_N = perplexity.window_losses(model, family, ids_NL, batch_size, log)
    log.facts(perplexity_tokens_per_second=ids_NL.numel() / (time.perf_counter() - start))
    if not math.isfinite(float(nll_N.mean())) or float(nll_N.mean()) > 700:
        raise UserError(
            f"the mean negative log-likelihood is {float(nll_N.mean()):g}: this model is broken", "evaluate.perplexity"
        )
    windows.save(nll_N.tolist(), config.length - 1, out)
    found = perplexity.estimate(nll_N)
    return {
        "value": found.value,
        "stderr": found.stderr,
        "protocol": {
            "kind": "token perplexity",
            "higher_is_better": False,
            "split": config.split,
            "joined_by": config.joined_by,
            "documents": config.documents,
            "bos": config.bos if tokens.prefix(tokenizer) else "none",
            "length": config.length,
            "windows": len(ids_NL),
            "overlap": 0,
            "tail": "dropped",
            "predicted_tokens": len(ids_NL) * (config.length - 1),
            "data_digest": data.digest,
            "stderr": "delta method, windows independent",
        },
    }


def _generation(
    config: Generation, batch_size: int, model: Any, family: EncoderDecoder, source: Checkpoint, data: Examples,
    out: Path, log: Log,
) -> tuple[Measured, dict[str, float]]:  # fmt: skip
    """Returns the metrics, and the parts of their values; each twice with `full_window`."""
    speech = data.facts()["speech"]
    tokenizer, prompt = family.tokenizer(source.path), data.facts()["prompt"]
    rows = family.rows(model, source.path, data, config.split, UNLIMITED, "evaluate.generation.split")
    windows = {"": rows}
    if config.full_window:
        from stages.families.whisper import SpeechRows

        assert isinstance(rows, SpeechRows)
        windows[FULL_WINDOW] = rows.full_window()
    measured: Measured = {}
    parts: dict[str, float] = {}
    for suffix, heard in windows.items():
        decoded = generation.decode(config, heard, prompt, batch_size, model, tokenizer, log)
        items = decoded.items
        scored = scoring.transcripts(items, config, log) if speech else scoring.translations(items, config)
        generation.save(items, scored.counts, out / f"hypotheses{suffix}.jsonl")
        log.facts(**{f"generation{suffix}": decoded.speed})
        protocol = {
            "split": config.split,
            "items": len(items),
            "beams": config.beams,
            "length_penalty": config.length_penalty,
            "max_new_tokens": config.max_new_tokens,
            "early_stopping": model.generation_config.early_stopping or False,
            **encoder_decoder.own_rules(model),
            "cut_off": sum(item.cut_off for item in items),
            "data_digest": data.digest,
        }
        if speech:
            protocol["speech"] = speech | ({"window": "full"} if suffix == FULL_WINDOW else {})
        measured |= {
            f"{name}{suffix}": metric | {"protocol": metric["protocol"] | protocol}
            for name, metric in scored.metrics.items()
        }
        parts |= {f"{name}{suffix}": value for name, value in scored.parts.items()}
    return measured, parts


def _check_generation(config: Generation, data: Examples, context: int) -> None:
    """Raises UserError for options without meaning on this data, texts beyond the model's context, and references that
    are empty after normalisation."""
    length = len(data.facts()["prompt"]) + config.max_new_tokens
    checkpoints.check_length(context, length, "evaluate.generation.max_new_tokens")
    if rows_of(data) != "clips":
        if config.normalizer != "none":
            raise UserError(
                f"BLEU and chrF read texts as they are; expected none, got {config.normalizer}", normalizers.OPTION
            )
        if config.full_window:
            raise UserError("only speech has windows; expected false", "evaluate.generation.full_window")
    else:
        speech = data.facts()["speech"]
        if config.full_window and speech["window"] == "full":
            raise UserError(
                "these clips are in full windows already; expected false, or data.speech.window=clip",
                "evaluate.generation.full_window",
            )
        if config.normalizer == "english" and speech["language"] != "en" and speech["task"] == "transcribe":
            raise UserError(
                f"the English normaliser is for English, these transcripts are in {speech['language']}",
                normalizers.OPTION,
            )
        examples = encoder_decoder.load(data, config.split)
        scoring.check_references([text for text in examples["reference"] if text], config)
