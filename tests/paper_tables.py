"""The tables of the papers: how many jobs each is."""

from __future__ import annotations

JOBS = {
    "local/llm": 12,
    "local/llm_gsm": 12,
    "local/llm_ladder": 4,
    "local/llm_lr": 9,
    "local/llm_patterns": 5,
    "local/llm_seeds": 9,
    "local/p2_nano": 54,
    "local/speed": 4,
    "local/t5": 12,
    "local/t5_budgets": 18,
    "local/whisper": 12,
    "local/whisper_budgets": 18,
    "paper/llama2_7b": 1,
    "paper/llama2_7b_speed": 4,
    "paper/mpt_7b": 8,
    "paper/mpt_7b_speed": 4,
    "paper/p2_gsm8k": 4,
    "paper/t5": 24,
    "paper/whisper": 24,
    "paper/whisper_ce_12": 8,
}
