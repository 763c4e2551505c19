"""Heads of answers, line by line as libcurl hands them over."""


class Headers:
    """Headers of an answer; their names match in any case."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        """Add a header; others of the same name stay."""
        self._values.setdefault(name.lower(), []).append(value)

    def get(self, name: str) -> str | None:
        """Return the value of the first header of a name; None if there is none."""
        return next(iter(self.getlist(name)), None)

    def getlist(self, name: str) -> list[str]:
        """Return the values of all headers of a name."""
        return self._values.get(name.lower(), [])


class Head:
    """Head of the final answer, without interim answers and trailers."""

    __slots__ = ("_is_interim", "_lines", "is_complete")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._is_interim = False
        #: The empty line has come. libcurl also takes the end of the connection for the end of the head.
        self.is_complete = False

    def add(self, line: bytes) -> None:
        """Add the next line; the status line and the empty line count, too."""
        if self.is_complete:
            return  # a trailer
        if not self._lines:
            self._is_interim = line[9:10] == b"1"  # as in "HTTP/1.1 103 Early Hints"
        self._lines.append(line)
        if line in (b"\r\n", b"\n"):
            self.is_complete = not self._is_interim
            if self._is_interim:
                self._lines.clear()

    def headers(self) -> Headers:
        """Return the headers. Their values are decoded as ISO 8859-1."""
        headers = Headers()
        for line in self._lines[1:]:
            name, colon, value = line.decode("iso-8859-1").partition(":")
            if colon:
                headers.add(name.strip(), value.strip())
        return headers
