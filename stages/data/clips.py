"""Finds the audio of a speech corpus, checks it, converts it to one form and writes it beside its transcripts."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.contracts import Log, UserError
from stages.data import audio
from stages.data.rows import Row

OPTION = "data.path"


@dataclass
class Clips:
    out: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of audio in each split."""
    rates: Counter[int] = field(default_factory=Counter)
    """Number of clips at each sample rate that had to be changed."""
    mixed: int = 0
    silent: list[str] = field(default_factory=list)
    """Places of the rows without sound."""
    unreadable: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _digests: dict[str, Any] = field(default_factory=dict)

    def write(self, row: Row, value: object, split: str, number: int) -> dict[str, str | float] | None:
        """Writes `audio/<split>/<number>.flac` and returns its seconds; None for a clip without sound, which `report`
        lists."""
        found = self._found(row, value)
        if isinstance(found, Path) and not found.is_file():
            self.missing.append(f"{row.where}: {value}")
        if self.missing:  # this will be an error: only further missing files are still of interest
            return None
        try:
            sound = audio.decode(found if isinstance(found, bytes) else found.read_bytes())
        except audio.UnreadableError as error:
            self.unreadable.append(f"{row.where}: {error}")
            return None
        if sound.silent:
            self.silent.append(row.where)
            return None
        self.rates[sound.rate] += sound.rate != audio.RATE
        self.mixed += sound.channels > 1
        pcm_N = audio.pcm(sound)
        seconds = len(pcm_N) / audio.RATE
        self.seconds[split] = self.seconds.get(split, 0) + seconds
        # digest of the samples, since versions of encoders write different files
        self._digests.setdefault(split, hashlib.sha256()).update(f"{len(pcm_N)}\n".encode() + pcm_N.tobytes())
        name = f"audio/{split}/{number:06d}.flac"
        (self.out / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write_flac(self.out / name, pcm_N)
        return {"audio": name, "seconds": seconds}

    def digest(self, split: str) -> str:
        """Returns the sha256 over the samples of a split's clips."""
        return str(self._digests[split].hexdigest())

    def check(self) -> None:
        """Raises UserError if a manifest names files that are not there."""
        if self.missing:
            count = len(self.missing)
            raise UserError(f"{count} of the audio files are not there, first {self.missing[0]}", "data.columns.audio")

    def report(self, log: Log) -> dict[str, Any]:
        """Logs once what was done to clips and which were left out, as text and as facts."""
        if self.silent:
            log.note(f"left out {len(self.silent)} clips without sound, first {self.silent[0]}")
        if self.unreadable:
            log.note(f"left out {len(self.unreadable)} clips that cannot be read, first {self.unreadable[0]}")
        resampled = {str(rate): count for rate, count in sorted(self.rates.items()) if count}
        if resampled:
            from_rates = ", ".join(f"{count} clips of {rate} Hz" for rate, count in resampled.items())
            log.note(f"resampled to {audio.RATE} Hz: {from_rates}")
        if self.mixed:
            log.note(f"mixed the channels of {self.mixed} clips")
        return {
            "seconds": {split: round(seconds, 3) for split, seconds in self.seconds.items()},
            "clips_without_sound": len(self.silent),
            "clips_unreadable": len(self.unreadable),
            "resampled_from": resampled,
        }

    def _found(self, row: Row, value: object) -> Path | bytes:
        """Returns a file's content, or its expected path in the folder whose digest identifies the data."""
        if isinstance(value, dict):
            if value.get("bytes"):
                return bytes(value["bytes"])
            value = value.get("path")
        if not isinstance(value, str):
            kind = type(value).__name__
            raise UserError(f"{row.where}: expected the path of an audio file, got {kind}", "data.columns.audio")
        if row.folder is None:
            raise UserError(f"{row.where} names the file {value!r}: set this to the folder that holds both", OPTION)
        folder = row.folder.resolve()
        file = (folder / value).parent.resolve() / Path(value).name
        if not file.is_relative_to(folder) or any(part.startswith(".") for part in file.relative_to(folder).parts):
            raise UserError(f"{row.where}: {value!r} is hidden, or outside of the folder {folder.name}", OPTION)
        return file
