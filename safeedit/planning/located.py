"""Where in the policy file an error belongs."""

from __future__ import annotations

from safeedit.errors import SafeeditError
from safeedit.policy import LoadedPolicy
from safeedit.policy.reading import FieldPath


class Located:
    """Says which field of the policy led to an error.

    An error without a place gets the field's position; one that is about a whole file (of data, of
    a model) keeps the file and says where the policy names it. A field that the command line gave
    has no place in the policy.
    """

    def __init__(self, loaded: LoadedPolicy, at: FieldPath) -> None:
        self.loaded, self.at = loaded, at

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, SafeeditError) or error.line is not None:
            return
        if self.at in self.loaded.given:
            return
        inner: FieldPath = tuple(error.field.split("."))
        # Its own field, below the one at hand or beside it (model.revision, model.source).
        nearer = [
            path
            for path in ((*self.at, *inner), (*self.at[:-1], *inner))
            if path in self.loaded.positions
        ]
        at: FieldPath = nearer[0] if nearer else self.at
        place = self.loaded.error(at, error.message, error.remedy)
        if error.file is None:
            error.file, error.line, error.column = place.file, place.line, place.column
            error.field = place.field
        else:
            error.message += f" (asked for at {place.location})"
