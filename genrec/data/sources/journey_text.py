"""Readable words for The Complete Journey's shelf labels: ``FEM. HYGN. TAMPONS`` → ``Feminine hygiene tampons``.

The labels are in capitals, cut off at 30 characters, with abbreviations. A parenthesis that is cut off is removed,
known abbreviations are written out, and the result is in lower case with one capital.
"""

from __future__ import annotations

import re
from functools import cache

WORDS = {
    "hbc": "care",
    "fem": "feminine",
    "hygn": "hygiene",
    "syrp": "syrup",
    "lozng": "lozenge",
    "drp": "drops",
    "xpctrnt": "expectorant",
    "chococlate": "chocolate",
    "choc": "chocolate",
    "cntrl": "control",
    "liqs": "liquids",
    "ltr": "lighter",
    "cig": "cigarette",
    "containr": "containers",
    "fd": "food",
    "frzn": "frozen",
    "rfgr": "refrigerated",
    "refrgratd": "refrigerated",
    "stk": "stick",
    "misc": "miscellaneous",
    "sply": "supplies",
    "suppplies": "supplies",
    "pkgd": "packaged",
    "pckgd": "packaged",
    "combin": "combinations",
    "trans": "transmission",
    "exch": "exchange",
    "hydrocortizone": "hydrocortisone",
    "linaments": "liniments",
    "disposible": "disposable",
    "foilware": "foil ware",
    "xl": "extra large",
    "lowfat": "low fat",
    "veg": "vegetable",
    "vegs": "vegetables",
    "frt": "fruit",
    "bnls": "boneless",
    "bev": "beverage",
    "bevs": "beverages",
    "drnk": "drink",
    "drnks": "drinks",
    "juic": "juice",
    "carb": "carbonated",
    "sft": "soft",
    "btl": "bottle",
    "flvrd": "flavored",
    "prfd": "preferred",
    "prep": "prepared",
    "shlf": "shelf",
    "sngl": "single",
    "w": "with",
    "dxm": "dextromethorphan",
    "pse": "pseudoephedrine",
    "womens": "women's",
    "mens": "men's",
}
DEPARTMENTS = {
    "DRUG GM": "Drugstore and general merchandise",
    "MEAT-PCKGD": "Packaged meat",
    "SEAFOOD-PCKGD": "Packaged seafood",
    "KIOSK-GAS": "Kiosk and fuel",
    "NUTRITION": "Natural and organic foods",
    "DAIRY DELI": "Dairy deli",
}
UNITS = {"gallon": "gal", "galon": "gal", "ctn": "carton", "pcs": "pc", "lbs": "lb", "ozs": "oz"}


@cache
def label(text: str | None) -> str:
    """A product type or category in words; '' for None."""
    if not text:
        return ""
    text = re.sub(r"\([^)]*\)", " ", text)
    text = re.sub(r"\(.*$", " ", text).lower()
    text = re.sub(r"\b(women|men|children) s\b", r"\1's", text)
    text = re.sub(r"w/\s*flo(ur)?\b", "with flour", text)
    text = re.sub(r"[:/]", ", ", text.replace("&", " and "))
    text = re.sub(r"[a-z']+\.?", lambda word: _written_out(word.group()), text)
    text = re.sub(r"\s*-\s+|\s+-\s*", ", ", text)
    text = re.sub(r"\s+", " ", re.sub(r"\s*,\s*", ", ", text)).strip(" ,.-")
    return text[:1].upper() + text[1:]


@cache
def department(text: str | None) -> str:
    """A department in words; '' for None."""
    return DEPARTMENTS.get(text or "", label(text))


@cache
def size(text: str | None) -> str:
    """A package size: ``2/3.5 OZ`` → ``2 x 3.5 oz``, ``.15 OZ`` → ``0.15 oz``, without stock numbers; '' for None."""
    if not text:
        return ""
    text = re.sub(r"\b\d{5,}\b", " ", text.lower())
    text = re.sub(r"(?<![\d])\.(\d)", r"0.\1", text)
    text = re.sub(r"(\d)\s*/\s*(\d)", r"\1 x \2", text)
    text = re.sub(r"([a-z])\s*/\s*(\d)", r"\1 x \2", text)
    text = re.sub(r"(\d)\s*x\s*(\d)", r"\1 x \2", text)
    words = [UNITS.get(word, word) for word in text.split()]
    return " ".join(words)


def title(product_type: str, category: str, brand: str | None, package: str) -> str:
    """A title such as ``Toothpaste, National brand, 6.4 oz``; '' if neither type nor category is known."""
    name = product_type or category
    if not name:
        return ""
    kind = f"{brand} brand" if brand else ""
    return ", ".join(part for part in (name, kind, package) if part)


def _written_out(word: str) -> str:
    return WORDS.get(word.rstrip("."), word.rstrip("."))
