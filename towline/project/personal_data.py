"""Columns that look personal: by the words of their name, confirmed by values, or by the form of the values alone."""

import re
from collections.abc import Sequence

SHARE = 0.8  # of the values that must have the form
SAMPLE = 500  # distinct values that are examined

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")
_PHONE = re.compile(r"\+?\(?\d[\d\s()./-]{6,18}\d")
_PERSON = re.compile(r"[^\W\d_][\w'.’-]*(,?\s+[^\W\d_][\w'.’-]*){1,3}")
_TITLED = re.compile(
    r"[^\d]{0,60}\b(Mr|Mrs|Ms|Miss|Master|Dr|Prof|Rev|Herr|Frau|Mme|Mlle|Monsieur|Madame|Sig|Señor|Señora)\b[^\d]{1,80}"
)
_ADDRESS = re.compile(r"\d+[a-zA-Z]?\s+\S.*[^\W\d_]{2}.*|[^\W\d_]{3,}.*\s\d+[a-zA-Z]?")
_NATIONAL_ID = re.compile(r"\d{3}-\d{2}-\d{4}")
_IBAN = re.compile(r"[A-Z]{2}\d{2}(\s?[A-Z0-9]{4}){3,7}(\s?[A-Z0-9]{1,3})?")
_IP = re.compile(r"(\d{1,3}\.){3}\d{1,3}")

#: what it is, words of a name that suggest it, and the form of its values; None: the name is enough
_BY_NAME = (
    ("e-mail addresses", {"email", "mail", "e-mail"}, _EMAIL),
    ("phone numbers", {"phone", "telephone", "mobile", "tel", "cell", "fax"}, _PHONE),
    (
        "national identity numbers",
        {"ssn", "nino", "cpf", "curp", "passport", "iban", "vat"},
        re.compile(r"[\w -]{6,34}"),
    ),
    ("dates of birth", {"dob", "birthdate", "birthday"}, None),
    ("names of persons", {"firstname", "lastname", "surname", "fullname", "forename"}, re.compile(r"[^\d]+")),
    ("names of persons", {"name", "customer", "patient", "person", "contact", "owner", "employee"}, _PERSON),
    ("addresses", {"address", "street", "addr"}, _ADDRESS),
    ("network addresses", {"ip", "ipaddress"}, _IP),
)
_NAME_PAIRS = {
    *((word, "name") for word in ("first", "last", "full", "given", "family", "middle", "maiden")), ("birth", "date"),
}  # fmt: skip
_NUMBERS = {"phone", "telephone", "mobile", "ssn", "dob", "birthdate", "birthday"}
_BY_VALUES = (
    ("e-mail addresses", _EMAIL),
    ("national identity numbers", _NATIONAL_ID),
    ("bank accounts", _IBAN),
    ("names of persons", _TITLED),
    ("network addresses", _IP),
)


def split_words(name: str) -> list[str]:
    """The words of a column's name in lower case: ``customerID`` and ``customer_id`` have the same.

    Example:
        >>> split_words("customerID"), split_words("Date of Birth")
        (['customer', 'id'], ['date', 'of', 'birth'])
    """
    spaced = re.sub(r"([a-z0-9])([A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\3 \2", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def may_be_personal_numbers(name: str) -> bool:
    """Whether a name says that numbers are personal, such as phone numbers, or dates of birth written as 19901231.

    Example:
        >>> may_be_personal_numbers("date_of_birth"), may_be_personal_numbers("birth_weight")
        (True, False)
    """
    words = set(split_words(name))
    return bool(words & _NUMBERS) or words >= {"birth", "date"}


def detect_personal(name: str, texts: Sequence[str], distinct_share: float) -> str | None:
    """What personal data a column seems to hold; None if it seems to hold none.

    Args:
        name: of the column.
        texts: distinct values as text, at most ``SAMPLE``.
        distinct_share: distinct values for each row that is not null; names of persons seldom repeat.

    Example:
        >>> detect_personal("contact", ["ann@example.com", "bo@example.org"], 1.0)
        'e-mail addresses'
    """
    if not texts:
        return None

    def have_form(pattern: re.Pattern[str]) -> bool:
        return sum(bool(pattern.fullmatch(text.strip())) for text in texts) >= SHARE * len(texts)

    for what, pattern in _BY_VALUES:
        if have_form(pattern):
            return what
    words = split_words(name)
    joined = {"".join(words), *words}
    if any(first in words and second in words for first, second in _NAME_PAIRS):
        joined |= {"dob"} if "birth" in words else {"fullname"}
    for what, hints, form in _BY_NAME:
        if not joined & hints or not (form is None or have_form(form)):
            continue
        if form is _PERSON and distinct_share < 0.5:
            continue
        return what
    return None
