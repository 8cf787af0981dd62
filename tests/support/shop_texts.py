"""Texts that a shop may hold and that no page may stumble over."""

SHOPS_TEXTS = {
    "formula": "$ave & $pend",
    "half a formula": "$\\frac{ a_b^{c}",
    "lines": "two\nlines\tand a tab",
    "terminal": "\x1b[31mred\x07",
    "emoji": "🧴 shampoo",
    "right to left": "شامبو للشعر",
    "Chinese": "洗发水",
    "reversed": "\u202egnp.exe",
    "long": "x" * 5000,
    "script": "</text></svg><script>alert(1)</script>",
    "quotes": "' onload=alert(1) \"&amp;",
}
