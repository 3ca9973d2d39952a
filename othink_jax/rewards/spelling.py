r"""Canonical spelling of an answer: typographic and LaTeX variants become the same text.

It is idempotent, because parts of an answer are read again by themselves.
"""

import re
import unicodedata

_GREEK = {
    "α": "alpha",
    "β": "beta",
    "γ": "gamma",
    "δ": "delta",
    "θ": "theta",
    "λ": "lambda",
    "μ": "mu",
    "π": "pi",
    "ρ": "rho",
    "σ": "sigma",
    "φ": "phi",
    "ω": "omega",
}


def _vulgar_fraction(character: str) -> str:
    top, bottom = unicodedata.normalize("NFKC", character).split("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


_SAME_CHARACTER = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣", "-"),
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000", " "),
        **dict.fromkeys("’′", "'"),
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        **{letter: rf"\{name} " for letter, name in _GREEK.items()},
        **{character: _vulgar_fraction(character) for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"},
        **dict.fromkeys("×·⋅", r"\cdot "),
        **dict.fromkeys("÷∕⁄", "/"),
        "∶": ":",
        "。": ".",
        "≠": r"\neq ",
        "≤": r"\leq ",
        "≥": r"\geq ",
        "∞": r"\infty ",
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")

# Applied in this order. None can match twice in the same place.
_SAME_SPELLING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![\w)}*])\*\*(?=\S)([^*]+)(?<=\S)\*\*(?![\w({*])", r"\1"),  # bold
        (r"^\*\*|\*\*$", ""),
        (r"\s*\*\*\s*(?:\(([^()]*)\)|([+-]?(?:\d+|[A-Za-z])))", r"^{\1\2}"),  # `x**2`
        (r"\*", r"\\cdot "),
        # A backslash after another one belongs to the end of a matrix row.
        (r"(?<!\\)(?:\{,\}|,\\!|\\,(?=\d{3}))", ","),
        (r"\\\$\s*(\d[\d.,]*(?<=\d))", r"\1 dollars"),
        (r"([€£¥])\s*(\d[\d.,]*(?<=\d))", r"\2 \1"),
        (r"(?<!\\)(?:\\(?:left|right|displaystyle)(?![A-Za-z])|\$|\\[()\[\]])", ""),
        (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:text|textit|mbox|operatorname|mathrm|mathbf|textbf|rm)\s*\{([^{}]*)\}", r"\1"),
        (r"\\boxed\s*\{(.*)\}", r" \1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\times(?![A-Za-z])", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\%", "%"),
        (r"\^?\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?", "°"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*([+-]?\d+(?:\.\d+)?)", r"^{\1}"),  # `2^10` is not 2^1 times 0
        (r"\\approx(?![A-Za-z])", "≈"),
        (r"<=|\\le(?![A-Za-z])", r"\\leq "),
        (r">=|\\ge(?![A-Za-z])", r"\\geq "),
        (r"!=|\\ne(?![A-Za-z])", r"\\neq "),
        (r"_([A-Z]+|[a-z0-9])", r"_{\1}"),
        (r"(?:(?<![A-Za-z\\])m)?(?:\\angle(?![A-Za-z])|∠)\s*", "∠"),
        (r"\b[Aa]ngle\s+(?=(?:[A-Z]{1,3}|\d)(?!\w))", "∠"),
        (r"\\triangle(?![A-Za-z])\s*|\b[Tt]riangle\s+(?=[A-Z]{3}(?!\w))|△\s*", "△"),
        (r"(?i)(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?i)(?:√|\\sqrt(?![A-Za-z])|(?<![A-Za-z\\])sqrt)\s*(?=[\d({\[.])", r"\\sqrt"),
        (r"\\sqrt(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    )
)


def one_spelling(text: str) -> str:
    """The text in canonical spelling, without blanks around it and punctuation at its end."""
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = text.translate(_SAME_CHARACTER)
    for pattern, replacement in _SAME_SPELLING:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;").strip()
