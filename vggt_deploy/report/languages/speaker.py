"""The one who says it: English templates as they are, others by their catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vggt_deploy.compare.report import Said
from vggt_deploy.errors import UsageError
from vggt_deploy.report.languages.catalogue import Catalogue, read_catalogue

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
# Around a text that a report carries and the catalogue does not know: nothing is left in English
# without saying that it is the original.
ORIGINAL = "（原文）"


@dataclass(frozen=True)
class Speaker:
    """Says templates in one language; `catalogue` is None for English."""

    language: Language
    catalogue: Catalogue | None

    def __call__(self, template: str, /, **values: object) -> str:
        """The template with its values.

        Raises:
            KeyError: the catalogue lacks the template, or a value is missing.
        """
        return self._template(template).format(**values)

    def each(self, *templates: str) -> tuple[str, ...]:
        """Several templates without values, such as the head of a table."""
        return tuple(self(template) for template in templates)

    def said(self, sentences: Iterable[Said]) -> str:
        """Sentences that a report keeps as templates and values. Another version of this package
        may have written it, so a template that is not known is marked as original.
        """
        if self.catalogue is None:
            return " ".join(one.text() for one in sentences)
        known = self.catalogue.messages
        return "".join(
            one.text(lambda text: known.get(text, f"{ORIGINAL}{text}"), self.comma)
            for one in sentences
        )

    def recorded(self, text: str) -> str:
        """An English text that a report carries; one that is not known is marked as original."""
        if self.catalogue is None or not text:
            return text
        found = self._known(text)
        if found is not None:
            return found
        # Notes are often several, one after the other.
        if "; " in text:
            return self.semicolon.join(self.recorded(part) for part in text.split("; "))
        return f"{ORIGINAL}{text}"

    def sentences(self, said: Sequence[str]) -> str:
        """Whole sentences, one behind the other."""
        return (" " if self.catalogue is None else "").join(said)

    @property
    def comma(self) -> str:
        """What stands between the parts of a list."""
        return ", " if self.catalogue is None else "，"

    @property
    def semicolon(self) -> str:
        """What stands between clauses."""
        return "; " if self.catalogue is None else "；"

    @property
    def colon(self) -> str:
        """What stands behind a name, before its text."""
        return ": " if self.catalogue is None else "："

    def joined(self, items: Sequence[str]) -> str:
        """Names in a row."""
        return (", " if self.catalogue is None else "、").join(items)

    def titled(self, name: str, text: str) -> str:
        """`name: text`."""
        return f"{name}{self.colon}{text}"

    def _template(self, template: str) -> str:
        return template if self.catalogue is None else self.catalogue.messages[template]

    def _known(self, text: str) -> str | None:
        assert self.catalogue is not None
        for kind in self.catalogue.recorded:
            match = kind.pattern.fullmatch(text)
            if match is not None:
                values = {
                    name: self.recorded(value) if name.startswith("its_") else value
                    for name, value in match.groupdict().items()
                }
                return kind.template.format(**values)
        return None


ENGLISH = Speaker("en", None)


def speaker(language: str) -> Speaker:
    """The speaker of a language.

    Raises:
        UsageError: it is none of LANGUAGES.
    """
    if language == "en":
        return ENGLISH
    if language not in LANGUAGES:
        raise UsageError(
            f"the texts are not there in {language!r}", f"use one of: {', '.join(LANGUAGES)}"
        )
    return Speaker(language, read_catalogue(language))
