"""Columns that look personal: by the words of their name, confirmed by values, or by the form of the values alone."""

import re
import unicodedata
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

# words of names in English, German, French, Spanish, Italian, Portuguese and Dutch, without accents
_MAIL_WORDS = {"email", "mail", "e-mail", "courriel", "correo"}
_PHONE_WORDS = {
    "phone", "telephone", "mobile", "tel", "cell", "fax", "telefon", "telefono", "telefone", "telefoon", "handy",
    "movil", "portable", "celular", "cellulare", "mobiel",
}  # fmt: skip
_IDENTITY_WORDS = {
    "ssn", "nino", "cpf", "curp", "passport", "iban", "vat", "dni", "nif", "bsn", "steuernummer",
    "sozialversicherungsnummer",
}  # fmt: skip
_BIRTH_WORDS = {
    "dob", "birthdate", "birthday", "geburtsdatum", "geburtstag", "naissance", "nacimiento", "nascita", "nascimento",
    "geboortedatum",
}  # fmt: skip
_GIVEN_NAME_WORDS = {
    "firstname", "lastname", "surname", "fullname", "forename", "vorname", "nachname", "familienname", "prenom",
    "apellido", "apellidos", "cognome", "sobrenome", "apelido", "voornaam", "achternaam",
}  # fmt: skip
_PERSON_WORDS = {
    "name", "customer", "patient", "person", "contact", "owner", "employee", "kunde", "mitarbeiter", "nom", "client",
    "nombre", "cliente", "nome", "naam", "klant",
}  # fmt: skip
_ADDRESS_WORDS = {
    "address", "street", "addr", "adresse", "anschrift", "strasse", "straße", "rue", "direccion", "calle", "indirizzo",
    "via", "endereco", "rua", "adres", "straat",
}  # fmt: skip
#: what it is, words of a name that suggest it, and the form of its values
_BY_NAME = (
    ("e-mail addresses", _MAIL_WORDS, _EMAIL),
    ("phone numbers", _PHONE_WORDS, _PHONE),
    ("national identity numbers", _IDENTITY_WORDS, re.compile(r"[\w -]{6,34}")),
    ("dates of birth", _BIRTH_WORDS, re.compile(r"(?=.*\d).{4,40}")),
    ("names of persons", _GIVEN_NAME_WORDS, re.compile(r"[^\d]+")),
    ("names of persons", _PERSON_WORDS, _PERSON),
    ("addresses", _ADDRESS_WORDS, _ADDRESS),
    ("network addresses", {"ip", "ipaddress"}, _IP),
)
_NAME_PAIRS = {
    *((word, "name") for word in ("first", "last", "full", "given", "family", "middle", "maiden")), ("birth", "date"),
}  # fmt: skip
_NUMBERS = {*_PHONE_WORDS, *_BIRTH_WORDS, "ssn", "dni", "nif", "bsn"} - {"tel", "cell", "fax", "handy", "portable"}
_BY_VALUES = (
    ("e-mail addresses", _EMAIL),
    ("national identity numbers", _NATIONAL_ID),
    ("bank accounts", _IBAN),
    ("names of persons", _TITLED),
    ("network addresses", _IP),
)


def split_words(name: str) -> list[str]:
    """The words of a column's name in lower case, without accents: ``customerID`` and ``customer_id`` have the same.

    Example:
        >>> split_words("customerID"), split_words("Date of Birth"), split_words("Téléphone")
        (['customer', 'id'], ['date', 'of', 'birth'], ['telephone'])
    """
    name = "".join(mark for mark in unicodedata.normalize("NFKD", name) if not unicodedata.combining(mark))
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
        if not joined & hints or not have_form(form):
            continue
        if form is _PERSON and distinct_share < 0.5:
            continue
        return what
    return None
