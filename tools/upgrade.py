"""Pin another release of DSPy: ``python tools/upgrade.py 3.5.0``.

Downloads the wheel, writes its hash to upstream.toml as the new default (the former default stays supported), and
prints what changed upstream in each module that the overlay replaces: the changes to carry over.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import compose

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Pin the release named on the command line."""
    if len(sys.argv) != 2 or not re.fullmatch(r"\d+(\.\d+)+\w*", sys.argv[1]):
        sys.exit("usage: make upgrade-upstream VERSION=x.y.z")
    try:
        pins = compose.Pins.read(ROOT / "upstream.toml")
        former = compose.upstream_wheel(pins.choose(None), ROOT / "build/upstream")
        newer = upgrade(sys.argv[1], ROOT / "upstream.toml", ROOT / "build/upstream")
    except compose.ComposeError as error:
        sys.exit(f"dspy: {error}")
    for line in changes(former, newer, ROOT / "dspy"):
        print(line)


def upgrade(version: str, pins: Path, cache: Path) -> Path:
    """Write the pin of ``version`` as the default to the file ``pins``; the wheel, downloaded into ``cache``."""
    wheel = cache / f"{compose.PACKAGE}-{version}-py3-none-any.whl"
    given = os.environ.get("DSPY_UPSTREAM_WHEEL")
    if given:
        wheel = Path(given)
    elif not wheel.is_file():
        compose.download(version, cache)
    digest = compose.sha256(wheel)
    row = f'"{version}" = {{ name = "{wheel.name}", sha256 = "{digest}" }}\n'
    text = pins.read_text(encoding="utf-8")
    text = re.sub(rf'^"{re.escape(version)}" = .*\n', "", text, flags=re.MULTILINE)
    text = re.sub(r"^default = .*$", f'default = "{version}"', text, flags=re.MULTILINE)
    pins.write_text(text.replace("[wheels]\n", "[wheels]\n" + row), encoding="utf-8")
    print(f"upstream.toml: dspy {version}, sha256 {digest}")
    return wheel


def changes(former: Path, newer: Path, overlay: Path) -> Iterator[str]:
    """Lines that say, for each overlay file that either wheel has too, how upstream's file changed between them."""
    with zipfile.ZipFile(former) as old, zipfile.ZipFile(newer) as new:
        for name, _ in compose.overlay_files(overlay):
            before, after = _lines(old, name), _lines(new, name)
            if before is None and after is None:
                continue
            if before is None:
                yield f"{name}: new upstream, and now replaced by the overlay"
            elif after is None:
                yield f"{name}: gone upstream; what does the overlay's file still replace?"
            elif before == after:
                yield f"{name}: unchanged upstream"
            else:
                sides = f"{former.name}/{name}", f"{newer.name}/{name}"
                yield from difflib.unified_diff(before, after, *sides, lineterm="")


def _lines(archive: zipfile.ZipFile, name: str) -> list[str] | None:
    return archive.read(name).decode("utf-8").splitlines() if name in archive.namelist() else None


if __name__ == "__main__":
    main()
