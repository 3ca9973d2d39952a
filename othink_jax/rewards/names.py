r"""Text around the value of an answer: a name before `=`, or the words of a sentence.

Only the words listed here are skipped. Words can change a value (`not 4`, `half of 4`, `4 dozen`),
so an unknown word is never skipped.
"""

import re

_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTED.split())}

# Neutral words: no other word can contradict them.
_NEUTRAL_WORDS = (
    "the a an of so thus hence therefore then this that it here there in is are answer result"
    " solution value measure measurement size degree degrees final correct total number count"
    " amount angle side segment line length circle cube image picture photo scene figure diagram"
    " objects items things 答案"
)
# Words that name a quantity: the radius is not the diameter.
_QUANTITY_WORDS = (
    "width height depth distance area volume perimeter circumference radius diameter arc chord"
    " diagonal median altitude hypotenuse slope probability option choice 面积 周长"
)
_NEUTRAL = frozenset(_NEUTRAL_WORDS.split())
_QUANTITIES = frozenset(_QUANTITY_WORDS.split())
_LABEL = re.compile(r"([^:=]*):\s+")
_WE_SAY = re.compile(r"^(?:I|[Ww]e) (?:can )?(?:see|count|get|find|have)\s+")
_VERB = re.compile(r"\s+(?:(?:is|are)(?: equal to)?|equals?|measures|has|contains?|shows?)\s+")
_ADVERB = re.compile(r"^(?:exactly|a total of)\s+")
_PLACE = re.compile(
    r"\s+(?:in (?:the|this) (?:image|picture|photo|scene|figure|diagram)|in total|in all)$"
)
_THINGS = re.compile(
    rf"^(\d+|{'|'.join(NUMBER_WORDS)})\s+"
    r"(?:(?:small|large|big|tiny|red|green|blue|yellow|purple|cyan|gray|grey|brown|metal|metallic"
    r"|rubber|different|distinct)\s+)*"
    r"(?:cubes?|spheres?|cylinders?|balls?|squares?|circles?|triangles?|shapes?)$",
    re.IGNORECASE,
)

_LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|rho|sigma|phi|omega))"
_BELOW = r"(?:_\{[^{}=]*\})?"
_PLAIN = rf"(?:[∠△]?(?:[A-Z]'*{_BELOW}){{1,4}}|∠?{_LETTER}'*{_BELOW}|∠\d)"  # `A'B'`, `x_{1}`, `∠1`
_SYMBOL = re.compile(
    rf"{_PLAIN}|{_PLAIN}:{_PLAIN}|\|{_PLAIN}\|"
    rf"|\\(?:overline|overrightarrow|vec)\{{{_PLAIN}\}}|\|\\(?:overrightarrow|vec)\{{{_PLAIN}\}}\|"
    rf"|\\?(?:sin|cos|tan|cot)(?:{_PLAIN}|\({_PLAIN}\))|[fghFGHP]\([A-Za-z0-9]\)"
)
_FUNCTION = re.compile(r"(\\?(?:sin|cos|tan|cot))\s+(?=\S)")
_DRESS = re.compile(r"\\(?:overline|overrightarrow)(?![A-Za-z])|[|{}()\\]")
_POINTS = re.compile(r"([∠△]?)([A-Z]{2,3})")


def stated(text: str) -> str:
    """A sentence with `=` for its verb: `The angle is 65°` becomes `The angle = 65°`."""
    label = _LABEL.match(text)
    # `Answer: 5`; a letter alone is a choice.
    if label and len(label[1]) > 1 and all(w.lower() in _NEUTRAL for w in label[1].split()):
        text = text[label.end() :]
    return _VERB.sub(" = ", _PLACE.sub("", _WE_SAY.sub("", text)))


def bare(side: str) -> str:
    """One side of an equality without filler words: `exactly 5 red cubes` becomes `5`."""
    return _THINGS.sub(r"\1", _ADVERB.sub("", side.strip()))


def name_of(side: str) -> str | None:
    r"""Canonical name of a quantity: `∠ABC` for `the size of \angle CBA`.

    Empty if the name is neutral (`the answer`); None if the text is not a name.
    """
    words = [word.rstrip(",") for word in _FUNCTION.sub(r"\1", side).split()]
    if len(words) == 1 and _SYMBOL.fullmatch(words[0]):  # `a` alone is a symbol, no article
        return _one_name(words[0])
    known = {word for word in words if word.lower() in _NEUTRAL}
    symbols = [word for word in words if word not in known and word.lower() not in _QUANTITIES]
    # Two adjacent symbols are a product, and `a` beside a symbol is no article.
    if (
        len(symbols) > 1
        or (symbols and known & {"a", "A"})
        or not all(_SYMBOL.fullmatch(symbol) for symbol in symbols)
    ):
        return None
    quantities = sorted(word.lower() for word in words if word.lower() in _QUANTITIES)
    return " ".join(quantities + [_one_name(symbol) for symbol in symbols])


def _one_name(symbol: str) -> str:
    symbol = _DRESS.sub("", symbol)
    points = _POINTS.fullmatch(symbol)
    return symbol if points is None else points[1] + unordered(points[1], points[2])


def unordered(kind: str, points: str) -> str:
    """Points of a segment, angle or triangle, in canonical order if the order has no meaning."""
    if kind == "△":
        return "".join(sorted(points))
    return min(points, points[::-1]) if kind == "∠" or len(points) == 2 else points
