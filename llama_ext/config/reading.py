"""Values of a config file, one at a time, each of the type it must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from llama_ext.errors import CheckpointError

__all__ = ["MISSING", "Fields"]


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING: Any = _Missing()
"""The default of a key that must be there."""


class Fields:
    """The keys and values of one file, or of a part of it.

    A value that is null counts as one that is not there, as it does for the programs that write these files.

    Args:
        values: what the file holds.
        file: what to call it in an error, such as "config.json".
        part: what precedes its keys there, such as "text_config.".

    Raises:
        CheckpointError: `values` is no mapping of names.
    """

    def __init__(self, values: object, file: str, part: str = "") -> None:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            what = f"'{part.rstrip('.')}' in {file}" if part else file
            raise CheckpointError(f"{what} must be an object of names and values, is {values!r:.60}; get it again.")
        self.values: Mapping[str, Any] = values
        self.file = file
        self.part = part

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fail(self, key: str, what: str) -> NoReturn:
        raise CheckpointError(f"'{self.part}{key}' in {self.file} {what}.")

    def integer(self, key: str, default: Any = MISSING) -> int:
        value = int(self._get(key, default, (int,), "an integer"))
        if value.bit_length() > 64:  # too many digits for a message, too
            self.fail(key, "is larger than any size that can be served; convert the model again")
        return value

    def number(self, key: str, default: Any = MISSING) -> float:
        try:
            return float(self._get(key, default, (int, float), "a number"))
        except OverflowError:
            self.fail(key, "is larger than any number that can be served; convert the model again")

    def flag(self, key: str, default: Any = MISSING) -> bool:
        return bool(self._get(key, default, (bool,), "true or false"))

    def text(self, key: str, default: Any = MISSING) -> str:
        return str(self._get(key, default, (str,), "a string"))

    def part_of(self, key: str) -> Fields:
        """The keys under `key`; none if it is not there."""
        return Fields(self.values[key] if self.has(key) else {}, self.file, f"{self.part}{key}.")

    def items(self, key: str, kinds: tuple[type, ...], what: str) -> list[Any] | None:
        """A list whose elements are of `kinds`; None if it is not there."""
        if not self.has(key):
            return None
        value = self.values[key]
        if hasattr(value, "tolist"):  # an array of GGUF's
            value = value.tolist()
        if not isinstance(value, list | tuple) or not all(
            isinstance(entry, kinds) and not (isinstance(entry, bool) and bool not in kinds) for entry in value
        ):
            self.fail(key, f"must be a list of {what}, is {value!r:.60}; convert the model again")
        return list(value)

    def _get(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.values.get(key)
        if value is None:
            if default is MISSING:
                self.fail(key, "is missing; convert the model again, or get the complete file")
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.fail(key, f"must be {what}, is {value!r:.60}; convert the model again")
        return value
