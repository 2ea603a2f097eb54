"""Small real Debian packages in an archive of their own, which apt, told so by APT_CONFIG, knows alone."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOOLS = ("apt-get", "apt-cache", "dpkg-deb")
needs_apt = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="no apt on this machine")


@dataclass
class Archive:
    folder: Path
    records: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, version: str, files: dict[str, bytes]) -> str:
        """Builds a package, in place of its other versions, and returns its sha256."""
        tree = self.folder / "trees" / f"{name}-{version}"
        for inside, content in files.items():
            (tree / inside).parent.mkdir(parents=True, exist_ok=True)
            (tree / inside).write_bytes(content)
        described = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: tests <t@example.org>\n"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text(f"{described}Description: tiny\n")
        file = self.folder / f"{name}_{version.rpartition(':')[2]}_all.deb"
        for old in self.folder.glob(f"{name}_*.deb"):
            old.unlink()
        subprocess.run(["dpkg-deb", "-Znone", "--build", tree, file], check=True, capture_output=True)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        where = f"Filename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {sha256}\n"
        self.records[name] = f"{described}{where}Description: tiny\n"
        (self.folder / "Packages").write_text("\n".join(self.records.values()))
        return sha256


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """An empty archive. The system's package lists are missing, as in a fresh container."""
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "Packages").touch()
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{folder} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "-";\n'
        f'Dir::State "{tmp_path}/system";\nAcquire::Languages "none";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return Archive(folder)


def help_page(paragraphs: dict[str, str]) -> bytes:
    """As LibreOffice writes them; keys are ids."""
    lines = [f'<p id="{name}" class="paragraph" dir="auto">{text}</p>' for name, text in paragraphs.items()]
    return f"<!DOCTYPE html>\n<html><body><p id='bm_1'></p>\n{''.join(lines)}<br></body></html>\n".encode()


def help_files(language: str, pages: dict[str, dict[str, str]]) -> dict[str, bytes]:
    root = f"usr/share/libreoffice/help/{language}"
    return {f"{root}/text/{page}": help_page(paragraphs) for page, paragraphs in pages.items()}


def transcripts(lines: list[str]) -> dict[str, bytes]:
    name = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    return {name: gzip.compress("\n".join(lines).encode(), mtime=0)}


def sounds(clips: dict[str, bytes]) -> dict[str, bytes]:
    return {f"usr/share/asterisk/sounds/en_US_f_Someone/{clip}.wav": content for clip, content in clips.items()}
