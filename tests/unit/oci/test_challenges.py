"""Challenges: their parameters, however they are written, and hostile header fields."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_fn.oci.challenges import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("values", "challenges"),
    [
        ([], []),
        ([""], []),
        ([" ,, ,\t"], []),
        (
            ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (["BASIC Realm=x"], [Challenge("basic", {"realm": "x"})]),
        (['Basic realm = "x"\t,\tcharset\t=\tUTF-8'], [Challenge("basic", {"realm": "x", "charset": "UTF-8"})]),
        (["Basic"], [Challenge("basic", {})]),
        (["Basic, Bearer"], [Challenge("basic", {}), Challenge("bearer", {})]),
        (["Basic , ,realm=x"], [Challenge("basic", {"realm": "x"})]),
        (
            ['Bearer realm="a", scope="b", Basic realm="c", charset="UTF-8"'],
            [Challenge("bearer", {"realm": "a", "scope": "b"}), Challenge("basic", {"realm": "c", "charset": "UTF-8"})],
        ),
        (["A realm=a", "B realm=b"], [Challenge("a", {"realm": "a"}), Challenge("b", {"realm": "b"})]),
        # Fields of one name are one list, wherever it is cut (RFC 9110, section 5.3).
        (["Bearer realm=a", "service=b"], [Challenge("bearer", {"realm": "a", "service": "b"})]),
        (
            ["Negotiate oYG2==, NTLM, Digest qop=auth, Custom a/b="],
            [
                Challenge("negotiate", {}),
                Challenge("ntlm", {}),
                Challenge("digest", {"qop": "auth"}),
                Challenge("custom", {}),
            ],
        ),
        ([r'Basic realm="a\"b\\c\d, Bearer realm=e"'], [Challenge("basic", {"realm": r'a"b\cd, Bearer realm=e'})]),
        (['Basic realm=""'], [Challenge("basic", {"realm": ""})]),
        (["Bearer scope=a:b"], [Challenge("bearer", {})]),  # which only a quoted string can have
        (["Basic realm=a, REALM=b"], [Challenge("basic", {"realm": "a"})]),
        # Malformed pieces.
        (['realm="x", Basic realm=y'], [Challenge("basic", {"realm": "y"})]),
        (['Bearer realm="x" y, service=s'], [Challenge("bearer", {"service": "s"})]),
        (["Bearer realm=@, service=s"], [Challenge("bearer", {"service": "s"})]),
        (["Bearer @, service=s"], [Challenge("bearer", {"service": "s"})]),
        (["Bearer realm=a, @@, =, service=s"], [Challenge("bearer", {"realm": "a", "service": "s"})]),
        (["A realm=a, B @@, service=s"], [Challenge("a", {"realm": "a"}), Challenge("b", {"service": "s"})]),
        (['Bearer realm="a, Basic realm=b'], [Challenge("bearer", {}), Challenge("basic", {"realm": "b"})]),
        (['Bearer realm="a\\', "Basic realm=b"], [Challenge("bearer", {}), Challenge("basic", {"realm": "b"})]),
        (['Bearer realm="a\nb", Basic realm=c'], [Challenge("bearer", {}), Challenge("basic", {"realm": "c"})]),
    ],
)  # fmt: skip
def test_challenges_are_told_apart(values: list[str], challenges: list[Challenge]) -> None:
    assert parse_challenges(values) == challenges


def test_parameters_are_not_shown() -> None:
    assert repr(Challenge("bearer", {"realm": "https://x/?key=S3cr3t"})) == "Challenge(scheme='bearer')"


tokens = st.text("abXY09!#$%&'*+.^_`|~-", min_size=1, max_size=8)
blank = st.text(" \t", max_size=2)
texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=12)
parameters = st.dictionaries(tokens.map(str.lower), texts | tokens, max_size=4)
challenge_lists = st.lists(st.builds(Challenge, tokens.map(str.lower), parameters), max_size=5)


@st.composite
def spelled(draw: st.DrawFn, challenges: list[Challenge]) -> list[str]:
    """Some legal way to write challenges into header fields."""

    def cased(text: str) -> str:
        return "".join(draw(st.sampled_from([character.lower(), character.upper()])) for character in text)

    def valued(text: str) -> str:
        if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", text) and draw(st.booleans()):
            return text
        return (
            '"'
            + re.sub(r'["\\]|.', lambda c: f"\\{c[0]}" if c[0] in '"\\' or draw(st.booleans()) else c[0], text)
            + '"'
        )

    elements: list[str] = []
    for challenge in challenges:
        first = cased(challenge.scheme)
        written = [
            cased(name) + draw(blank) + "=" + draw(blank) + valued(value)
            for name, value in challenge.parameters.items()
        ]
        if written:
            first += draw(st.sampled_from([" ", "  "])) + written.pop(0)
        elif draw(st.booleans()):
            first += " " + draw(st.text("aZ09-._~+/", min_size=1, max_size=8)) + draw(st.text("=", max_size=2))
        elements += [first, *written]
    fields = [""]
    for element in elements:
        if draw(st.integers(0, 4)) == 0:
            fields.append("")
        elif fields[-1]:
            fields[-1] += ","
        fields[-1] += draw(st.sampled_from(["", "", ", ", " ,\t,"])) + draw(blank) + element + draw(blank)
    return fields


@given(st.data(), challenge_lists)
def test_however_challenges_are_written_they_are_read_as_they_were_meant(
    data: st.DataObject, challenges: list[Challenge]
) -> None:
    assert parse_challenges(data.draw(spelled(challenges))) == challenges


@given(st.lists(st.text(max_size=40) | st.text('Basic realm="\\,=; \t@\n', max_size=60), max_size=4), challenge_lists)
@example(['a="\\'], [])
def test_no_field_hides_a_challenge_of_another_field(junk: list[str], challenges: list[Challenge]) -> None:
    named = [f'{challenge.scheme} realm="x"' for challenge in challenges]
    found = parse_challenges([*junk, *named])
    assert found[len(found) - len(named) :] == [Challenge(challenge.scheme, {"realm": "x"}) for challenge in challenges]


@pytest.mark.parametrize(
    "piece",
    [
        ",", " ", "\t,", "a", "a ", "a,", "a=", "a= ", "a =", '"', "\\", '\\"', 'a="', 'a="\\', 'a="\\",', 'a="x" ',
        'a="x"b,', 'a="x,', 'a="\\"', "a=b=", "==", "Basic ", "Basic realm=", 'Basic realm="', 'Basic realm="x", ',
        "a b c", "\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("before", "after"), [("", ""), ('Bearer realm="', ""), ("Bearer ", "@"), ("Bearer a=", '"')])
def test_no_value_takes_more_than_linear_time(piece: str, before: str, after: str) -> None:
    value = before + (piece * 65536)[: 65536 - len(before + after)] + after

    start = time.thread_time()  # what else the machine does is no matter
    parse_challenges([value])
    assert time.thread_time() - start < 1  # a tenth of it, in fact; in quadratic time, many seconds


def test_of_more_than_64_kib_of_challenges_the_rest_is_not_read() -> None:
    values = ['Basic realm="registry"', "Bearer x," * 5000, "Other x," * 5000, "Other"]
    assert {challenge.scheme for challenge in parse_challenges(values)} == {"basic", "bearer"}
