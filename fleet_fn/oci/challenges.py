"""Reader of challenges in `WWW-Authenticate` (RFC 9110, section 11)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

#: Challenges are read up to this total per answer.
_MAX_CHALLENGE_CHARACTERS: Final = 64 * 1024
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - HTTP's token (RFC 9110, section 5.6.2)
#: One element of the `WWW-Authenticate` list (RFC 9110, section 11.6.1): a challenge with its first parameter or
#: token68, or a further parameter of the challenge before. All quantifiers are possessive: matching takes linear time.
_ELEMENT: Final = re.compile(
    rf"""
    [ \t]*+
    (?: (?P<scheme>{_TOKEN}) (?![ \t]*+=) (?: [ \t]++ | (?=,|\Z) ) )?+
    (?: (?P<name>{_TOKEN}) [ \t]*+ = [ \t]*+ (?: (?P<token>{_TOKEN})
            | "(?P<quoted>(?: [\t !#-\[\]-~\x80-\xff] | \\[\t -~\x80-\xff] )*+)" )
      | [0-9A-Za-z._~+/-]++ =*+ )?+
    [ \t]*+ (?:,|\Z)
    """,
    re.VERBOSE,
)
#: A malformed element, up to the possible start of the next one.
_MALFORMED: Final = re.compile(rf"[ \t]*+(?:(?P<scheme>{_TOKEN})[ \t]++(?!=))?+[^,]*+,?")


@dataclass(frozen=True, slots=True)
class Challenge:
    """An HTTP authentication challenge (RFC 9110, section 11.3)."""

    #: Lower case, like the names of the parameters.
    scheme: str
    #: Not in `repr`: the query of a realm may hold secrets.
    parameters: Mapping[str, str] = field(repr=False)


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """Parse the values of `WWW-Authenticate` fields into challenges, in their order.

    Malformed elements are skipped; so is a token68, which no scheme for registries has. If a parameter stands twice in
    a challenge, the first counts. Reading stops at the value that takes the total above 64 KiB.
    """
    found: list[tuple[str, dict[str, str]]] = []
    left = _MAX_CHALLENGE_CHARACTERS
    for value in values:
        left -= len(value)
        if left < 0:
            break
        position = 0
        while position < len(value):
            element = _ELEMENT.match(value, position)
            # A malformed challenge still ends the one before it: the parameters after it belong to neither.
            rest = element or _MALFORMED.match(value, position)
            assert rest  # noqa: S101 - _MALFORMED matches any text
            if scheme := rest["scheme"]:
                found.append((scheme.lower(), {}))
            if element and found and (name := element["name"]):
                unquoted = re.sub(r"\\(.)", r"\1", element["quoted"] or "")
                found[-1][1].setdefault(name.lower(), element["token"] or unquoted)
            position = rest.end()
    return [Challenge(scheme, parameters) for scheme, parameters in found]
