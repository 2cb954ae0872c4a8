"""alt-profanity-check: a linear model over words, offline, thousands of texts a second.

It sees profanity, not hate. Version 1.9.1 against people's labels, at a threshold of .5, with 95 %
intervals; the first two by ``safeedit scorer check profanity --hatecheck test_suite_cases.csv``:

===========================================  =================  ======  ============
labelled set                                 AUC                misses  false alarms
===========================================  =================  ======  ============
built-in (98 toxic, 96 harmless)             .48 [.40, .56]     81 %    31 %
HateCheck (2,563 hateful, 1,165 not)         .47 [.45, .49]     61 %    46 %
RealToxicityPrompts' prompts, continuations  .888 [.878, .898]  52 %    1.8 %
===========================================  =================  ======  ============

The last has Perspective's toxicity of .5 or more as its label (4,971 texts). The first two are
functional tests, half of whose harmless texts hold words that mislead; the last is ordinary text.

An extra (``pip install 'safeedit[profanity]'``), since it pins scikit-learn. Its weights are
pickles inside an installed package: installing it is trusting it, as with any code.

Fails with :class:`~safeedit.errors.ModelError` where it is not installed.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from safeedit.cache import file_sha256
from safeedit.contracts import BaseParams, Progress, ScorerIdentity, silent
from safeedit.errors import ModelError
from safeedit.model.quiet import quiet

_PACKAGE = "alt-profanity-check"
_MODULE = "profanity_check"
_WEIGHTS = ("vectorizer.joblib", "model.joblib")
_AT_ONCE = 4096


class Params(BaseParams):
    """It has none."""


class Profanity:
    """The linear model of alt-profanity-check."""

    Params: ClassVar[type[BaseParams]] = Params
    summary: ClassVar[str] = "alt-profanity-check, an extra: sees profanity, not hate; offline"
    blind_to: ClassVar[str] = "hatred, threats and contempt that use no profane word"

    def __init__(self, params: Any) -> None:
        self.params: Params = params

    def identity(self) -> ScorerIdentity:
        digest = hashlib.sha256()
        for path in _weights():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
        return ScorerIdentity("profanity", version(_PACKAGE), digest.hexdigest())

    def score(self, texts: Sequence[str], progress: Progress = silent) -> list[float]:
        _weights()
        with quiet():
            module = importlib.import_module(f"{_MODULE}.profanity_check")

        def found() -> Iterator[float]:
            for start in range(0, len(texts), _AT_ONCE):
                part = module.vectorizer.transform(texts[start : start + _AT_ONCE])
                yield from module.model.predict_proba(part)[:, 1].tolist()

        return list(progress(found(), "profanity: scoring", len(texts)))


def _weights() -> list[Path]:
    try:
        spec = importlib.util.find_spec(_MODULE)
        version(_PACKAGE)
    except (PackageNotFoundError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"the scorer profanity is not installed ({_PACKAGE})",
            remedy="pip install 'safeedit[profanity]', or use detoxify or classifier",
        )
    return [Path(spec.origin).parent / "data" / name for name in _WEIGHTS]
